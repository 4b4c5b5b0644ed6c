"""Latte's blocks on (B, F, N, D): elementwise passes, GEMMs and attention, with the last residual left pending.

One class holds the paper's blocks: attention over one axis (variants 1 and 2), over space then time (3), or over both
in parallel with the outputs added (4); modulated by the condition (S-AdaLN) or plain (all-tokens).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from latte_fast import ops
from latte_fast.modules.linear import is_plain, mlp, split_bias
from latte_fast.modules.residual import Pending, add_and_norm

Rope = tuple[Tensor, Tensor]


class BlockContext(NamedTuple):
    """What a block is told beside its tokens: its axis, what enters before time attention, the images that skip it."""

    axis: str  # "space", "time" or "both"
    pos: Tensor | None = None  # (F, 1, D)
    rope: Rope | None = None  # (F, K/2) each
    images: int = 0


class Attention(nn.Module):
    """Multi-head attention over one axis, q, k, v read where the packed linear layer left them."""

    def __init__(self, width: int, heads: int, inner: int | None = None):
        super().__init__()
        inner = inner or width
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * inner)
        self.proj = nn.Linear(inner, width)

    def forward(self, h: Tensor, axis: str, rope: Rope | None = None) -> tuple[Tensor, Tensor | None]:
        """The result without the projection's bias, and that bias."""
        return split_bias(self.proj, self.attend(h, axis, rope))

    def attend(self, h: Tensor, axis: str, rope: Rope | None = None) -> Tensor:
        rope = rope if axis == "time" else None
        if is_plain(self.qkv):
            return ops.attention_layer(h, self.qkv.weight, self.qkv.bias, self.num_heads, axis, rope)
        qkv = self.qkv(h).unflatten(-1, (3, self.num_heads, -1))  # (B, F, N, 3, H, K)
        return ops.axis_attention_qkv(qkv, axis, rope)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """The result without the second layer's bias, and that bias."""
        return mlp(self.fc1, self.fc2, h)


class Block(nn.Module):
    """Attention, then the MLP; see the module's first lines for its forms."""

    # on the class, so that a patched upstream instance has them too
    order = "one"
    plain = False

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        order: str = "one",
        plain: bool = False,
        heads_each: int | None = None,
    ):
        super().__init__()
        self.order, self.plain = order, plain
        heads_each = heads_each or heads
        inner = heads_each * (width // heads)
        if plain:
            self.norm1 = nn.LayerNorm(width, eps=1e-6)
            self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads_each, inner)
        if order != "one":
            self.attn_time = Attention(width, heads_each, inner)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        if not plain:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    @property
    def hidden(self) -> int:
        return self.mlp.fc1.out_features

    def modulation(self, silu_c: Tensor | None) -> tuple[Tensor, ...]:
        """shift, scale, gate of attention and of the MLP, each (G, D); a plain block is one group that gates with 1."""
        if not self.plain:
            return self.adaLN_modulation[1](silu_c).chunk(6, dim=-1)
        return (*affine(self.norm1), *affine(self.norm2))

    def forward(
        self, x: Tensor, pending: Pending | None, silu_c: Tensor | None, context: BlockContext
    ) -> tuple[Tensor, Pending]:
        """x (B, F, N, D), silu_c (G, D) the condition after its SiLU -> x' and this block's own last residual."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(silu_c)
        before_time = self.order == "sequential"
        x, h = add_and_norm(x, pending, shift_a, scale_a, None if before_time else context.pos)
        if self.order == "one":
            y, bias = self.attn(h, context.axis, context.rope)
        elif self.order == "sequential":
            y, bias = self.attn(h, "space")
            x, h = add_and_norm(x, Pending(y, gate_a, bias), shift_a, scale_a, context.pos)
            y, bias = self.temporal_attention(h, context)
        else:
            y, bias = self.in_parallel(h, context)
        # what is done with goes at once, or sampling would hold it through the MLP
        del h, pending
        x, h = add_and_norm(x, Pending(y, gate_a, bias), shift_m, scale_m)
        del y
        y, bias = self.mlp(h)
        # a copy, so that no parameter of this block is read by the next
        return x, Pending(y, gate_m, None if bias is None else bias.clone())

    def temporal_attention(self, h: Tensor, context: BlockContext) -> tuple[Tensor, Tensor | None]:
        """The time attention of variant 3; images get nothing from it, not even a bias."""
        if not context.images:
            return self.attn_time(h, "time", context.rope)
        y = self.attn_time.proj(self.attn_time.attend(h[:, : -context.images], "time", context.rope))
        return torch.cat([y, y.new_zeros(y.shape[0], context.images, *y.shape[2:])], dim=1), None

    def in_parallel(self, h: Tensor, context: BlockContext) -> tuple[Tensor, Tensor | None]:
        """Variant 4: both attentions read h, their projections add up."""
        y, bias = self.attn(h, "space")
        if context.images:
            return y + self.temporal_attention(h, context)[0], bias
        time, time_bias = split_bias(self.attn_time.proj, self.attn_time.attend(h, "time", context.rope))
        return y + time, bias if time_bias is None else time_bias if bias is None else bias + time_bias


def affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """A LayerNorm's parameters as a modulation of one group: (shift, scale, gate), each (1, D)."""
    weight, bias = norm.weight[None], norm.bias[None]
    return bias, weight - 1, torch.ones_like(bias)


class FinalLayer(nn.Module):
    """The head: modulated norm (or a plain one), then a linear layer to patches."""

    plain = False

    def __init__(self, width: int, out: int, plain: bool = False):
        super().__init__()
        self.plain = plain
        if plain:
            self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, out)
        if not plain:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, pending: Pending | None, silu_c: Tensor | None) -> Tensor:
        if self.plain:
            shift, scale = affine(self.norm_final)[:2]
        else:
            shift, scale = self.adaLN_modulation[1](silu_c).chunk(2, dim=-1)
        return self.linear(add_and_norm(x, pending, shift, scale)[1])  # (B, F, N, P*P*C)
