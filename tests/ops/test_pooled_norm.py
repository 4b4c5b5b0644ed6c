"""pooled_norm against the oracle: values, gradients, layouts, groups, bytes, compile, opcheck, refusals, its block."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import ops, testing, use_backend
from latte_fast.models.flexdit.block import PoolBlock
from latte_fast.models.latte.block import BlockContext
from latte_fast.modules.residual import Pending
from latte_fast.reference import functional as R
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.counting import Count
from tests.helpers.guards import poisoned_empty, require_backend

AXES: dict[str, tuple] = {
    "size": ((2, 3, 5, 24), (1, 1, 1, 8), (2, 1, 17, 72), (1, 18, 2, 33), (3, 2, 7, 65)),
    "axis": ("space", "time"),
    "groups": ("one", "batch", "means"),
    "layout": ("contiguous", "sliced", "transposed", "expanded"),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "residual": ("same", "fp32"),
}
NAMES = ("h", "dx", "dshift", "dscale")


def inputs(cell: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(cell_id(cell)))
    draw: Callable[..., Tensor] = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    b, f, n, d = cell["size"]
    x = {
        "contiguous": lambda: draw(b, f, n, d),
        "sliced": lambda: draw(b, f + 1, n, d)[:, 1:],
        "transposed": lambda: draw(b, n, f, d).transpose(1, 2),
        "expanded": lambda: draw(b, 1, n, d).expand(b, f, n, d),
    }[cell["layout"]]()
    wide = cell["dtype"] if cell["residual"] == "same" else torch.promote_types(cell["dtype"], torch.float32)
    groups = {"one": 1, "batch": b, "means": b * (f if cell["axis"] == "space" else 1)}[cell["groups"]]
    shift, scale = draw(groups, 6 * d).to(cell["dtype"]).chunk(6, dim=-1)[2:4]
    return x.to(wide).requires_grad_(), shift.requires_grad_(), scale.requires_grad_()


@pytest.mark.parametrize("cell", pairwise(AXES), ids=cell_id)
def test_values_and_gradients(cell: dict[str, Any]) -> None:
    args, axis = inputs(cell), cell["axis"]
    require_backend("pooled_norm", *args, axis, 1e-6, args[0].dtype)
    with poisoned_empty():
        testing.compare(lambda *a: ops.pooled_norm(*a, axis), lambda *a: R.pooled_norm_ref(*a, axis), args, NAMES)


CELL = {"size": (2, 3, 4, 16), "axis": "time", "groups": "batch", "layout": "contiguous", "residual": "same"}


@pytest.mark.parametrize("axis", ["space", "time"])
def test_gradcheck_and_opcheck(axis: str) -> None:
    args = inputs(CELL | {"axis": axis, "groups": "means", "dtype": torch.float64})
    with use_backend("cpu"):
        assert torch.autograd.gradcheck(lambda *a: ops.pooled_norm(*a, axis), args)
    args = inputs(CELL | {"axis": axis, "dtype": torch.float32})
    backend = require_backend("pooled_norm", *args, axis, 1e-6, torch.float32)
    torch.library.opcheck(torch.ops.latte_fast.pooled_norm.default, (*args, axis, 1e-6, torch.float32, backend))


def test_eps_and_dtype() -> None:
    x, shift, scale = inputs(CELL | {"dtype": torch.bfloat16, "residual": "fp32"})
    out = [ops.pooled_norm(x, shift, scale, "space", 0.5, out_dtype=dtype) for dtype in (None, torch.bfloat16)]
    assert [o.dtype for o in out] == [torch.float32, torch.bfloat16]
    want = R.pooled_norm_ref(x.double(), shift.double(), scale.double(), "space", 0.5)
    assert testing.relative_error(out[0], want) <= 1e-6
    assert testing.relative_error(ops.pooled_norm(x, shift, scale, "space"), want) > 1e-2


@pytest.mark.parametrize("axis", ["space", "time"])
def test_one_read_and_the_means_written(axis: str) -> None:
    """What a call allocates is its result; no thread's share depends on the number of threads."""
    x, shift, scale = (t.detach() for t in inputs(CELL | {"size": (2, 16, 40, 64), "dtype": torch.bfloat16}))
    require_backend("pooled_norm", x, shift, scale, axis, 1e-6, x.dtype)
    with Count() as count:
        h = ops.pooled_norm(x, shift, scale, axis)
    assert h.shape == ((2, 16, 1, 64) if axis == "space" else (2, 1, 40, 64)) and h.is_contiguous()
    assert count.bytes == h.numel() * 2 and not count.copies
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(ops.pooled_norm(x, shift, scale, axis), h)
    finally:
        torch.set_num_threads(before)


