"""FlexDiT's blocks on (B, F, N, D), with the authors' parameter names; S and D blocks are Latte's own.

P attends by the mean of its values. G lets a module's sparse tokens attend to the module's dense input; R joins the
sparse tokens, upsampled, with that dense input, and lets all tokens attend to the sparse ones.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from latte_fast import ops
from latte_fast.models.flexdit.density import Grid, upsample_tokens
from latte_fast.models.latte.block import Block, BlockContext, Rope, parted
from latte_fast.modules.hooks import is_changed
from latte_fast.modules.linear import split_bias
from latte_fast.modules.residual import Pending, add_and_norm, resolve


class ModuleContext(NamedTuple):
    """What a G or R block needs besides its tokens and condition."""

    dense: list[Tensor]  # the module's input (B, F, N, D); `take_dense` empties it where no gradient is recorded
    grid: Grid  # rows and columns of the N dense tokens
    sparse: Grid  # rows and columns of the M sparse tokens
    axis: str = "space"
    images: int = 0
    whole: bool = False  # whether the result has no residual pending, for hooks that see it


def take_dense(held: list[Tensor]) -> Tensor:
    """Returns a module's input for its last use, and forgets it unless a backward may run the block again."""
    return held[0] if torch.is_grad_enabled() else held.pop()


class PoolingAttention(nn.Module):
    """Attention with equal weights: the mean over an axis, then v and proj on one row a sequence."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.v = nn.Linear(width, inner)
        self.proj = nn.Linear(inner, width)

    def forward(self, h: Tensor, axis: str, rope: Rope | None = None) -> tuple[Tensor, Tensor | None] | Tensor:
        """Returns the projected mean, the same view for every token of h, and the bias still to be added, if any."""
        mean = h.mean(2 if axis == "space" else 1, keepdim=True)  # (B, F, 1, D) or (B, 1, N, D)
        if is_changed(self):  # hooks see one tensor
            return self.proj(self.v(mean)).expand(*h.shape[:3], -1)
        return self.of_mean(mean, h)

    fused: Any = forward

    def of_mean(self, mean: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the projected mean as a view with x's tokens, and the bias still to be added, if any."""
        y, bias = split_bias(self.proj, self.v(mean))
        return y.expand(*x.shape[:3], -1), bias


class CrossAttention(nn.Module):
    """Multi-head attention over space from one set of tokens to another."""

    products: ClassVar[dict[str, str]] = {"proj": "proj"}

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.num_heads = heads
        self.q = nn.Linear(width, inner)
        self.kv = nn.Linear(width, 2 * inner)
        self.proj = nn.Linear(inner, width)

    def forward(self, h: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None] | Tensor:
        """h (B, F, Nq, D), keys (B, F, Nk, D) -> (B, F, Nq, D), and the bias still to be added, if any."""
        q = self.q(h).unflatten(-1, (self.num_heads, -1))  # (B, F, Nq, H, K)
        k, v = self.kv(keys).unflatten(-1, (2, self.num_heads, -1)).unbind(3)  # (B, F, Nk, H, K) each
        out = ops.axis_attention(q, k, v, "space")
        return self.proj(out) if is_changed(self) else split_bias(self.proj, out)

    fused: Any = forward


class PoolBlock(Block):
    """A block whose attention is the mean of the values over its axis (P)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__(width, heads, mlp_ratio)
        self.attn = PoolingAttention(width, width)

    def forward(
        self, x: Tensor, pending: Pending | None, silu_c: Tensor | tuple[Tensor, ...] | None, context: BlockContext
    ) -> tuple[Tensor, Pending] | Tensor:
        """As Block's; where nothing but a norm has to pass over x, the mean is all that it writes."""
        attn, away = self.attn, context.shards is not None and context.axis == "time"
        if away or not (pools_alone(pending, context.pos) and isinstance(attn, PoolingAttention)) or is_changed(attn):
            return super().forward(x, pending, silu_c, context)
        modulation = self.modulation(silu_c)
        shift, scale = modulation[:2]
        if context.axis == "time" and shift.shape[0] > x.shape[0]:
            # a mean over frames of which each has a modulation of its own
            return super().forward(x, pending, modulation, context)
        x = resolve(x, pending)
        mean = ops.pooled_norm(x, shift, scale, context.axis, out_dtype=shift.dtype)
        held = [x, *attn.of_mean(mean, x)]
        del x, pending, mean
        return self.add_mlp(held, modulation, context.whole)

    fused: Any = forward


