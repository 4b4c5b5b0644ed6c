"""norm_modulate, gate_residual, gate_residual_norm_modulate and bias_gelu on whatever backend serves this machine."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from latte_fast import ops, testing, use_backend
from latte_fast.ops import registration
from latte_fast.reference import functional as R
from tests.helpers.guards import require_backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ids = lambda v: str(v).removeprefix("torch.")  # noqa: E731


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    """x (2, 3, 5, 24) as it comes: contiguous, non-mergeable, transposed, expanded."""
    return {
        "contiguous": rows(2, 3, 5, 24, dtype=dtype),
        "sliced": rows(2, 4, 5, 24, dtype=dtype).detach()[:, :3].requires_grad_(),
        "transposed": rows(2, 5, 3, 24, dtype=dtype).detach().transpose(1, 2).requires_grad_(),
        "expanded": rows(2, 1, 5, 24, dtype=dtype).detach().expand(2, 3, 5, 24).requires_grad_(),
    }


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("groups", [2, 6])
def test_norm_modulate_layouts(layout: str, dtype: torch.dtype, groups: int) -> None:
    x = layouts(dtype)[layout]
    shift, scale = rows(groups, 24, dtype=dtype, seed=1), rows(groups, 24, dtype=dtype, seed=2)
    require_backend("norm_modulate", x, shift, scale, 1e-6, dtype)
    testing.compare(ops.norm_modulate, R.norm_modulate_ref, (x, shift, scale), ["h", "dx", "dshift", "dscale"])


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("residual", ["same", "fp32"])
@pytest.mark.parametrize("extras", [(False, False), (True, True), (True, False), (False, True)], ids=str)
def test_gate_residual_norm_modulate_extras(dtype: torch.dtype, residual: str, extras: tuple[bool, bool]) -> None:
    x = rows(2, 3, 5, 24, dtype=dtype if residual == "same" else torch.float32)
    y = rows(2, 3, 5, 24, dtype=dtype, seed=1)
    six = rows(2, 6 * 24, dtype=dtype, seed=2, grad=False)
    gate, shift, scale = (v.requires_grad_() for v in six.chunk(6, dim=-1)[:3])
    require_backend("gate_residual_norm_modulate", x, y, gate, shift, scale, 1e-6, None, None, dtype)
    bias = rows(24, dtype=dtype, seed=3) if extras[0] else None
    pos = rows(3, 1, 24, dtype=x.dtype, seed=4) if extras[1] else None
    names = ["x_out", "h", "dx", "dy", "dgate", "dshift", "dscale"]
    names += ["dy_bias"] * extras[0] + ["dpos"] * extras[1]

    def call(op: Callable, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, pos: Tensor):
        return op(x, y, gate, shift, scale, y_bias=bias, pos=pos)

    ref = R.gate_residual_norm_modulate_ref
    args = (x, y, gate, shift, scale, bias, pos)
    testing.compare(partial(call, ops.gate_residual_norm_modulate), partial(call, ref), args, names)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_gate_residual(dtype: torch.dtype) -> None:
    x, y, gate = rows(2, 3, 7, 24), rows(2, 3, 7, 24, dtype=dtype, seed=1), rows(6, 24, dtype=dtype, seed=2)
    require_backend("gate_residual", x, y, gate)
    testing.compare(ops.gate_residual, R.gate_residual_ref, (x, y, gate), ["out", "dx", "dy", "dgate"])


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_bias_gelu(dtype: torch.dtype) -> None:
    u, b = rows(3, 7, 24, dtype=dtype), rows(24, dtype=dtype, seed=1)
    require_backend("bias_gelu", u, b)
    testing.compare(ops.bias_gelu, R.bias_gelu_ref, (u, b), ["a", "du", "db"])


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("wide_out", [False, True])
def test_eps_and_dtype_of_the_norm(dtype: torch.dtype, wide_out: bool) -> None:
    """An eps as large as the variance, beside an fp32 residual; h in the partners' dtype or in the residual's."""
    x, y = rows(2, 3, 5, 24), rows(2, 3, 5, 24, dtype=dtype, seed=1)
    gate, shift, scale = (rows(2, 24, dtype=dtype, seed=s) for s in (2, 3, 4))
    out_dtype = torch.float32 if wide_out else dtype
    require_backend("gate_residual_norm_modulate", x, y, gate, shift, scale, 0.5, None, None, out_dtype)

    def call(op: Callable, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return op(*args, 0.5, out_dtype=None if args[0].dtype == torch.float64 else out_dtype)

    norm, fused = ops.norm_modulate, ops.gate_residual_norm_modulate
    names = ["h", "dx", "dshift", "dscale"]
    testing.compare(partial(call, norm), partial(call, R.norm_modulate_ref), (x, shift, scale), names)
    names = ["x_out", "h", "dx", "dy", "dgate", "dshift", "dscale"]
    args = (x, y, gate, shift, scale)
    testing.compare(partial(call, fused), partial(call, R.gate_residual_norm_modulate_ref), args, names)
    assert norm(x, shift, scale).dtype == torch.float32 and fused(*args)[1].dtype == dtype  # by default


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "sliced": lambda v: v.repeat_interleave(2)[::2],
    "expanded": lambda v: v[:1].expand(len(v)),
    "reversed twice": lambda v: torch.stack([v, -v], 1)[:, 0],
}


@pytest.mark.parametrize("how", list(STRIDED))
@pytest.mark.parametrize("grad", [True, False])
def test_vectors_of_any_stride(how: str, grad: bool) -> None:
    x, y, g = rows(2, 3, 5, 24, grad=grad), rows(2, 3, 5, 24, seed=1, grad=grad), rows(2, 24, seed=2, grad=grad)
    v = STRIDED[how](rows(24, seed=3, grad=False)).requires_grad_(grad)
    pos = torch.stack([rows(3, 1, 24, seed=4, grad=False), x.detach()[0, :, :1]], -1)[..., 0].requires_grad_(grad)
    assert v.stride() != (1,) and pos.stride(-1) != 1
    testing.compare(ops.bias_gelu, R.bias_gelu_ref, (x, v), ["a", *["du", "db"] * grad])

    def call(op: Callable, *args: Tensor) -> tuple[Tensor, Tensor]:
        return op(*args[:5], y_bias=args[5], pos=args[6])

    names = ["x_out", "h", *["dx", "dy", "dgate", "dshift", "dscale", "dy_bias", "dpos"] * grad]
    ours, ref = ops.gate_residual_norm_modulate, R.gate_residual_norm_modulate_ref
    testing.compare(partial(call, ours), partial(call, ref), (x, y, g, g.clone(), g.clone(), v, pos), names)


def calls(dtype: torch.dtype = torch.float32) -> dict[str, tuple[Callable, tuple]]:
    x, y = rows(2, 3, 4, 16, dtype=dtype), rows(2, 3, 4, 16, dtype=dtype, seed=1)
    gate, shift, scale = (rows(2, 16, dtype=dtype, seed=s) for s in (2, 3, 4))
    return {
        "norm_modulate": (ops.norm_modulate, (x, shift, scale)),
        "gate_residual": (ops.gate_residual, (x, y, gate)),
        "gate_residual_norm_modulate": (ops.gate_residual_norm_modulate, (x, y, gate, shift, scale)),
        "bias_gelu": (ops.bias_gelu, (x, gate[0])),
    }


PROBE_TAIL = {"norm_modulate": (1e-6, torch.float32), "gate_residual_norm_modulate": (1e-6, None, None, torch.float32)}


@pytest.mark.parametrize("op", list(calls()))
def test_compile_fullgraph(op: str) -> None:
    fn, args = calls()[op]
    require_backend(op, *args, *PROBE_TAIL.get(op, ()))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: fn(*a), fullgraph=True, backend="aot_eager")
    plain, same = fn(*args), compiled(*args)
    plain, same = ([out] if isinstance(out, Tensor) else out for out in (plain, same))
    dout = [torch.randn_like(p) for p in plain]
    for a, b in zip(plain, same, strict=True):
        assert torch.equal(a, b)
    leaves = [a for a in args if a.is_leaf]
    for a, b in zip(torch.autograd.grad(plain, leaves, dout), torch.autograd.grad(same, leaves, dout), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", list(calls()))
def test_opcheck(op: str) -> None:
    _, args = calls()[op]
    backend = require_backend(op, *args, *PROBE_TAIL.get(op, ()))
    full = (*args, *PROBE_TAIL.get(op, ()), backend)
    torch.library.opcheck(getattr(torch.ops.latte_fast, op).default, full)


@pytest.mark.parametrize("op", list(calls()))
def test_gradcheck(op: str) -> None:
    fn, args = calls(torch.float64)[op]
    tail = tuple(torch.float64 if t is torch.float32 else t for t in PROBE_TAIL.get(op, ()))
    require_backend(op, *args, *tail)
    assert torch.autograd.gradcheck(fn, [a.detach().requires_grad_() for a in args])


@pytest.mark.parametrize("op", list(calls()))
def test_second_derivative_is_refused(op: str) -> None:
    fn, args = calls()[op]
    require_backend(op, *args, *PROBE_TAIL.get(op, ()))
    out = fn(*args)
    out = out if isinstance(out, Tensor) else out[1]
    last = next(a for a in reversed(args) if a.is_leaf)
    (dx,) = torch.autograd.grad(out.square().sum(), last, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("op", list(calls()))
def test_backward_uses_the_forwards_backend(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fn, args = calls()[op]
    backend = require_backend(op, *args, *PROBE_TAIL.get(op, ()))
    seen = []
    original = registration.launchers
    monkeypatch.setattr(registration, "launchers", lambda *names: seen.append(names) or original(*names))
    with use_backend(**{op: backend}):
        out = fn(*args)
    seen.clear()  # probes ask too
    out = out if isinstance(out, Tensor) else out[1]
    out.backward(torch.randn_like(out))  # outside the `with`
    assert seen == [(op, backend)]


EVERY = (torch.float64, *DTYPES)


@pytest.mark.parametrize("auto", [torch.bfloat16, torch.float16], ids=ids)
@pytest.mark.parametrize("partner", EVERY, ids=ids)
@pytest.mark.parametrize("residual", EVERY, ids=ids)
def test_every_pair_of_dtypes_under_autocast(residual: torch.dtype, partner: torch.dtype, auto: torch.dtype) -> None:
    """Whatever autocast leaves beside a residual, a kernel that has no such pair is not called."""
    halves = {residual, partner} & {torch.bfloat16, torch.float16}
    settled = auto if halves else partner
    x, y = rows(2, 3, 5, 24, dtype=residual), rows(2, 3, 5, 24, dtype=partner, seed=1)
    gate, shift, scale = (rows(2, 24, dtype=partner, seed=s) for s in (2, 3, 4))
    cases: list[tuple[Callable, Callable, tuple]] = [
        (ops.norm_modulate, R.norm_modulate_ref, (x, shift, scale)),
        (ops.gate_residual, R.gate_residual_ref, (x, y, gate)),
        (ops.gate_residual_norm_modulate, R.gate_residual_norm_modulate_ref, (x, y, gate, shift, scale)),
    ]
    for op, ref, args in cases:
        leaves = [args[0], *(a.detach().to(settled).requires_grad_() for a in args[1:])]  # what autocast makes of them
        if not halves and residual != partner:
            with torch.autocast("cpu", auto), pytest.raises(TypeError, match="x's dtype"):
                op(*args)
            continue
        with torch.autocast("cpu", auto):
            got = op(*args)

        def parts(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (result,) if isinstance(result, Tensor) else result

        def again(ref: Callable = ref, leaves: list[Tensor] = leaves) -> tuple[Tensor, ...]:
            return parts(ref(*leaves))

        exact = parts(ref(*(a.detach().double().requires_grad_() for a in leaves)))
        for i, row in enumerate(zip(parts(got), again(), exact, strict=True)):
            largest = partial(testing.largest_errors, again, exact)
            testing.assert_no_worse_than_torch(op.__name__, *row, reordered=lambda i=i, f=largest: f()[i])


def test_empty_batch() -> None:
    x, g = rows(0, 3, 5, 16), rows(0, 16)
    assert ops.norm_modulate(x, g, g).shape == x.shape
    assert ops.gate_residual(x, x, g).shape == x.shape
    assert ops.gate_residual_norm_modulate(x, x, g, g, g)[1].shape == x.shape
    assert ops.bias_gelu(x, rows(16)).shape == x.shape


NORM = rows(2, 3, 8), rows(2, 8), rows(2, 8)


def fused(**kwargs: object) -> object:
    return ops.gate_residual_norm_modulate(NORM[0], NORM[0], *(NORM[1],) * 3, **kwargs)  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable, type[Exception], str]] = {
    "groups": (lambda: ops.norm_modulate(rows(2, 3, 8), rows(4, 8), rows(4, 8)), ValueError, "dividing the 6 rows"),
    "width": (lambda: ops.norm_modulate(rows(2, 3, 8), rows(2, 9), rows(2, 8)), ValueError, "shift must be .*D = 8"),
    "mixed groups": (lambda: ops.norm_modulate(rows(2, 3, 8), rows(2, 8), rows(1, 8)), ValueError, "scale must have G"),
    "empty axis": (lambda: ops.norm_modulate(rows(2, 0, 8), rows(2, 8), rows(2, 8)), ValueError, "empty"),
    "last dim": (lambda: ops.norm_modulate(rows(2, 8, 3).mT, rows(2, 8), rows(2, 8)), ValueError, "last dim"),
    "integers": (lambda: ops.norm_modulate(NORM[0].int(), *NORM[1:]), TypeError, "x must be fp32"),
    "group axes": (lambda: ops.norm_modulate(NORM[0], rows(2, 8, 8), NORM[2]), ValueError, r"shift must be \(G, D\)"),
    "group vector": (lambda: ops.norm_modulate(NORM[0], rows(8), NORM[2]), ValueError, r"shift must be \(G, D\)"),
    "dtype mix": (
        lambda: ops.gate_residual(rows(2, 8, dtype=torch.bfloat16), rows(2, 8), rows(2, 8)),
        TypeError,
        "x's dtype",
    ),
    "partner mix": (
        lambda: ops.gate_residual(rows(2, 8), rows(2, 8, dtype=torch.bfloat16), rows(2, 8)),
        TypeError,
        "gate's dtype",
    ),
    "y shape": (lambda: ops.gate_residual(rows(2, 8), rows(3, 8), rows(2, 8)), ValueError, "y must have x's shape"),
    "pos": (lambda: fused(pos=rows(4, 8)), ValueError, "pos must broadcast"),
    "device": (
        lambda: ops.gate_residual(rows(2, 8), torch.empty(2, 8, device="meta"), rows(2, 8)),
        ValueError,
        "y must be on cpu",
    ),
    "out_dtype": (
        lambda: ops.norm_modulate(rows(2, 8), rows(2, 8), rows(2, 8), out_dtype=torch.float16),
        TypeError,
        "out_dtype must be torch.float32, got torch.float16",
    ),
    "no tensor": (lambda: ops.norm_modulate(1.0, *NORM[1:]), TypeError, "x must be a tensor, got float"),
    "one axis": (lambda: ops.norm_modulate(rows(8), *NORM[1:]), ValueError, r"x must be \(..., D\) with no empty axis"),
    "no group": (lambda: ops.norm_modulate(NORM[0], rows(0, 8), NORM[2]), ValueError, "6 rows, got G = 0"),
    "group kind": (lambda: ops.norm_modulate(NORM[0], 1.0, NORM[2]), TypeError, "shift must be a tensor, got float"),
    "group dim": (lambda: ops.norm_modulate(NORM[0], rows(8, 2).T, NORM[2]), ValueError, "shift must have a cont"),
    "group device": (lambda: ops.norm_modulate(*NORM[:2], rows(2, 8).to("meta")), ValueError, "scale must be on cpu"),
    "wide partner": (lambda: ops.gate_residual(rows(2, 8), *(rows(2, 8).double(),) * 2), TypeError, "x's dtype"),
    "pos kind": (lambda: fused(pos=1.0), TypeError, "pos must be a tensor, got float"),
    "pos axes": (lambda: fused(pos=rows(1, 2, 3, 8)), ValueError, "pos must broadcast"),
    "pos width": (lambda: fused(pos=rows(3, 1)), ValueError, "pos must broadcast"),
    "pos nothing": (lambda: fused(pos=torch.ones(())), ValueError, "pos must broadcast"),
    "pos device": (lambda: fused(pos=rows(3, 8).to("meta")), ValueError, "pos must be on cpu"),
    "bias device": (lambda: fused(y_bias=rows(8).to("meta")), ValueError, "y_bias must be on cpu"),
    "bias": (lambda: ops.bias_gelu(rows(2, 8), rows(9)), ValueError, "b must be"),
    "bias kind": (lambda: ops.bias_gelu(rows(2, 8), 1.0), TypeError, "b must be a tensor"),  # type: ignore[arg-type]
    "y_bias": (lambda: fused(y_bias=rows(1)), ValueError, "y_bias must be .*D = 8"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
