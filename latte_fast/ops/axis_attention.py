"""axis_attention: softmax attention over space or time, q, k, v read where the linear layers left them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.kernels import library_choice
from latte_fast.kernels.attention_libraries import LIBRARIES, PROBES
from latte_fast.ops.attention_checks import checked_scale
from latte_fast.ops.checks import check_tensor
from latte_fast.ops.registration import KernelOp, call_directly, records
from latte_fast.ops.sizes import Sizes
from latte_fast.reference.functional import Rope, axis_attention_ref

_OP, _PACKED = "axis_attention", "axis_attention_qkv"


def axis_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v over one axis -> (B, F, Nq, H*K).

    Args:
        q: (B, F, Nq, H, K), any strides but the last; K a multiple of 8 up to 128.
        k: (B, F, Nk, H, K).
        v: as k.
        axis: "space" attends over Nk inside a frame; "time" over F at a patch position, with Nq = Nk.
        rope: (cos, sin), each (F, K/2) fp32, turning the pairs (2i, 2i+1) of q and k; time axis only.
        scale: by default K**-0.5.
        key_mask: bool, True where a key counts, (B, Nk) for space and (B, F) for time; a query with none gives 0.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(_OP, name, x)
    auto = backends.autocast_dtype(q.device.type)
    if auto is not None and q.dtype != torch.float64:
        q, k, v = q.to(auto), k.to(auto), v.to(auto)
    return _attend(_OP, None, q, k, v, axis, rope, scale, key_mask)


def axis_attention_qkv(qkv: Tensor, axis: str, rope: Rope | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v over one axis -> (B, F, N, H*K); the backward writes one packed gradient.

    Args:
        qkv: (B, F, N, 3, H, K) as one linear layer leaves it, any strides but the last.
        axis: "space" attends over N inside a frame, "time" over F at a patch position.
        rope: (cos, sin), each (F, K/2) fp32, turning the pairs (2i, 2i+1) of q and k; time axis only.
        scale: by default K**-0.5.
    """
    check_tensor(_PACKED, "qkv", qkv)
    if qkv.dim() != 6 or qkv.shape[3] != 3:
        raise ValueError(f"{_PACKED}: qkv must be (B, F, N, 3, H, K), got {tuple(qkv.shape)}")
    auto = backends.autocast_dtype(qkv.device.type)
    if auto is not None and qkv.dtype != torch.float64:
        qkv = qkv.to(auto)
    q, k, v = qkv.unbind(3)
    return _attend(_PACKED, qkv, q, k, v, axis, rope, scale, None)


def qkv_bias_backend(h: Tensor, heads: int, width: int, axis: str, rope: Rope | None) -> str | None:
    """The backend whose backward, for q, k and v of h (B, F, N, D), gives their bias its gradient; None for others."""
    dtype = h.dtype if h.dtype == torch.float64 else backends.autocast_dtype(h.device.type) or h.dtype
    # one value, of which every backend sees q, k and v made: their shape, dtype and device are all that it asks for
    one = h.detach()[0, 0, 0, 0] if dtype == h.dtype else h.new_empty((), dtype=dtype)
    one = one.expand(*h.shape[:3], heads, width)
    backend = choose(one, one, one, axis, rope, width**-0.5, None, grad=True)
    return backend if backend in _PACKED_KERNELS.ours else None


def axis_attention_of_linear(backend: str, qkv: Tensor, bias: Tensor, axis: str, rope: Rope | None) -> Tensor:
    """axis_attention_qkv of a linear layer's qkv = h w^T + bias, which has added the bias as a constant.

    The bias's gradient, the sum of qkv's over all tokens, comes from the attention's backward, without a pass over it.

    Args:
        backend: what `qkv_bias_backend` found.
        qkv: (B, F, N, 3, H, K).
        bias: (3*H*K,).
        axis: "space" or "time".
        rope: as in axis_attention_qkv.
    """
    q, k, v = qkv.unbind(3)
    scale = checked_scale(_PACKED, q, k, v, axis, rope, None, None)
    cos, sin = rope or (None, None)
    return _PACKED_KERNELS.run(backend, qkv, bias, axis, cos, sin, scale, True)[0]


def _attend(op: str, qkv: Tensor | None, q: Tensor, k: Tensor, v: Tensor, axis: str, *extras: Any) -> Tensor:
    """Either op on q, k and v, which are views of qkv where that is given."""
    rope, scale, key_mask = extras
    scale = checked_scale(op, q, k, v, axis, rope, scale, key_mask)
    backend = choose(q, k, v, axis, rope, scale, key_mask)
    if scale == 0 and not backends.is_forced(_OP):
        backend = "reference"  # whose infinite scores times 0 are no numbers, as torch has it
    if backend == "reference":
        return axis_attention_ref(q, k, v, axis, rope, scale, key_mask)
    if backend in LIBRARIES:
        return LIBRARIES[backend](q, k, v, axis, scale)
    cos, sin = rope or (None, None)
    if call_directly(*((q, k, v) if qkv is None else (qkv,))):
        return _KERNELS.direct(backend, q, k, v, axis, cos, sin, scale, key_mask, False)[0]
    if qkv is None:
        return _KERNELS.run(backend, q, k, v, axis, cos, sin, scale, key_mask, records(q, k, v))[0]
    return _PACKED_KERNELS.run(backend, qkv, None, axis, cos, sin, scale, records(qkv))[0]


def choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None,
    scale: float,
    key_mask: Tensor | None,
    grad: bool | None = None,
) -> str:
    """The backend that serves a call: as `backends.choose`, but for the shapes that this GPU's table gives away.

    grad says whether a gradient is asked for where the tensors do not tell.
    """
    args = (q, k, v, axis, rope, scale, key_mask)
    backend = backends.choose(_OP, *args)
    # sizes may be symbols while compiling, and no library's backward sums in a fixed order
    unfit = torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled()
    if backend != "triton" or backends.is_forced(_OP) or unfit:
        return backend
    grad = records(q, k, v) if grad is None else grad
    faster = library_choice.attention_backend(q, k, axis, grad) or backend
    # a library may be gone since it was measured
    return faster if backends.why_not(_OP, faster, *args) is None else backend


def _rope(cos: Tensor | None, sin: Tensor | None) -> Rope | None:
    return None if cos is None or sin is None else (cos, sin)


def _fake(q: Tensor, need_lse: bool) -> tuple[Tensor, Tensor]:
    """out (B, F, Nq, H*K) and lse of q (B, F, Nq, H, K)."""
    out = q.new_empty(*q.shape[:3], q.shape[3] * q.shape[4])
    return out, q.new_empty(q.shape[:4] if need_lse else (0,), dtype=torch.float32)


def _flops(q: Sequence[int], k: Sequence[int], axis: str) -> int:
    """q (B, F, Nq, H, K), k (B, F, Nk, H, K): two products of 2 * queries * keys * K."""
    return 4 * math.prod(q) * (k[2] if axis == "space" else k[1])


def _launch_backward(launcher: Callable, dout: Tensor, *args: Any) -> tuple[Tensor, ...]:
    q, k, v, out, lse, axis, cos, sin, scale, key_mask = args
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    launcher(dout.contiguous(), q, k, v, out, lse, axis, _rope(cos, sin), scale, key_mask, *grads)
    return grads


def _launch_packed_backward(launcher: Callable, dout: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    qkv, bias, out, lse, axis, cos, sin, scale = args
    grad, rope = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device), _rope(cos, sin)
    dbias = None if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    launcher(dout.contiguous(), *qkv.unbind(3), out, lse, axis, rope, scale, None, *grad.unbind(3), dbias)
    return grad, qkv.new_empty(0) if dbias is None else dbias


def _example(sizes: Sizes) -> dict[str, Any]:
    return dict(zip("qkv", sizes.qkv().unbind(3), strict=True)) | {"axis": "space"}


def _more_examples(sizes: Sizes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Attention over space at 512 px, and a clip's queries against its caption at both sizes."""
    large = replace(sizes, clips=max(1, sizes.clips // 4), patches=4 * sizes.patches)
    yield "space at 512 px", _example(large)
    for name, s in (("text", sizes), ("text at 512 px", large)):
        q, k, v = (s.per_head(s.clips, 1, n) for n in (s.frames * s.patches, s.words, s.words))
        yield name, {"q": q, "k": k, "v": v, "axis": "space"}


_KERNELS = KernelOp(
    _OP,
    "(Tensor q, Tensor k, Tensor v, str axis, Tensor? cos, Tensor? sin, float scale, Tensor? key_mask, bool need_lse, "
    "str backend) -> (Tensor out, Tensor lse)",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, str axis, Tensor? cos, Tensor? sin, "
    "float scale, Tensor? key_mask, str backend) -> (Tensor dq, Tensor dk, Tensor dv)",
    fake=lambda q, k, v, axis, cos, sin, scale, key_mask, need_lse: _fake(q, need_lse),
    launch=lambda launcher, q, k, v, axis, cos, sin, *rest: launcher(q, k, v, axis, _rope(cos, sin), *rest),
    launch_backward=_launch_backward,
    libraries=PROBES,
    flops=lambda q, k, v, axis, *rest: _flops(q, k, axis),
    # the scores that a backward recomputes are the kernels' choice, not needed work
    backward_flops=lambda dout, q, k, v, out, lse, axis, *rest: 2 * _flops(q, k, axis),
    example=_example,
    more_examples=_more_examples,
)
_PACKED_KERNELS = KernelOp(
    _PACKED,
    # qkv includes the bias, which is given for its gradient alone
    "(Tensor qkv, Tensor? bias, str axis, Tensor? cos, Tensor? sin, float scale, bool need_lse, str backend) -> "
    "(Tensor out, Tensor lse)",
    "(Tensor dout, Tensor qkv, Tensor? bias, Tensor out, Tensor lse, str axis, Tensor? cos, Tensor? sin, float scale, "
    "str backend) -> (Tensor dqkv, Tensor dbias)",
    kernels=_OP,
    fake=lambda qkv, bias, axis, cos, sin, scale, need_lse: _fake(qkv[:, :, :, 0], need_lse),
    launch=lambda launcher, qkv, bias, axis, cos, sin, scale, need_lse: launcher(
        *qkv.unbind(3), axis, _rope(cos, sin), scale, None, need_lse
    ),
    launch_backward=_launch_packed_backward,
    flops=lambda qkv, bias, axis, *rest: _flops(qkv[:3] + qkv[4:], qkv[:3] + qkv[4:], axis),
    backward_flops=lambda dout, qkv, bias, out, lse, axis, *rest: (
        2 * _flops(qkv[:3] + qkv[4:], qkv[:3] + qkv[4:], axis)
    ),
    example=lambda sizes: {"qkv": sizes.qkv(), "axis": "time"},
)
