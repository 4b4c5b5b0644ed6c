"""A text-to-video block that calls attentions and MLP as diffusers does where its fused forward must not pass by them.

That is where one of them has a hook (diffusers' caches among them) or an attention processor of its own. Such a module
gets and returns tensors in diffusers' layout, (B * F, N, D) over space and (B * N, F, D) over time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.models.latte_t2v.block import BlockContextT2V, BlockT2V, Text
from latte_fast.modules.hooks import runs_itself

MASKED = -10_000.0  # diffusers' bias of a token that does not count


class CalledBlockT2V(BlockT2V):
    """BlockT2V on diffusers' or upstream's block."""

    def attention(self, h: Any, context: BlockContextT2V, shift: Tensor, scale: Tensor) -> Tensor:
        if not runs_itself(self.attn1):
            return super().attention(h, context, shift, scale)
        if context.axis == "time" and context.shards is not None:
            return context.shards.over_time(h, lambda h: (in_rows(self.attn1, h, "time"), None))[0]
        return in_rows(self.attn1, h, context.axis)

    # a module that runs itself reads rows of 16 or 32 bits
    @property
    def readers(self) -> tuple[Any, ...]:
        return () if runs_itself(self.attn1) else super().readers

    @property
    def mlp_readers(self) -> tuple[Any, ...]:
        return () if runs_itself(self.ff) else super().mlp_readers

    def attend_to_text(self, x: Tensor, text: Text, images: int) -> Tensor:
        attn: Any = self.attn2
        if not runs_itself(attn):
            return super().attend_to_text(x, text, images)
        hidden, mask = (None if part is None else per_frame(part, x.shape[1], images) for part in text[:2])
        bias = None if mask is None else torch.where(mask, 0.0, MASKED)[:, None].to(x.dtype)  # (B * F, 1, T)
        return in_rows(lambda rows: attn(rows, encoder_hidden_states=hidden, attention_mask=bias), x, "space")

    def project(self, attn: nn.Module, out: Tensor, whole: bool = False) -> tuple[Tensor, Tensor | None]:
        # a module that runs itself has applied its projection
        return (out, None) if runs_itself(attn) else super().project(attn, out, whole)

    def feed_forward(self, h: Tensor, axis: str) -> tuple[Tensor, Tensor | None]:
        if not runs_itself(self.ff):
            return super().feed_forward(h, axis)
        return in_rows(self.ff, h, axis), None


def in_rows(run: Callable[[Tensor], Tensor], h: Tensor, axis: str) -> Tensor:
    """Runs a function of diffusers' rows on h (B, F, N, D)."""
    if axis == "space":
        return run(h.flatten(0, 1)).unflatten(0, h.shape[:2])
    h = h.transpose(1, 2)  # (B, N, F, D)
    return run(h.flatten(0, 1)).unflatten(0, h.shape[:2]).transpose(1, 2).contiguous()


def per_frame(part: Tensor, frames: int, images: int) -> Tensor:
    """Repeats captions or masks (B, ...) for all frames -> (B * F, ...); n images have their own, (B, 1 + n, ...)."""
    if not images:
        return part.repeat_interleave(frames, 0)
    video = part[:, :1].repeat_interleave(frames - images, 1)
    return torch.cat([video, part[:, 1:]], dim=1).flatten(0, 1)