def test_empty_batch_and_compile() -> None:
    empty = torch.zeros(0, 3, 4, 16, requires_grad=True)
    nothing = ops.pooled_norm(empty, empty.new_zeros(0, 16), empty.new_zeros(0, 16), "time")
    nothing.sum().backward()
    assert nothing.shape == (0, 1, 4, 16) and empty.grad.shape == empty.shape
    args = inputs(CELL | {"dtype": torch.float32})
    call = torch.compile(lambda *a: ops.pooled_norm(*a, "time"), fullgraph=True, backend="aot_eager")
    assert torch.equal(call(*args), ops.pooled_norm(*args, "time"))


def block_inputs() -> tuple[PoolBlock, Tensor, Pending, Tensor]:
    torch.manual_seed(0)
    block = testing.refill(PoolBlock(16, 2, 4.0))
    x, y, gate, c = torch.randn(2, 3, 4, 16), torch.randn(2, 3, 4, 16), torch.randn(2, 16), torch.randn(2, 16)
    return block, x, Pending(y, gate, None), c


@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("what", ["nothing", "residual", "bias", "position", "hook"])
def test_its_block_never_writes_normed_rows(axis: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it where that would cost passes, or where hooks see the tokens; the result is the same."""
    block, x, added, c = block_inputs()
    pending: Pending | None = added if what in ("residual", "bias") else None
    if what == "bias":
        pending = added._replace(y_bias=torch.randn(16))
    context = BlockContext(axis, pos=torch.randn(3, 1, 16) if what == "position" else None, whole=True)
    seen: list[torch.Size] = []
    if what == "hook":
        block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    got = block(x, pending, c, context)
    want = super(PoolBlock, block).forward(x, pending, c, context)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    calls: list[int] = []
    real = ops.pooled_norm
    monkeypatch.setattr(ops, "pooled_norm", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    block(x, pending, c, context)
    assert len(calls) == (what in ("nothing", "residual"))
    assert seen == [x.shape] * 3 if what == "hook" else not seen


X, V = torch.zeros(2, 3, 4, 8), torch.zeros(2, 8)
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: ops.pooled_norm(X[0], V, V, "space"), ValueError, r"x must be \(B, F, N, D\), got \(3, 4, 8\)"),
    (lambda: ops.pooled_norm(X, V, V, "both"), ValueError, "axis must be 'space' or 'time', got 'both'"),
    (lambda: ops.pooled_norm(X, V[:, :4], V, "space"), ValueError, r"shift must be \(G, D\) with D = 8"),
    (lambda: ops.pooled_norm(X, *[torch.zeros(12, 8)] * 2, "space"), ValueError, "dividing the 6 frames, got G = 12"),
    (lambda: ops.pooled_norm(X, *[torch.zeros(6, 8)] * 2, "time"), ValueError, "dividing the 2 clips, got G = 6"),
    (lambda: ops.pooled_norm(X, V.half(), V, "space"), TypeError, "shift must have scale's dtype"),
    (lambda: ops.pooled_norm(X, V, V, "time", -1.0), ValueError, "eps must be at least 0"),
    (lambda: ops.pooled_norm(X, V, V, "time", out_dtype=torch.half), TypeError, "out_dtype must be torch.float32"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
