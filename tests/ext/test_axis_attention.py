"""axis_attention on the C++ backend: both axes, packed and unpacked, rotary, masked, every layout."""

import itertools
import zlib

import pytest
import torch
from torch import Tensor

from latte_fast import _ext, ops, use_backend
from latte_fast.ops.axis_attention import axis_attention_of_linear
from latte_fast.reference.functional import axis_attention_qkv_ref, axis_attention_ref
from latte_fast.testing import compare
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.guards import poisoned_empty

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SPACE = {
    "width": [8, 64, 72, 80, 128],
    "queries": [1, 7, 33, 256],
    "keys": [1, 7, 120, 256],
    "frames": [1, 3],
    "dtype": list(DTYPES),
    "layout": ["packed", "plain", "slice", "expanded"],
    "mask": [False, True],
}
TIME = {
    "width": [8, 64, 72, 80, 128],
    "frames": [1, 2, 15, 16, 17, 64, 100],
    "patches": [1, 7, 20],
    "dtype": list(DTYPES),
    "layout": ["packed", "plain", "slice", "expanded"],
    "rope": [False, True],
    "mask": [False, True],
}


def rope_tables(frames: int, width: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(frames)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
    return angle.cos(), angle.sin()


def heads(b: int, f: int, n: int, h: int, k: int, layout: str, dtype: torch.dtype) -> Tensor:
    """(B, F, N, H, K); expanded over the clips, since equal keys along the attended axis make dq zero."""
    if layout == "slice":
        return torch.randn(b, f + 2, n, h, k).to(dtype)[:, 1 : f + 1]
    if layout == "expanded":
        return torch.randn(1, f, n, h, k).to(dtype).expand(b, f, n, h, k)
    if layout == "packed":
        return torch.randn(b, f, n, 3, h, k).to(dtype)[:, :, :, 1]
    return torch.randn(b, f, n, h, k).to(dtype)


def check(cell: dict, axis: str, rows: int = 0) -> None:
    """With as many heads as give `rows` queries: of a few, torch's own largest error is luck, and so is twice of it."""
    torch.manual_seed(zlib.crc32(cell_id(cell).encode()))
    b, k, f = 2, cell["width"], cell["frames"]
    nq = cell.get("queries", cell.get("patches"))
    h = max(3, rows // (f * nq))
    nk = cell.get("keys", nq)
    dtype, layout = DTYPES[cell["dtype"]], cell["layout"]
    q = heads(b, f, nq, h, k, "plain" if layout == "expanded" else layout, dtype)
    key, v = (heads(b, f, nk, h, k, layout, dtype) for _ in range(2))
    rope = rope_tables(f, k) if cell.get("rope") else None
    mask = None
    if cell["mask"]:
        mask = torch.rand(b, nk if axis == "space" else f) > 0.4
        mask[0] = False  # a clip without a key gives 0, and no gradient
        mask[1, 0] = True
    args = (*(t.requires_grad_() for t in (q, key, v)), axis, rope, None, mask)
    with use_backend(axis_attention="cpu"), poisoned_empty():
        compare(ops.axis_attention, axis_attention_ref, args, ["out", "dq", "dk", "dv"])


@pytest.mark.parametrize("cell", pairwise(SPACE), ids=cell_id)
def test_space_attention_pairwise(cell):
    check(cell, "space")


@pytest.mark.parametrize("cell", pairwise(TIME), ids=cell_id)
def test_time_attention_pairwise(cell):
    check(cell, "time")


@pytest.mark.slow
@pytest.mark.parametrize("width", SPACE["width"])
@pytest.mark.parametrize("axis", ["space", "time"])
def test_attention_product(axis, width):
    axes = {**(SPACE if axis == "space" else TIME), "width": [width]}
    rows = max(128, 8192 // width)  # as many values of dq at every width
    for values in itertools.product(*axes.values()):
        check(dict(zip(axes, values, strict=True)), axis, rows)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize(("frames", "patches", "width"), [(16, 256, 64), (16, 256, 72), (3, 1024, 64)])
def test_attention_packed_presets(axis, frames, patches, width, dtype):
    torch.manual_seed(0)
    qkv = torch.randn(1, frames, patches, 3, 2, width).to(dtype).requires_grad_()
    rope = rope_tables(frames, width) if axis == "time" else None
    with use_backend("cpu"), poisoned_empty():
        compare(ops.axis_attention_qkv, axis_attention_qkv_ref, (qkv, axis, rope), ["out", "dqkv"])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("axis", "frames", "patches"), [("space", 3, 70), ("time", 16, 5), ("time", 20, 3)])
def test_attention_bias_gradient(axis, frames, patches, dtype):
    """The sums over all tokens from the backward, the same on any number of threads."""
    torch.manual_seed(0)
    qkv = torch.randn(2, frames, patches, 3, 2, 72).to(dtype).requires_grad_()
    bias = torch.randn(3 * 2 * 72).to(dtype).requires_grad_()
    rope = rope_tables(frames, 72) if frames == 20 else None

    def layer(qkv, bias):
        return axis_attention_of_linear("cpu", qkv + bias.detach().view(3, 2, 72), bias, axis, rope)

    def oracle(qkv, bias):
        return axis_attention_qkv_ref(qkv + bias.view(3, 2, 72), axis, rope)

    with use_backend("cpu"), poisoned_empty():
        compare(layer, oracle, (qkv, bias), ["out", "dqkv", "dbias"])
        found, before = [], torch.get_num_threads()
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = layer(qkv, bias)
            found.append(torch.autograd.grad(out, bias, torch.ones_like(out).cumsum(-1))[0])
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_attention_bias_gradient_in_float64():
    torch.manual_seed(0)
    qkv = torch.randn(2, 3, 4, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3 * 2 * 8, dtype=torch.float64, requires_grad=True)
    out = axis_attention_of_linear("cpu", qkv, bias, "time", None)
    dqkv, dbias = torch.autograd.grad(out, (qkv, bias), torch.randn_like(out))
    torch.testing.assert_close(dbias, dqkv.sum((0, 1, 2)).flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_gradcheck(axis, masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 4, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    rope = tuple(t.double() for t in rope_tables(3, 8)) if axis == "time" else None
    mask = None
    if masked:
        mask = torch.tensor([[True, False, True, True], [False] * 4])[:, : 4 if axis == "space" else 3]
    with use_backend(axis_attention="cpu"):
        assert torch.autograd.gradcheck(lambda *qkv: ops.axis_attention(*qkv, axis, rope, None, mask), (q, k, v))


def test_attention_large_scores_stay_finite():
    q = torch.full((1, 1, 5, 1, 64), 60.0, dtype=torch.bfloat16)
    q[:, :, 1::2] *= -1
    with use_backend(axis_attention="cpu"):
        out = ops.axis_attention(q, q, q, "space")
    torch.testing.assert_close(out, q.flatten(-2))


def test_attention_empty_batch():
    qkv = torch.randn(0, 4, 5, 3, 2, 64, requires_grad=True)
    with use_backend(axis_attention="cpu"):
        out = ops.axis_attention_qkv(qkv, "time")
        out.sum().backward()
    assert out.shape == (0, 4, 5, 128) and qkv.grad.shape == qkv.shape


@pytest.mark.parametrize("axis", ["space", "time"])
def test_attention_writes_nothing_outside(axis):
    from latte_fast._ext import axis_attention as launcher

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 5, 6, 2, 64, dtype=torch.bfloat16) for _ in range(3))
    out, lse = launcher.axis_attention_fwd(q, k, v, axis, None, 0.1, None, True)
    margin = torch.full((1, 7, 8, 5, 2, 64), float("nan"), dtype=torch.bfloat16)
    grads = margin[:, 1:6, 1:7, 1:4].unbind(3)
    launcher.axis_attention_bwd(torch.randn_like(out), q, k, v, out, lse, axis, None, 0.1, None, *grads)
    assert not any(g.isnan().any() for g in grads)
    assert margin.isnan().sum() == margin.numel() - 3 * q.numel()
