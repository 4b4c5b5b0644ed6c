"""Cross-entropy over many codes: logits exist a few rows at a time, and in fp32 never as a whole."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# values of logits that exist at a time: 64 MiB in fp32, 1,024 rows of 16,384 codes
AT_ONCE = 1 << 24


def cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, at_once: int = AT_ONCE) -> Tensor:
    """Returns the cross-entropy (B, n) in fp32 (fp64 for fp64) of the logits x (B, n, D) weight^T and targets (B, n).

    The backward computes the logits again, a third more products of the head. Under autocast they are in its type.

    Args:
        x: what the head multiplies.
        weight: the head's weight (V, D).
        targets: classes, int64.
        at_once: largest number of logits that exist at a time.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    rows = max(1, at_once // weight.shape[0])
    return _CrossEntropy.apply(x.flatten(0, 1), weight, targets.flatten(), rows).view(targets.shape)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        sums, losses = [], []
        for part, wanted in zip(x.split(rows), targets.split(rows), strict=True):
            logits = wide(F.linear(part, weight))
            total = logits.logsumexp(1)
            sums.append(total)
            losses.append(total - logits.gather(1, wanted[:, None])[:, 0])
        ctx.save_for_backward(x, weight, targets, torch.cat(sums))
        ctx.rows = rows
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets, sums = ctx.saved_tensors
        dx = torch.empty_like(x)
        # added up over parts, which bf16 would round at each
        dweight = torch.zeros_like(weight, dtype=wide(sums).dtype)
        parts = zip(*(y.split(ctx.rows) for y in (x, targets, sums, dout, dx)), strict=True)
        for part, wanted, total, upstream, dpart in parts:
            share = wide(F.linear(part, weight)).sub_(total[:, None]).exp_()
            share.scatter_add_(1, wanted[:, None], share.new_full((len(wanted), 1), -1.0))
            dlogits = share.mul_(upstream[:, None]).to(x.dtype)
            torch.mm(dlogits, weight, out=dpart)
            dweight += dlogits.t() @ part
        return dx, dweight.to(weight.dtype), None, None


def wide(x: Tensor) -> Tensor:
    """Returns x in fp32, or as it is in fp64."""
    return x if x.dtype == torch.float64 else x.float()
