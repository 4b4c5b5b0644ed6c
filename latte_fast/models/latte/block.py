"""Latte's blocks on (B, F, N, D); each returns its last residual pending, which the next block's norm adds.

Block covers the paper's variants: attention over one axis (variants 1 and 2), over space then time (3), or over both
in parallel with the outputs added (4); modulated by the condition (S-AdaLN) or plain (all-tokens).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from latte_fast import ops
from latte_fast.modules.hooks import is_changed
from latte_fast.modules.linear import is_plain, mlp, split_bias, weight_of
from latte_fast.modules.linear8 import Rows8, is_8bit, readers_of
from latte_fast.modules.residual import Pending, add_and_norm, resolve
from latte_fast.modules.sequence import Shards

Rope = tuple[Tensor, Tensor]


class BlockContext(NamedTuple):
    """What a block needs besides its tokens and condition."""

    axis: str  # "space", "time" or "both"
    pos: Tensor | None = None  # (F, 1, D), added before the first time attention
    rope: Rope | None = None  # (cos, sin), (F, K/2) each
    images: int = 0  # the last frames, which skip time attention
    whole: bool = False  # whether the result has no residual pending, for hooks that see it
    shards: Shards | None = None  # where attention over time finds all frames, if ranks share them


class Attention(nn.Module):
    """Multi-head attention over one axis; q, k and v are strided views of the packed projection."""

    # the linear layers that may have 8-bit weights, by what they are called when such layers are chosen
    products: ClassVar[dict[str, str]] = {"qkv": "qkv", "proj": "proj"}

    def __init__(self, width: int, heads: int, inner: int | None = None):
        super().__init__()
        inner = inner or width
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * inner)
        self.proj = nn.Linear(inner, width)

    @property
    def readers(self) -> tuple[Any, ...]:
        """The layers that read the input."""
        return (self.qkv,)

    def forward(self, h: Tensor | Rows8, axis: str, rope: Rope | None = None) -> tuple[Tensor, Tensor | None] | Tensor:
        """Returns the projected result and the bias that is still to be added to it; the sum alone if hooks see it."""
        out = self.attend(h, axis, rope)
        return self.proj(out) if is_changed(self) else split_bias(self.proj, out)

    fused = forward

    def attend(self, h: Tensor | Rows8, axis: str, rope: Rope | None = None) -> Tensor:
        rope = rope if axis == "time" else None
        if is_plain(self.qkv):
            assert isinstance(h, Tensor)
            return ops.attention_layer(h, self.qkv.weight, self.qkv.bias, self.num_heads, axis, rope)
        if is_8bit(self.qkv):
            return self.qkv.attention(h, self.num_heads, axis, rope)
        qkv = self.qkv(h).unflatten(-1, (3, self.num_heads, -1))  # (B, F, N, 3, H, K)
        return ops.axis_attention_qkv(qkv, axis, rope)


class Mlp(nn.Module):
    products: ClassVar[dict[str, str]] = {"fc1": "fc1", "fc2": "fc2"}

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    @property
    def readers(self) -> tuple[Any, ...]:
        return (self.fc1,)

    def forward(self, h: Tensor | Rows8) -> tuple[Tensor, Tensor | None] | Tensor:
        """Returns the result and the bias of fc2 that is still to be added to it; the sum alone if hooks see it."""
        y, bias = mlp(self.fc1, self.fc2, h, self.act)
        if is_changed(self):
            return y if bias is None else y + bias
        return y, bias

    fused = forward


def parted(out: Any) -> tuple[Tensor, Tensor | None]:
    """Returns a sublayer's result and the bias that is still to be added; one in our module's place adds its own."""
    return (out, None) if isinstance(out, Tensor) else out


class Block(nn.Module):
    """Attention, then an MLP, each added through a gate, in the forms that the top of this file lists."""

    # class attributes, so that an upstream block patched to this class has them too; `fused` is the forward that
    # hooks and subclasses may change
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
        self.attn: nn.Module = Attention(width, heads_each, inner)
        if order != "one":
            self.attn_time = Attention(width, heads_each, inner)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        if not plain:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    @property
    def hidden(self) -> int:
        return weight_of(self.mlp.fc1).shape[0]

    def modulation(self, silu_c: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """Returns shift, scale, gate of attention, then of the MLP, (G, D) each; (1, D) with gates of 1 where plain."""
        if isinstance(silu_c, tuple):  # computed before the run
            return silu_c
        if not self.plain:
            return self.adaLN_modulation[1](silu_c).chunk(6, dim=-1)
        return (*affine(self.norm1), *affine(self.norm2))

    def forward(
        self, x: Tensor, pending: Pending | None, silu_c: Tensor | tuple[Tensor, ...] | None, context: BlockContext
    ) -> tuple[Tensor, Pending] | Tensor:
        """x (B, F, N, D), silu_c = SiLU(condition) (G, D) or a modulation -> x and the residual still to be added."""
        modulation = self.modulation(silu_c)  # (G, D) each
        shift_a, scale_a, gate_a = modulation[:3]
        pos = None if self.order == "sequential" else context.pos
        # attention over both axes reads h twice, time attention without the images' frames; ranks exchange h
        readers = () if self.order == "parallel" or context.shards is not None else readers_of(self.attn)
        x, h = add_and_norm(x, pending, shift_a, scale_a, pos, readers=readers)  # (B, F, N, D) each
        if self.order == "one":
            y, bias = self.over_axis(h, context)  # (B, F, N, D), (D,)
        elif self.order == "sequential":
            y, bias = parted(self.attn(h, "space"))
            readers = () if context.images or context.shards is not None else readers_of(self.attn_time)
            x, h = add_and_norm(x, Pending(y, gate_a, bias), shift_a, scale_a, context.pos, readers=readers)
            y, bias = self.temporal_attention(h, context)
        else:
            y, bias = self.in_parallel(h, context)
        held = [x, y, bias]
        # freed before the MLP, the peak of memory in sampling
        del x, h, y, pending
        return self.add_mlp(held, modulation, context.whole)

    fused: Any = forward

    def add_mlp(self, held: list[Any], modulation: tuple[Tensor, ...], whole: bool) -> tuple[Tensor, Pending] | Tensor:
        """Takes x, attention's residual and its bias out of `held`; returns x with them, and the MLP's residual."""
        gate_a, shift_m, scale_m, gate_m = modulation[2:]
        x, y, bias = held
        held.clear()
        x, h = add_and_norm(x, Pending(y, gate_a, bias), shift_m, scale_m, readers=readers_of(self.mlp))
        del y
        y, bias = parted(self.mlp(h))
        # a copy, so that the next block reads no parameter of this one
        last = Pending(y, gate_m, None if bias is None else bias.clone())
        return resolve(x, last) if whole else (x, last)

    def over_axis(self, h: Tensor, context: BlockContext) -> tuple[Tensor, Tensor | None]:
        """Applies the attention of variants 1 and 2; returns it and the bias still to be added, if any."""
        if context.axis == "space":
            return parted(self.attn(h, "space"))
        return self.over_frames(h, context, lambda h: parted(self.attn(h, "time", context.rope)))

    def temporal_attention(self, h: Tensor, context: BlockContext) -> tuple[Tensor, Tensor | None]:
        """Applies the time attention of variants 3 and 4; images get zeros, not even its bias."""
        joint = context.images if context.shards is None else context.shards.all_images
        if not joint:
            return self.over_frames(h, context, lambda h: parted(self.attn_time(h, "time", context.rope)))
        # a rank without images, too: its bias is added where its patches are
        video = h[:, : h.shape[1] - context.images]
        if type(self.attn_time) is Attention and not is_changed(self.attn_time):
            own: Attention = self.attn_time
            y, bias = self.over_frames(video, context, lambda h: (own.proj(own.attend(h, "time", context.rope)), None))
        else:
            y, bias = self.over_frames(video, context, lambda h: parted(self.attn_time(h, "time", context.rope)))
            y = y if bias is None else y + bias
        return torch.cat([y, y.new_zeros(y.shape[0], context.images, *y.shape[2:])], dim=1), None

    def over_frames(
        self, h: Tensor, context: BlockContext, attend: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None]:
        """Applies attention over time where all frames are, or with the ranks that share them."""
        return attend(h) if context.shards is None else context.shards.over_time(h, attend)

    def in_parallel(self, h: Tensor, context: BlockContext) -> tuple[Tensor, Tensor | None]:
        """Adds up space and time attention over the same h (variant 4)."""
        y, bias = parted(self.attn(h, "space"))
        time, time_bias = self.temporal_attention(h, context)
        return y + time, bias if time_bias is None else time_bias if bias is None else bias + time_bias


def affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a LayerNorm's weight and bias as the modulation of one group: (shift, scale, gate), (1, D) each."""
    weight, bias = norm.weight[None], norm.bias[None]
    return bias, weight - 1, torch.ones_like(bias)


class FinalLayer(nn.Module):
    """The head: a modulated (or plain) norm, then a linear layer from tokens to patches."""

    plain = False

    def __init__(self, width: int, out: int, plain: bool = False):
        super().__init__()
        self.plain = plain
        if plain:
            self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, out)
        if not plain:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, pending: Pending | None, silu_c: Tensor | tuple[Tensor, ...] | None) -> Tensor:
        if isinstance(silu_c, tuple):
            shift, scale = silu_c
        elif self.plain:
            shift, scale = affine(self.norm_final)[:2]
        else:
            shift, scale = self.adaLN_modulation[1](silu_c).chunk(2, dim=-1)
        return self.linear(add_and_norm(x, pending, shift, scale)[1])  # (B, F, N, P*P*C)

    fused = forward