def pools_alone(pending: Pending | None, pos: Tensor | None) -> bool:
    """Whether a block reads its tokens fewer times with `pooled_norm` than with the norm that adds what is pending.

    A pending residual without a bias is added by a pass that the other norm does not need, but its normed rows are not
    written and read again; a bias or positions would take two passes more.
    """
    return pos is None and (pending is None or pending.y_bias is None)


class GenerateBlock(Block):
    """A block over the sparse tokens, whose keys and values are the module's dense input (G)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__(width, heads, mlp_ratio)
        self.attn = CrossAttention(width, heads, width)

    def forward(  # type: ignore[override]
        self, x: Tensor, pending: Pending | None, silu_c: Tensor, context: ModuleContext
    ) -> tuple[Tensor, Pending] | Tensor:
        """x (B, F, M, D) -> x and the MLP's residual, which is still to be added."""
        modulation = self.modulation(silu_c)
        shift, scale = modulation[:2]
        x, h = add_and_norm(x, pending, shift, scale)  # (B, F, M, D) each
        keys = ops.norm_modulate(context.dense[0], shift, scale, out_dtype=shift.dtype)  # (B, F, N, D)
        held = [x, h, keys]
        del x, h, keys, pending
        return self.attend(held, modulation, context.whole)

    fused: Any = forward

    def attend(
        self, held: list[Tensor], modulation: tuple[Tensor, ...], whole: bool
    ) -> tuple[Tensor, Pending] | Tensor:
        """Takes x, its norm h and keys out of `held`; returns x, attention added, and the MLP's residual pending."""
        x, h, keys = held
        # freed before the MLP, the peak of memory in sampling
        held.clear()
        rest = [x, *parted(self.attn(h, keys))]
        del x, h, keys
        return self.add_mlp(rest, modulation, whole)


class RecoverBlock(GenerateBlock):
    """A block over all tokens, made of the module's sparse and dense ones; it attends to the sparse ones (R)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__(width, heads, mlp_ratio)
        self.merged_layer1 = nn.Linear(width, width)
        self.merged_layer2 = nn.Linear(width, width)

    def start(self) -> None:
        start_as_skip(self)

    def forward(  # type: ignore[override]
        self, x: Tensor, pending: Pending | None, silu_c: Tensor, context: ModuleContext
    ) -> tuple[Tensor, Pending] | Tensor:
        """x (B, F, M, D) -> all tokens (B, F, N, D) and the MLP's residual, which is still to be added."""
        modulation = self.modulation(silu_c)
        shift, scale = modulation[:2]
        x, keys = add_and_norm(x, pending, shift, scale)  # (B, F, M, D) each
        # the product before the upsampling: N / M times fewer rows, and the same values
        sparse = self.merged_layer1(x)
        merged = self.merged_layer2(take_dense(context.dense))
        x = (merged + upsample_tokens(sparse, context.grid, context.sparse)).to(x.dtype)  # (B, F, N, D)
        h = ops.norm_modulate(x, shift, scale, out_dtype=shift.dtype)
        held = [x, h, keys]
        del x, h, keys, pending, sparse, merged
        return self.attend(held, modulation, context.whole)

    fused: Any = forward


@torch.no_grad()
def start_as_skip(block: nn.Module) -> None:
    """Makes an R block's sparse tokens start without weight: the dense input passes through as it is."""
    block.merged_layer1.weight.zero_()
    nn.init.eye_(block.merged_layer2.weight)
    block.merged_layer1.bias.zero_()
    block.merged_layer2.bias.zero_()
