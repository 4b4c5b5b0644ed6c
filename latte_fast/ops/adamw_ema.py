"""adamw_ema: an optimizer's step over lists of weights, with their averages and 16-bit copies."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latte_fast.ops.checks import checked_number
from latte_fast.ops.registration import KernelOp
from latte_fast.ops.sizes import Sizes
from latte_fast.reference.functional import adamw_ema_ref

_NAME = "adamw_ema"


def adamw_ema(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    averages: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decay: float,
) -> None:
    """AdamW's step, average = decay * average + (1 - decay) * weight and copy = weight, all in place, in one pass.

    Rounded where torch.optim.AdamW, lerp_ and copy_ round. All lists have one length, but for those that may be empty;
    tensors of one place have one shape and the same strides, without gaps.

    Args:
        weights: in fp32.
        grads: gradients, in fp32.
        moments: running means of the gradients (`exp_avg`), in fp32.
        squares: running means of their squares (`exp_avg_sq`), in fp32.
        steps: (), number of each weight's update in fp32, counted from 1; this call does not raise it.
        averages: in fp32, or none.
        copies: in bf16, fp16 or fp32, or none.
        lr: learning rate.
        beta1: decay of the moments.
        beta2: decay of the squares.
        eps: number that is added to the root of a square.
        weight_decay: share of a weight that is taken off, times lr.
        decay: decay of the averages.
    """
    lists = {"weights": weights, "grads": grads, "moments": moments, "squares": squares, "averages": averages}
    for name, some in (lists | {"copies": copies, "steps": steps}).items():
        if not isinstance(some, (list, tuple)):
            raise TypeError(f"{_NAME}: {name} must be a list of tensors, got {type(some).__name__}")
        if len(some) != len(weights) and (some or name not in ("averages", "copies")):
            raise ValueError(f"{_NAME}: {name} must be {len(weights)} tensors, as weights, got {len(some)}")
        kinds = (torch.float32, torch.bfloat16, torch.float16) if name == "copies" else (torch.float32,)
        for t, w in zip(some, weights, strict=False):
            if not isinstance(t, Tensor) or t.layout != torch.strided:
                got = t.layout if isinstance(t, Tensor) else type(t).__name__
                raise TypeError(f"{_NAME}: {name} must be dense tensors, got {got}")
            if t.dtype not in kinds:
                raise TypeError(f"{_NAME}: {name} must be fp32{' or 16 bits' * (len(kinds) > 1)}, got {t.dtype}")
            if t.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{_NAME}: {name} must not want a gradient: call it under torch.no_grad()")
            if name == "steps":
                if t.shape or t.device != w.device:
                    raise ValueError(f"{_NAME}: steps must be () on {w.device}, got {tuple(t.shape)} on {t.device}")
                continue
            if t.shape != w.shape or t.stride() != w.stride() or t.device != w.device:
                raise ValueError(
                    f"{_NAME}: {name} must have the weight's shape {tuple(w.shape)}, strides {w.stride()} and device "
                    f"{w.device}, got {tuple(t.shape)}, {t.stride()} and {t.device}"
                )
    for w in weights:
        if not is_dense(w):
            raise ValueError(f"{_NAME}: weights must have no gaps, got strides {w.stride()} of {tuple(w.shape)}")
    if weights:
        numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "decay": decay}
        factors = [checked_number(_NAME, name, number) for name, number in numbers.items()]
        adamw_ema_checked((weights, grads, moments, squares, steps, averages, copies), factors)


def adamw_ema_checked(lists: Sequence[Sequence[Tensor]], factors: Sequence[float]) -> None:
    """adamw_ema of arguments that were checked, which takes longer than to launch it where weights are many.

    Args:
        lists: weights, grads, moments, squares, steps, averages and copies.
        factors: lr, beta1, beta2, eps, weight_decay and decay.
    """
    weights, _, moments, squares, _, averages, copies = lists
    _OP(*(list(some) for some in lists), *factors)
    # kernels write by address, which autograd and caches of what was made of a weight would not notice
    for some in (weights, moments, squares, averages, copies):
        torch.autograd.graph.increment_version(some)


def is_dense(x: Tensor) -> bool:
    """Returns whether x's values lie side by side, in whatever order."""
    if x.is_contiguous():
        return True
    size = 1
    for stride, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n != 1 and stride != size:
            return False
        size *= n
    return True


def _example(sizes: Sizes) -> dict[str, object]:
    """The weights of a block's MLP, under a master in fp32."""
    shapes = ((4 * sizes.width, sizes.width), (4 * sizes.width,), (sizes.width, 4 * sizes.width), (sizes.width,))
    lists = [[sizes.randn(*s).float() for s in shapes] for _ in range(5)]
    return {
        "weights": lists[0],
        "grads": lists[1],
        "moments": lists[2],
        "squares": [s.square() for s in lists[3]],
        "steps": [torch.ones((), device=sizes.device) for _ in shapes],
        "averages": lists[4],
        "copies": [w.bfloat16() for w in lists[0]],
        **{"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "decay": 0.9999},
    }


_OP = KernelOp(
    _NAME,
    "(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] moments, Tensor(c!)[] squares, Tensor[] steps, "
    "Tensor(d!)[] averages, Tensor(e!)[] copies, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "float decay, str backend) -> ()",
    "",
    fake=lambda *args: None,
    reference=adamw_ema_ref,
    example=_example,
)
