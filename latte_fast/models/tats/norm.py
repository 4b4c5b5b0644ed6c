"""The 3D-VQGAN's norms as a scale and a shift for each channel, which one pass applies with SiLU and the border."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from latte_fast import ops
from latte_fast.models.tats.config import GROUPS

Pads = tuple[int, int, int, int, int, int]  # in front of and behind time, height and width
NO_PADS: Pads = (0, 0, 0, 0, 0, 0)


class Wide(nn.Module):
    """A module whose tensors stay in fp32 or wider where the rest of a model is cast to 16 bits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(x: Tensor) -> Tensor:
            cast = fn(x)
            return cast if cast.dtype == at_least_fp32(cast).dtype or x.dtype == cast.dtype else x.to(cast.device)

        return super()._apply(kept, recurse)


class BatchNorm(Wide):
    """Batch norm with torch.nn.BatchNorm3d's parameters; statistics of a training batch are those of all ranks."""

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scale and shift, each (1, C), by the statistics of x (B, C, ...) in training, else the running."""
        mean, var = self._of_batch(x) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return scale[None], (self.bias - mean * scale)[None]

    def _of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count = x.numel() // x.shape[1]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = torch.var_mean(at_least_fp32(x), axes, correction=0)
        if dist.is_initialized() and dist.get_world_size() > 1:
            # ranks hold equally many clips, so their means and variances weigh the same
            ranks, own = dist.get_world_size(), mean
            mean = all_reduce(own) / ranks
            var = all_reduce(var + (own - mean).square()) / ranks
            count *= ranks
        if count == 1:
            raise ValueError("VQGAN: a batch must have more than one value a channel to be normalised, got 1")
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(var.to(self.running_var) * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return mean, var


class GroupNorm(Wide):
    """Group norm with torch.nn.GroupNorm's parameters: 32 groups, statistics over a whole clip."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns scale and shift, each (B, C)."""
        grouped = at_least_fp32(x).unflatten(1, (GROUPS, -1))
        var, mean = torch.var_mean(grouped, [2, 3, 4, 5], correction=0)  # (B, groups)
        width = x.shape[1] // GROUPS
        scale = self.weight * torch.rsqrt(var + self.eps).repeat_interleave(width, 1)
        return scale, self.bias - mean.repeat_interleave(width, 1) * scale


def at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def norm_of(channels: int, kind: str) -> BatchNorm | GroupNorm:
    return BatchNorm(channels) if kind == "batch" else GroupNorm(channels)


def norm_silu(x: Tensor, norm: BatchNorm | GroupNorm, pads: Pads = NO_PADS) -> Tensor:
    """SiLU(norm(x)), its edge repeated `pads` times: what an unpadded convolution reads."""
    scale, shift = norm.affine(x)
    return ops.norm_silu_halo(x, scale, shift, pads)
