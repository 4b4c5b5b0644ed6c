"""Recompute policies: what a block keeps for its backward, and what the backward computes again."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from latte_fast.modules.hooks import is_changed
from latte_fast.modules.residual import Pending, resolve

POLICIES = ("none", "elementwise", "mlp", "block")
# matrix products, one of them in fp8: the position of the second factor among their arguments, and where in its shape
# the width of the result is
_PRODUCTS = {
    torch.ops.aten.mm.default: (1, -1),
    torch.ops.aten.addmm.default: (2, -1),
    torch.ops.aten.bmm.default: (1, -1),
    torch.ops.aten._scaled_mm.default: (1, -1),
    torch.ops.latte_fast.linear_layer.default: (1, 0),
}
_ATTENTION = {
    torch.ops.latte_fast.axis_attention.default,
    torch.ops.latte_fast.axis_attention_qkv.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def _policy(keep_fc1: bool, hidden: int, ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if op in _PRODUCTS:
        factor, width = _PRODUCTS[op]
        if keep_fc1 or args[factor].shape[width] != hidden:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def run_block(
    policy: str, block: nn.Module, x: Tensor, pending: Pending | None, condition: Tensor | None, context: Any
) -> tuple[Tensor, Pending | None]:
    """Runs a block -> (x, pending) under one of POLICIES; `block.hidden` is the hidden width of its MLP.

    Hooks on the block, and a subclass's forward, see x with residuals and positions added, and none pending.

    "elementwise" keeps x, attention and every matrix product, "mlp" all of these but fc1's, the widest, and "block" x
    alone, with the residual added at the block's end so that one tensor passes to the next block.
    """
    if policy not in POLICIES:
        raise ValueError(f"recompute must be one of {', '.join(POLICIES)}, got {policy!r}")
    if is_changed(block):
        x, pending, context = resolve(x, pending), None, context._replace(whole=True)
        if getattr(context, "pos", None) is not None and getattr(block, "order", "one") == "one":
            x, context = x + context.pos.to(x.dtype), context._replace(pos=None)
    args = (x, pending, condition, context)
    if policy == "none" or not torch.is_grad_enabled():
        return _pair(block(*args))
    # a CUDA graph can't hold the state of random numbers, which a plain block does not draw
    random = _may_draw(block)
    if policy == "block":
        return checkpoint(_resolved, block, *args, use_reentrant=False, preserve_rng_state=random), None
    chooser = functools.partial(_policy, policy == "elementwise", block.hidden)
    contexts = functools.partial(create_selective_checkpoint_contexts, chooser)
    return _pair(checkpoint(block, *args, use_reentrant=False, preserve_rng_state=random, context_fn=contexts))


def _may_draw(block: nn.Module) -> bool:
    """Whether a block may draw random numbers: a dropout, or a module from elsewhere, such as a LoRA's."""
    for module in block.modules():
        home = type(module).__module__
        if "dropout" in home or not home.startswith(("torch.nn.", "latte_fast.")):
            return True
    return False


def _pair(out: Any) -> tuple[Tensor, Pending | None]:
    return (out, None) if isinstance(out, Tensor) else out


def _resolved(block: nn.Module, *args: Any) -> Tensor:
    return resolve(*_pair(block(*args)))
