"""The linear layers for inference: same values as the plain ones, buffers never shared, never visible."""

import threading

import pytest
import torch

from latte_fast import _ext
from latte_fast.reference.functional import axis_attention_qkv_ref
from latte_fast.testing import assert_no_worse_than_torch, largest_errors
from tests.helpers.guards import poisoned_empty

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))


def layers(dtype: torch.dtype, width: int = 128, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(2, 3, 17, width, generator=g)
    w1 = torch.randn(4 * width, width, generator=g) * width**-0.5
    b1 = torch.randn(4 * width, generator=g) * 0.3
    w2 = torch.randn(width, 4 * width, generator=g) * (4 * width) ** -0.5
    return [t.to(dtype) for t in (h, w1, b1, w2)]


def mlp_ref(h, w1, b1, w2):
    return torch.nn.functional.gelu(h @ w1.t() + b1, approximate="tanh") @ w2.t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_mlp(dtype):
    from latte_fast._ext import linear

    args = layers(dtype)
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    with poisoned_empty():
        got = linear.mlp(*args)
    oracle = mlp_ref(*(t.to(wide) for t in args))
    assert_no_worse_than_torch(
        "mlp", got, mlp_ref(*args), oracle, reordered=lambda: largest_errors(lambda: [mlp_ref(*args)], [oracle])[0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("roped", [False, True])
@pytest.mark.parametrize(("frames", "patches"), [(3, 40), (20, 5), (5, 300)])
def test_attention_adds_the_bias(frames, patches, roped, axis, dtype):
    from latte_fast._ext import linear

    if roped and axis == "space":
        pytest.skip("rope turns the time axis")
    torch.manual_seed(0)
    h, w, b = torch.randn(2, frames, patches, 144), torch.randn(3 * 144, 144) / 12, torch.randn(3 * 144)
    angle = torch.arange(frames)[:, None] * 100 ** (-torch.arange(36) / 36)
    rope = (angle.cos(), angle.sin()) if roped else None
    h, w, b = (t.to(dtype) for t in (h, w, b))

    def ref(h, w, b):
        return axis_attention_qkv_ref((h @ w.t() + b).unflatten(-1, (3, 2, 72)), axis, rope)

    wide = torch.float64 if dtype == torch.float32 else torch.float32
    got = linear.attention(h, w, b, 2, axis, rope)
    oracle = ref(*(t.to(wide) for t in (h, w, b)))
    assert_no_worse_than_torch(
        "attention", got, ref(h, w, b), oracle, reordered=lambda: largest_errors(lambda: [ref(h, w, b)], [oracle])[0]
    )


def test_mlp_in_parts(monkeypatch):
    from latte_fast._ext import linear

    monkeypatch.setattr(linear, "rows_at_once", lambda dtype: 512)  # three parts and what is left
    h, *weights = layers(torch.float32)
    h = h[:, :, :1].expand(2, 3, 301, -1)
    parts = torch.cat([linear.mlp(row, *weights) for row in h.flatten(0, 1)]).view(h.shape)
    torch.testing.assert_close(linear.mlp(h, *weights), parts)


def test_results_are_nobodys_buffer():
    from latte_fast._ext import linear

    first = linear.mlp(*layers(torch.float32))
    kept = first.clone()
    linear.mlp(*layers(torch.float32, seed=1))
    assert torch.equal(first, kept)


def test_buffers_are_not_shared():
    from latte_fast._ext import linear

    linear.release_buffers()
    with linear.borrowed((4, 8), torch.float32) as a, linear.borrowed((4, 8), torch.float32) as b:
        assert a.data_ptr() != b.data_ptr()
        first = a.data_ptr()
    with linear.borrowed((4, 8), torch.float32) as c, linear.borrowed((4, 8), torch.float32) as d:
        assert first in (c.data_ptr(), d.data_ptr()) and c.data_ptr() != d.data_ptr()
    linear.release_buffers()


def test_weights_changed_in_any_way_count():
    from latte_fast._ext import linear

    h, w1, b1, w2 = layers(torch.bfloat16)
    linear.mlp(h, w1, b1, w2)
    w1.data.mul_(-1)
    want = linear.mlp(h, w1.clone(), b1, w2)
    assert torch.equal(linear.mlp(h, w1, b1, w2), want)


def test_inference_mode_and_after():
    from latte_fast._ext import linear

    linear.release_buffers()
    args = layers(torch.float32)
    with torch.inference_mode():
        want = linear.mlp(*args)
    with torch.no_grad():
        assert torch.equal(linear.mlp(*args), want)


def test_threads_at_once():
    from latte_fast._ext import linear

    args = [layers(torch.float32, seed=s) for s in range(4)]
    want = [linear.mlp(*a) for a in args]
    got: dict[int, list] = {s: [] for s in range(4)}

    def work(s):
        for _ in range(20):
            got[s].append(linear.mlp(*args[s]))

    workers = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for s in range(4):
        assert len(got[s]) == 20 and all(torch.equal(g, want[s]) for g in got[s])
