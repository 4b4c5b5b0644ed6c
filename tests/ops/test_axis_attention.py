"""axis_attention and its packed form on whatever backend serves this machine, and on torch's SDPA."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import ops, testing, use_backend
from latte_fast.reference import functional as R
from tests.helpers.guards import require_backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ids = lambda v: str(v).removeprefix("torch.")  # noqa: E731


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rope_tables(frames: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(frames)[:, None] * 10000.0 ** (-torch.arange(width // 2) / (width // 2))
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 2, 8), (1, 16, 5, 2, 64), (2, 5, 16, 1, 72)], ids=str)
def test_packed(dtype: torch.dtype, axis: str, shape: tuple[int, ...]) -> None:
    b, f, n, h, k = shape
    qkv = random(b, f, n, 3, h, k, dtype=dtype).requires_grad_()
    require_backend("axis_attention", *qkv.unbind(3), axis, None, k**-0.5, None)
    testing.compare(ops.axis_attention_qkv, R.axis_attention_qkv_ref, (qkv, axis), ["out", "dqkv"])


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_rope(dtype: torch.dtype) -> None:
    qkv = random(2, 5, 3, 3, 2, 16, dtype=dtype).requires_grad_()
    rope = rope_tables(5, 16)
    require_backend("axis_attention", *qkv.unbind(3), "time", rope, 0.25, None)
    testing.compare(ops.axis_attention_qkv, R.axis_attention_qkv_ref, (qkv, "time", rope), ["out", "dqkv"])


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("axis", ["space", "time"])
def test_key_mask_with_an_empty_row(dtype: torch.dtype, axis: str) -> None:
    keys = 9 if axis == "space" else 4
    q = random(2, 4, 5 if axis == "space" else 9, 2, 8, dtype=dtype).requires_grad_()
    k, v = (random(2, 4, 9, 2, 8, dtype=dtype, seed=s).requires_grad_() for s in (1, 2))
    mask = torch.rand(2, keys, generator=torch.Generator().manual_seed(3)) > 0.4
    mask[1] = False
    args = (q, k, v, axis, None, None, mask)
    require_backend("axis_attention", *args[:4], None, 8**-0.5, mask)
    testing.compare(ops.axis_attention, R.axis_attention_ref, args, ["out", "dq", "dk", "dv"])
    assert ops.axis_attention(*args)[1].abs().max() == 0


def test_video_slice_of_a_joint_batch_is_read_in_place() -> None:
    whole = random(2, 5, 6, 3, 2, 8).requires_grad_()
    qkv = whole[:, :3]
    require_backend("axis_attention", *qkv.unbind(3), "time", None, 8**-0.5, None)
    testing.compare(
        ops.axis_attention_qkv, R.axis_attention_qkv_ref, (qkv.detach().requires_grad_(), "time"), ["out", "d"]
    )


@pytest.mark.parametrize("axis", ["space", "time"])
def test_sdpa_backend(axis: str) -> None:
    qkv = random(1, 4, 6, 3, 2, 8).requires_grad_()
    with use_backend(axis_attention="sdpa"):
        testing.compare(ops.axis_attention_qkv, R.axis_attention_qkv_ref, (qkv, axis), ["out", "dqkv"])


@pytest.mark.parametrize("packed", [True, False, "with its bias"])
def test_opcheck(packed: bool | str) -> None:
    qkv = random(1, 3, 5, 3, 2, 8).requires_grad_()
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(3))
    backend = require_backend("axis_attention", q, k, v, "time", None, 8**-0.5, None)
    if backend == "sdpa":
        pytest.skip("served by torch's SDPA, which is no op of ours")
    rope = rope_tables(3, 8)
    name, args = "axis_attention", (q, k, v, "time", *rope, 8**-0.5, None, True, backend)
    if packed:
        bias = random(3 * 2 * 8, seed=1).requires_grad_() if packed == "with its bias" else None
        name, args = "axis_attention_qkv", (qkv, bias, "time", *rope, 8**-0.5, True, backend)
    torch.library.opcheck(getattr(torch.ops.latte_fast, name).default, args)


def test_gradcheck() -> None:
    qkv = random(1, 3, 4, 3, 1, 8).double().requires_grad_()
    for axis in ("space", "time"):
        require_backend("axis_attention", *qkv.unbind(3), axis, None, 8**-0.5, None)
        assert torch.autograd.gradcheck(lambda x, axis=axis: ops.axis_attention_qkv(x, axis), qkv)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("axis", "keys"), [("space", 6), ("time", 4)])
def test_flops(axis: str, keys: int, packed: bool) -> None:
    """Two products, with and without gradients; four more in a backward."""
    qkv = random(1, 4, 6, 3, 2, 8)
    if require_backend("axis_attention", *qkv.unbind(3), axis, None, 8**-0.5, None) == "sdpa":
        pytest.skip("served by torch's SDPA, which has no formula on the CPU")
    counts = []
    for grad in (False, True):
        qkv.requires_grad_(grad)
        with FlopCounterMode(display=False) as counter:
            out = ops.axis_attention_qkv(qkv, axis) if packed else ops.axis_attention(*qkv.unbind(3), axis)
            counts.append(counter.get_total_flops())
            if grad:
                out.backward(torch.ones_like(out))
                counts.append(counter.get_total_flops())
    one = 4 * (4 * 6) * keys * 2 * 8
    assert counts == [one, one, 3 * one]


@pytest.mark.parametrize("frames", [4, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_vmap_and_then_a_gradient(dtype: torch.dtype, frames: int) -> None:
    """Inside vmap no tensor says that it requires a gradient; transforms are served by the reference."""
    qkv = random(2, 1, frames, 3, 3, 2, 16, dtype=dtype).requires_grad_()
    out = torch.vmap(lambda x: ops.axis_attention_qkv(x, "time"))(qkv)
    dout = random(*out.shape, dtype=dtype, seed=1)
    (got,) = torch.autograd.grad(out, qkv, dout)
    with use_backend("reference"):
        (want,) = torch.autograd.grad([ops.axis_attention_qkv(x, "time") for x in qkv], qkv, list(dout))
    assert torch.equal(got, want)


SPOILED = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@pytest.mark.parametrize("value", list(SPOILED))
@pytest.mark.parametrize("place", [0, 1, 2], ids=["q", "k", "v"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frames", [4, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_what_is_not_finite_is_seen(dtype: torch.dtype, frames: int, masked: bool, place: int, value: str) -> None:
    """A result is finite where the oracle's is and nowhere else; a masked key may be anything."""
    qkv = list(random(3, 1, frames, 3, 2, 16, dtype=dtype).unbind())
    qkv[place][0, 1, 1, 0, 3] = SPOILED[value]
    mask = torch.arange(frames)[None] != 1 if masked else None
    got = ops.axis_attention(*qkv, "time", key_mask=mask)
    want = R.axis_attention_ref(*qkv, "time", key_mask=mask)
    assert torch.equal(got.isfinite(), want.isfinite())
    assert masked == (place == 1) or not got.isfinite().all() or value != "nan"


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("frames", [1, 2, 16, 24])
@pytest.mark.parametrize("scale", [1e4, 1e8])
def test_enormous_scores(dtype: torch.dtype, frames: int, scale: float) -> None:
    """One key has everything: the result is its value."""
    q, k, v = random(3, 1, frames, 3, 2, 16, dtype=dtype, seed=3).unbind()
    got = ops.axis_attention(q, k, v, "time", scale=scale)
    torch.testing.assert_close(
        got, R.axis_attention_ref(q.double(), k.double(), v.double(), "time", scale=scale).to(dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("amplitude", [1.0, 10.0, 100.0])
def test_one_key_has_no_gradient(dtype: torch.dtype, axis: str, amplitude: float) -> None:
    q, k, v = (amplitude * random(3, 1, 1, 1, 2, 16, dtype=dtype)).unbind()
    q.requires_grad_(), k.requires_grad_()
    out = ops.axis_attention(q, k, v, axis)
    dq, dk = torch.autograd.grad(out, (q, k), random(*out.shape, dtype=dtype, seed=1))
    assert not dq.any() and not dk.any()


def test_forward_mode_takes_the_oracle() -> None:
    x, g = random(2, 3, 4, 16), random(2, 16, seed=1)
    y = random(2, 3, 4, 16, seed=2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, y)
        out = ops.norm_modulate(dual, g, g)
        assert torch.autograd.forward_ad.unpack_dual(out).tangent.any()
        with use_backend("reference"):
            assert torch.autograd.forward_ad.unpack_dual(ops.norm_modulate(dual, g, g)).tangent.any()
        with use_backend("cpu"), pytest.raises(RuntimeError, match="no forward-mode derivative"):
            ops.norm_modulate(dual, g, g)
    qkv, v = random(1, 4, 5, 3, 2, 8), random(1, 4, 5, 3, 2, 8, seed=1)
    got = torch.func.jvp(lambda z: ops.axis_attention_qkv(z, "space"), (qkv,), (v,))[1]
    want = torch.func.jvp(lambda z: R.axis_attention_qkv_ref(z, "space"), (qkv,), (v,))[1]
    assert torch.equal(got, want) and got.any()


def test_empty_batch() -> None:
    assert ops.axis_attention_qkv(random(0, 3, 4, 3, 2, 8), "space").shape == (0, 3, 4, 16)


def test_autocast_gives_its_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.axis_attention_qkv(random(1, 3, 4, 3, 2, 8), "space").dtype == torch.bfloat16


BAD = {
    "axis": (lambda q: ops.axis_attention(q, q, q, "both"), "axis must be"),
    "K": (lambda q: ops.axis_attention(q[..., :6], q[..., :6], q[..., :6], "space"), "multiple of 8 up to 128"),
    "rope in space": (lambda q: ops.axis_attention(q, q, q, "space", rope_tables(3, 8)), "rope must be None"),
    "rope shape": (lambda q: ops.axis_attention(q, q, q, "time", rope_tables(4, 8)), "rope must be two"),
    "keys in time": (lambda q: ops.axis_attention(q, q[:, :, :2], q[:, :, :2], "time"), "k must match q"),
    "mask": (lambda q: ops.axis_attention(q, q, q, "space", key_mask=torch.ones(2, 3).bool()), "key_mask must be bool"),
    "v": (lambda q: ops.axis_attention(q, q, q[:, :, :2], "space"), "v must have k's shape"),
    "rank": (lambda q: ops.axis_attention(q[0], q[0], q[0], "space"), r"q must be \(B, F, N, H, K\)"),
    "scale": (
        lambda q: ops.axis_attention(q, q, q, "space", scale=-0.1),
        "scale must be at least 0, and finite, got -0.1",
    ),
    "scale nan": (lambda q: ops.axis_attention(q, q, q, "space", scale=float("nan")), "scale must be at least 0"),
    "stride": (lambda q: ops.axis_attention(q[..., ::2], q, q, "space"), "q must have a contiguous last dim"),
    "K too wide": (lambda q: ops.axis_attention(*(random(1, 2, 3, 1, 136),) * 3, "space"), "up to 128, got K = 136"),
    "empty": (lambda q: ops.axis_attention(q[:, :, :0], q, q, "space"), "with no empty axis but B"),
    "k heads": (lambda q: ops.axis_attention(q, *(q[:, :, :, :1],) * 2, "space"), "k must match q"),
    "k frames": (lambda q: ops.axis_attention(q, *(q[:, :2],) * 2, "space"), "k must match q"),
    "k device": (lambda q: ops.axis_attention(q, q.to("meta"), q, "space"), "k must be on cpu as x is, got meta"),
    "mask kind": (lambda q: ops.axis_attention(q, q, q, "space", key_mask=torch.ones(2, 4)), "key_mask must be bool"),
    "mask of time": (lambda q: ops.axis_attention(q, q, q, "time", key_mask=torch.ones(2, 4) > 0), r"bool \(2, 3\)"),
    "rope kind": (
        lambda q: ops.axis_attention(q, q, q, "time", (torch.ones(3, 4).half(),) * 2),
        "rope must be two fp32",
    ),
    "packed": (lambda q: ops.axis_attention_qkv(q, "space"), "qkv must be"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(random(2, 3, 4, 2, 8))


def test_mixed_dtypes_are_refused() -> None:
    q = random(2, 3, 4, 2, 8)
    with pytest.raises(TypeError, match="k must be"):
        ops.axis_attention(q, q.half(), q, "space")
