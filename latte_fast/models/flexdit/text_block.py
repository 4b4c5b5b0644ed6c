"""FlexDiT's blocks of the text-to-video model's space half, with diffusers' parameter names; S and D are BlockT2V.

Only self-attention differs: a block's tokens, sparse or all, attend to the text as ever.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from latte_fast import ops
from latte_fast.models.flexdit.block import pools_alone, start_as_skip, take_dense
from latte_fast.models.flexdit.density import Grid, upsample_tokens
from latte_fast.models.latte_t2v.block import BlockT2V, Text
from latte_fast.modules.residual import Pending, add_and_norm, resolve


class FlexContextT2V(NamedTuple):
    """BlockContextT2V of a block G or R, and what it needs of its module."""

    dense: list[Tensor]  # the module's input (B, F, N, D); see `take_dense`
    grid: Grid
    sparse: Grid
    text: Text
    axis: str = "space"
    pos: Tensor | None = None
    images: int = 0
    whole: bool = False  # whether the result has no residual pending, for hooks that see it
    keys: Tensor | None = None  # (B, F, M, D), of R: the normed sparse tokens


class PoolingT2V(nn.Module):
    """The parameters of an attention with equal weights."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.to_v = nn.Linear(width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])


# q, k and v read a mean, or different tokens: they stay in 16 bits
OTHERS = {path: kind for path, kind in BlockT2V.products.items() if kind != "qkv"}


class PoolBlockT2V(BlockT2V):
    """A block whose self-attention is the mean of the values over the frame (P)."""

    products = OTHERS

    def __init__(self, width: int, heads: int, bias: bool, eps: float, space: bool):
        super().__init__(width, heads, bias, eps, space)
        self.attn1 = PoolingT2V(width, bias)  # type: ignore[assignment]

    def add_and_norm(
        self, x: Tensor, pending: Pending | None, shift: Tensor, scale: Tensor, pos: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Returns x with what is pending, and the mean of its norm, (B, F, 1, D), which may be all that is written."""
        if not pools_alone(pending, pos):
            x, h = add_and_norm(x, pending, shift, scale, pos, eps)
            return x, h.mean(2, keepdim=True)
        x = resolve(x, pending)
        return x, ops.pooled_norm(x, shift, scale, "space", eps, out_dtype=shift.dtype)

    def attention(self, h: Any, context: Any, shift: Tensor, scale: Tensor) -> Tensor:
        return self.attn1.to_v(h)


class GenerateBlockT2V(BlockT2V):
    """A block over the sparse tokens, whose keys and values are the module's dense input (G)."""

    products = OTHERS

    def attention(self, h: Any, context: Any, shift: Tensor, scale: Tensor) -> Tensor:
        keys = context.keys
        if keys is None:
            keys = ops.norm_modulate(context.dense[0], shift, scale, self.norm1.eps, out_dtype=shift.dtype)
        attn = self.attn1
        q, k, v = (
            layer(tokens).unflatten(-1, (attn.heads, -1))
            for layer, tokens in ((attn.to_q, h), (attn.to_k, keys), (attn.to_v, keys))
        )
        return ops.axis_attention(q, k, v, "space")


class RecoverBlockT2V(GenerateBlockT2V):
    """A block over all tokens, made of the module's sparse and dense ones; it attends to the sparse ones (R)."""

    def __init__(self, width: int, heads: int, bias: bool, eps: float, space: bool):
        super().__init__(width, heads, bias, eps, space)
        self.merged_layer1 = nn.Linear(width, width)
        self.merged_layer2 = nn.Linear(width, width)

    def start(self) -> None:
        start_as_skip(self)

    def forward(
        self, x: Tensor, pending: Pending | None, t_modulation: Tensor | tuple[Tensor, ...], context: Any
    ) -> tuple[Tensor, Pending] | Tensor:
        """x (B, F, M, D) -> all tokens (B, F, N, D) and the MLP's residual, which is still to be added."""
        shift, scale = self.modulation(t_modulation)[:2]
        x, keys = add_and_norm(x, pending, shift, scale, eps=self.norm1.eps)  # (B, F, M, D) each
        sparse = self.merged_layer1(x)
        merged = self.merged_layer2(take_dense(context.dense))
        x = (merged + upsample_tokens(sparse, context.grid, context.sparse)).to(x.dtype)  # (B, F, N, D)
        del merged
        return super().forward(x, None, t_modulation, context._replace(keys=keys))

    fused: Any = forward
