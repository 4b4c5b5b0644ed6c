"""Each op at the presets' shapes, clips of 16 x 256 tokens, against eager torch, torch.compile and SDPA."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders import FRAMES, SIDE, WIDTHS, compiled, device, gated, libraries, no_grad, op_clips
from latte_fast import backends, ops, testing
from latte_fast._ext import bias_gelu
from latte_fast._ext.axis_attention import axis_attention_fwd
from latte_fast.ops.registration import REGISTRY
from latte_fast.ops.sizes import Sizes
from latte_fast.reference import functional as R

PATCHES = (SIDE // 2) ** 2


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, device=device()).bfloat16()


def gate(fn: Callable, ref: Callable, args: tuple) -> Callable[[], None]:
    """Returns a check by the tests' criterion on these very shapes."""

    def check() -> None:
        with torch.no_grad():
            got, same = fn(*args), ref(*args)
            oracle = ref(*(a.float() if isinstance(a, Tensor) else a for a in args))
        for row in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, same, oracle)), strict=True):
            testing.assert_no_worse_than_torch("output", *row)

    return check


def forward_case(op: str, size: str) -> tuple[Callable, Callable, tuple]:
    (d, heads), clips = WIDTHS[size], op_clips()
    if op in REGISTRY:
        sizes = Sizes(clips, FRAMES, PATCHES, d, heads, device(), torch.bfloat16)
        return getattr(ops, op), getattr(R, f"{op}_ref"), tuple(REGISTRY[op].example(sizes).values())
    axis = op.removeprefix("attention over ")
    qkv = rows(clips, FRAMES, PATCHES, 3, heads, d // heads)
    return ops.axis_attention_qkv, R.axis_attention_qkv_ref, (qkv, axis)


# a new op without matrix products races without a line here
OPS = (*(op.name for op in REGISTRY.values() if op.elementwise), "attention over space", "attention over time")


def work(op: str, args: tuple, outs: tuple) -> dict[str, int]:
    """Returns the bytes that a forward has to move and the operations it has to do."""
    tensors = [a for a in (*args, *outs) if isinstance(a, Tensor)]
    moved = sum(a.numel() * a.element_size() for a in tensors)
    if op in REGISTRY:
        return {"bytes": moved, "flops": REGISTRY[op].elementwise * max(a.numel() for a in tensors)}
    length = PATCHES if op.endswith("space") else FRAMES
    return {"bytes": moved, "flops": 4 * length * outs[0].numel()}


def title(op: str, size: str, what: str) -> str:
    clips = "" if op_clips() == 1 else f", {op_clips()} clips"
    return f"{op}, {size}/2, bf16{clips}, {what}"


def layout_copies(qkv: Tensor, axis: str) -> Tensor:
    """Runs the oracle's attention with the copies that upstream's layouts need: (b n) f d and back."""
    if axis == "time":
        qkv = qkv.transpose(1, 2).contiguous().transpose(1, 2)
        return R.axis_attention_qkv_ref(qkv, axis).transpose(1, 2).contiguous()
    return R.axis_attention_qkv_ref(qkv, axis).contiguous()


def into_reused_buffers(u: Tensor, b: Tensor) -> dict[str, Callable]:
    """Returns GELU into a reused buffer, so that no new memory is mapped: torch's without the bias, ours with it."""
    out = torch.empty_like(u)
    found: dict[str, Callable] = {
        "torch eager": no_grad(lambda: torch.ops.aten.gelu.out(u, approximate="tanh", out=out)),
    }
    if backends.choose("bias_gelu", u, b) == "cpu":
        found["ours"] = no_grad(lambda: bias_gelu.bias_gelu_fwd(u, b, out))
    return found


def attention_into_reused_buffer(qkv: Tensor, axis: str) -> dict[str, Callable]:
    """Returns our attention into a reused buffer; torch's always allocates its result."""
    q, k, v = qkv.unbind(3)
    scale = q.shape[-1] ** -0.5
    if backends.choose("axis_attention", q, k, v, axis, None, scale, None) != "cpu":
        return {}
    out = qkv.new_empty(*q.shape[:3], q.shape[3] * q.shape[4])
    return {"ours": no_grad(lambda: axis_attention_fwd(q, k, v, axis, None, scale, None, False, out=out))}


def folded_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The norm of one clip with its modulation as torch's own affine: (D,) weights serve one group of rows alone."""
    return F.layer_norm(x, x.shape[-1:], 1 + scale[0], shift[0], 1e-6)


def other_norms(x: Tensor, shift: Tensor, scale: Tensor) -> dict[str, Callable | str]:
    """comfy-kitchen's fused norm on a GPU that has it installed, checked before it is timed."""
    name = "comfy-kitchen adaln"
    if not torch.cuda.is_available():
        return {}
    try:
        adaln = importlib.import_module("comfy_kitchen").adaln
    except (ImportError, AttributeError, OSError) as error:
        return {name: f"not installed: {error}"}
    rows = x.flatten(1, -2)

    def run(*args: Tensor) -> Tensor:
        return adaln(rows, scale[:, None], shift[:, None])

    return {name: gated(gate(run, R.norm_modulate_ref, (rows, shift, scale)), no_grad(run))}


@pytest.mark.parametrize("size", [pytest.param("B", marks=pytest.mark.full), "XL"])
def test_norm_of_one_clip(size: str, compare: Any) -> None:
    """As many rows as elsewhere under one modulation, which torch's own layer norm takes as its weights."""
    d, clips = WIDTHS[size][0], op_clips()
    x, (shift, scale) = rows(1, clips * FRAMES, PATCHES, d), rows(1, 6 * d).chunk(6, dim=-1)[:2]
    args, jit = (x, shift, scale), compiled(R.norm_modulate_ref)
    contenders = {
        "ours": no_grad(lambda: ops.norm_modulate(*args)),
        "F.layer_norm(weight=1 + scale)": no_grad(lambda: folded_norm(*args)),
        "torch.compile": no_grad(lambda: jit(*args)),
    }
    check = gate(ops.norm_modulate, R.norm_modulate_ref, args)
    moved = {"bytes": 4 * x.numel(), "flops": 8 * x.numel()}
    compare(title("norm_modulate", size, "forward, one modulation"), contenders, check, 2.0, on_device=True, **moved)


@pytest.mark.parametrize("size", [pytest.param("B", marks=pytest.mark.quick), "XL"])
@pytest.mark.parametrize("op", OPS)
def test_forward(op: str, size: str, compare: Any) -> None:
    torch.manual_seed(0)
    fn, ref, args = forward_case(op, size)
    contenders: dict[str, Any] = {"ours": no_grad(lambda: fn(*args)), "torch eager": no_grad(lambda: ref(*args))}
    if op.startswith("attention"):
        contenders["torch eager"] = no_grad(lambda: layout_copies(*args))
        contenders |= libraries(*args)
        contenders |= attention_into_reused_buffer(*args)
    if op == "bias_gelu":
        contenders |= into_reused_buffers(*args)
    if op == "norm_modulate":
        contenders |= other_norms(*args)
    jit = compiled(ref)
    contenders["torch.compile"] = no_grad(lambda: jit(*args))
    with torch.no_grad():
        outs = fn(*args)
    needed = work(op, args, outs if isinstance(outs, tuple) else (outs,))
    compare(title(op, size, "forward"), contenders, gate(fn, ref, args), seconds=2.0, on_device=True, **needed)


@pytest.mark.parametrize("size", ["B", "XL"])
@pytest.mark.parametrize("op", OPS)
def test_forward_and_backward(op: str, size: str, compare: Any) -> None:
    torch.manual_seed(0)
    fn, ref, args = forward_case(op, size)
    args = tuple(a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in args)
    leaves = [a for a in args if isinstance(a, Tensor)]
    with torch.no_grad():
        shapes = fn(*args)
    shapes = shapes if isinstance(shapes, tuple) else (shapes,)
    dout = [torch.randn_like(s) for s in shapes]

    def step(call: Callable) -> Callable[[], Any]:
        def run() -> Any:
            out = call(*args)
            return torch.autograd.grad(out if isinstance(out, tuple) else (out,), leaves, dout)

        return run

    def check() -> None:
        wide = [a.detach().float().requires_grad_() if isinstance(a, Tensor) else a for a in args]
        exact = ref(*wide)
        exact = exact if isinstance(exact, tuple) else (exact,)
        oracle = torch.autograd.grad(exact, [a for a in wide if isinstance(a, Tensor)], [d.float() for d in dout])
        for row in zip(step(fn)(), step(ref)(), oracle, strict=True):
            testing.assert_no_worse_than_torch("gradient", *row)

    contenders = {"ours": step(fn), "torch eager": step(ref), "torch.compile": step(compiled(ref))}
    compare(title(op, size, "forward and backward"), contenders, check, seconds=2.0, on_device=True)
