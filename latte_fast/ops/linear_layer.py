"""linear_layer and mlp_kept: products of linear layers by cuBLASLt's algorithms, where this GPU's table names them.

`latte-fast tune` has timed those that the library proposes for a shape (latte_fast/_ext/blas_lt.py has the ways); a
product that the table doesn't name, or that the library refuses after all, is torch's.
"""

import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from latte_fast import backends
from latte_fast._ext import blas_lt
from latte_fast._ext.blas_lt import Plan, Product
from latte_fast.kernels import library_choice
from latte_fast.ops.registration import LIBRARY, call_directly, launchers

log = logging.getLogger("latte_fast")
_PLAIN = (Tensor, torch.nn.Parameter)


def linear_layer(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x w^T + b, as torch.nn.functional.linear; x (..., D), w (M, D), b (M,)."""
    given = (x, w) if b is None else (x, w, b)
    if not _may_serve(*given):
        return F.linear(x, w, b)
    return _linear(x, w, b) if call_directly(*given) else _LINEAR(x, w, b)


def gelu_in_product(x: Tensor, w: Tensor, b: Tensor) -> Tensor | None:
    """tanh-GELU(x w^T + b) without a derivative, or None where torch has the faster product or the only one."""
    if not _may_serve(x, w, b):
        return None
    plan = _planned("forward-bias-gelu", x.flatten(0, -2), w, b)
    return None if plan is None else plan(x, w, b).unflatten(0, x.shape[:-1])


def mlp_kept(h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor | None:
    """tanh-GELU(h w1^T + b1) w2^T, with GELU in the epilogue of the product before it, which keeps what it is of.

    None where the table does not name that product, and where a mode watches the ops, as recomputation's does, which
    would have to keep what it now computes again.
    """
    if not _may_serve(h, w1, b1, w2) or torch._C._len_torch_dispatch_stack():
        return None
    rows = h.flatten(0, -2)
    if _plan(_product("forward-bias-gelu-kept", rows, w1), h.device) is None:
        return None
    return _MLP(h, w1, b1, w2)[0]


def _may_serve(*given: Tensor) -> bool:
    """Whether the table has products, and torch's own product is what these would come to."""
    x = given[0]
    return (
        blas_lt.on_cuda(x)
        and not torch.compiler.is_compiling()
        and not torch.are_deterministic_algorithms_enabled()
        and _has_products(x.device)
        and all(type(t) in _PLAIN for t in given)
        and backends.autocast_dtype(x.device.type) is None
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and x.dim() > 1
        and x.numel() > 0
        and blas_lt.why_not(*given) is None
    )


@functools.cache
def _has_products(device: torch.device) -> bool:
    return blas_lt.why_not_loaded() is None and library_choice.has_products(device, blas_lt.version(device.index))


def _product(way: str, left: Tensor, right: Tensor) -> Product:
    """The product of (x, w), (dy, w) or (dy, x)."""
    kind = blas_lt.WAYS[way].kind
    if kind == "wgrad":
        return Product(way, len(left), left.shape[1], right.shape[1], left.dtype)
    return Product(way, len(left), right.shape[0], right.shape[1], left.dtype)


@functools.cache
def _plan(product: Product, device: torch.device) -> Plan | None:
    """The plan that the table names, None where it names none or the library refuses it."""
    algorithm = library_choice.product_algorithm(product.key, device, blas_lt.version(device.index))
    if algorithm is None:
        return None
    plan = Plan(product, device.index)
    try:
        plan.take(algorithm)
    except RuntimeError as error:
        log.warning("latte_fast: cuBLASLt refuses the algorithm of %s (%s), so torch's is used", product.key, error)
        return None
    return plan


def _planned(way: str, left: Tensor, right: Tensor, *more: Tensor) -> Plan | None:
    """The plan for these; none where they don't lie as the library reads them, or a mode counts what torch is asked."""
    if torch._C._len_torch_dispatch_stack() or blas_lt.why_not(left, right, *more) is not None:
        return None
    return _plan(_product(way, left, right), left.device)


def _forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    plan = _planned("forward", x, w) if b is None else _planned("forward-bias", x, w, b)
    return F.linear(x, w, b) if plan is None else plan(x, w, b)


def _dgrad(dy: Tensor, w: Tensor) -> Tensor:
    plan = _planned("dgrad", dy, w)
    return dy @ w if plan is None else plan(dy, w)


def _wgrad(dy: Tensor, x: Tensor) -> Tensor:
    plan = _planned("wgrad", dy, x)
    return dy.t() @ x if plan is None else plan(dy, x)


def _wgrad_bias(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    plan = _planned("wgrad-bias", dy, x)
    if plan is None:
        return _wgrad(dy, x), dy.sum(0)
    db = torch.empty(dy.shape[1], dtype=dy.dtype, device=dy.device)
    return plan(dy, x, db), db


def _linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return _forward(x.flatten(0, -2), w, b).unflatten(0, x.shape[:-1])


def _save_linear(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _linear_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, w = ctx.saved_tensors
    needs = ctx.needs_input_grad
    rows, dy = x.flatten(0, -2), dy.flatten(0, -2).contiguous()
    dx = _dgrad(dy, w).view(x.shape) if needs[0] else None
    if needs[1] and needs[2]:
        return dx, *_wgrad_bias(dy, rows)
    return dx, _wgrad(dy, rows) if needs[1] else None, dy.sum(0) if needs[2] else None


def _mlp(h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, u, a): the result, the sum before the GELU and the GELU."""
    rows = h.flatten(0, -2)
    plan = _planned("forward-bias-gelu-kept", rows, w1, b1)
    if plan is None:
        u = F.linear(rows, w1, b1)
        a = F.gelu(u, approximate="tanh")
    else:
        u = torch.empty((len(rows), w1.shape[0]), dtype=h.dtype, device=h.device)
        a = plan(rows, w1, b1, u)
    return _forward(a, w2, None).view(*h.shape[:-1], w2.shape[0]), u, a


def _save_mlp(ctx: Any, inputs: tuple, output: tuple) -> None:
    h, w1, _, w2 = inputs
    _, u, a = output
    ctx.mark_non_differentiable(u, a)
    ctx.save_for_backward(h, w1, w2, u, a)


def _mlp_gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    h, w1, w2, u, a = ctx.saved_tensors
    needs = ctx.needs_input_grad
    rows, dy = h.flatten(0, -2), dy.flatten(0, -2).contiguous()
    du, db1 = _through_gelu(dy, w2, u)
    dh = _dgrad(du, w1).view(h.shape) if needs[0] else None
    dw1: Tensor | None = None
    if db1 is None:
        dw1, db1 = _wgrad_bias(du, rows)
    elif needs[1]:
        dw1 = _wgrad(du, rows)
    return dh, dw1 if needs[1] else None, db1 if needs[2] else None, _wgrad(dy, a) if needs[3] else None


def _through_gelu(dy: Tensor, w2: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
    """(du, its sum over rows or None): the gradient of the sum before the GELU, by whatever product the table names."""
    plan = _planned("dgrad-gelu-bias", dy, w2, u)
    if plan is not None:
        db1 = torch.empty(u.shape[1], dtype=u.dtype, device=u.device)
        return plan(dy, w2, db1, u), db1
    plan = _planned("dgrad-gelu", dy, w2, u)
    if plan is not None:
        return plan(dy, w2, None, u), None
    # u has its bias already
    b = u.new_zeros(u.shape[1])
    backend = backends.choose("bias_gelu", u, b)
    if backend == "reference":
        du = torch.ops.aten.gelu_backward(_dgrad(dy, w2), u, approximate="tanh")
        return du, du.sum(0)
    return launchers("bias_gelu", backend).bias_gelu_bwd(_dgrad(dy, w2), u, b)


def _fake_mlp(h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden = h.new_empty(math.prod(h.shape[:-1]), w1.shape[0])
    return h.new_empty(*h.shape[:-1], w2.shape[0]), hidden, torch.empty_like(hidden)


LIBRARY.define("linear_layer(Tensor x, Tensor w, Tensor? b) -> Tensor")
LIBRARY.impl("linear_layer", _linear, "CompositeExplicitAutograd")
torch.library.register_fake(
    "latte_fast::linear_layer", lambda x, w, b: x.new_empty(*x.shape[:-1], w.shape[0]), lib=LIBRARY
)
torch.library.register_autograd("latte_fast::linear_layer", _linear_gradients, setup_context=_save_linear, lib=LIBRARY)
_LINEAR = torch.ops.latte_fast.linear_layer.default
LIBRARY.define("mlp_kept(Tensor h, Tensor w1, Tensor b1, Tensor w2) -> (Tensor, Tensor, Tensor)")
LIBRARY.impl("mlp_kept", _mlp, "CompositeExplicitAutograd")
torch.library.register_fake("latte_fast::mlp_kept", _fake_mlp, lib=LIBRARY)
torch.library.register_autograd("latte_fast::mlp_kept", _mlp_gradients, setup_context=_save_mlp, lib=LIBRARY)
_MLP = torch.ops.latte_fast.mlp_kept.default


@register_flop_formula(torch.ops.latte_fast.linear_layer)
def _linear_flops(x: Sequence[int], w: Sequence[int], b: object, out_shape: object = None) -> int:
    return 2 * math.prod(x) * w[0]


@register_flop_formula(torch.ops.latte_fast.mlp_kept)
def _mlp_flops(h: Sequence[int], w1: Sequence[int], b1: object, w2: Sequence[int], out_shape: object = None) -> int:
    return 2 * math.prod(h[:-1]) * (math.prod(w1) + math.prod(w2))
