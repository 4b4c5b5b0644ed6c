"""The text-to-video model's blocks on (B, F, N, D), with diffusers' parameter names.

A space block is self-attention, cross-attention to the text, MLP; a time block has no cross-attention. The modulation
is the block's own table plus a projection of the time step that all blocks share (adaLN-single).
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from latte_fast import ops
from latte_fast.modules.linear import joined, joined8, joined_product, mlp, split_bias, weight_of
from latte_fast.modules.linear8 import Rows8, product
from latte_fast.modules.prompt_cache import PromptCache
from latte_fast.modules.residual import Pending, add_and_norm, resolve
from latte_fast.modules.sequence import Shards


class Text(NamedTuple):
    """The projected text of a call: one caption per clip, with n images one for the video and one per image."""

    hidden: Tensor  # (B, T, D), or (B, 1 + n, T, D)
    mask: Tensor | None  # (B, T), or (B, 1 + n, T), bool, True where a token counts
    kept: bool = True  # whether the next call may reuse its keys and values


class BlockContextT2V(NamedTuple):
    """What a block needs besides its tokens and modulation."""

    axis: str  # "space" or "time"
    text: Text | None = None
    pos: Tensor | None = None  # (F, 1, D), added before the first time attention
    images: int = 0  # the last frames, which have captions of their own
    whole: bool = False  # whether the result has no residual pending, for hooks that see it
    shards: Shards | None = None  # where attention over time finds all frames, if ranks share them


class AttentionT2V(nn.Module):
    """The parameters of an attention; BlockT2V's forward uses them."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(width, width, bias=bias)
        self.to_v = nn.Linear(width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])


class GeluT2V(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden)


class FeedForwardT2V(nn.Module):
    """The parameters of an MLP; BlockT2V's forward uses them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.net = nn.ModuleList([GeluT2V(width, hidden), nn.Dropout(0.0), nn.Linear(hidden, width)])


def self_attention(attn: nn.Module, h: Tensor | Rows8, axis: str) -> Tensor:
    """h (B, F, N, D) -> (B, F, N, D) before the output projection; one GEMM where q, k, v weights share a storage."""
    layers = (attn.to_q, attn.to_k, attn.to_v)
    packed8 = joined8(layers)
    if packed8 is not None:
        qkv = product(layers[0].rows_of(h), *packed8)
        return ops.axis_attention_qkv(qkv.unflatten(-1, (3, attn.heads, -1)), axis)
    whole = None if isinstance(h, Rows8) else joined_product(layers, h)
    if whole is not None:
        return ops.axis_attention_qkv(whole.unflatten(-1, (3, attn.heads, -1)), axis)
    packed = joined(layers)
    if packed is not None:
        assert isinstance(h, Tensor)
        return ops.attention_layer(h, *packed, attn.heads, axis)
    q, k, v = (layer(h).unflatten(-1, (attn.heads, -1)) for layer in layers)
    return ops.axis_attention(q, k, v, axis)


class BlockT2V(nn.Module):
    """x += gate * attention(norm(x)); over space x += cross-attention(x, text); x += gate * MLP(norm(x))."""

    # the linear layers that may have 8-bit weights, by what they are called when such layers are chosen
    products: ClassVar[dict[str, str]] = {
        "attn1.to_q": "qkv",
        "attn1.to_k": "qkv",
        "attn1.to_v": "qkv",
        "attn1.to_out.0": "proj",
        "attn2.to_q": "proj",
        "attn2.to_out.0": "proj",
        "ff.net.0.proj": "fc1",
        "ff.net.2": "fc2",
    }

    def __init__(self, width: int, heads: int, bias: bool, eps: float, space: bool):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.norm1 = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.attn1 = AttentionT2V(width, heads, bias)
        self.attn2 = AttentionT2V(width, heads, bias) if space else None
        self.ff = FeedForwardT2V(width, 4 * width)

    @property
    def readers(self) -> tuple[Any, ...]:
        """The layers that read the first norm's result."""
        return (self.attn1.to_q, self.attn1.to_k, self.attn1.to_v)

    @property
    def mlp_readers(self) -> tuple[Any, ...]:
        """The layers that read the second norm's result."""
        return (self.ff.net[0].proj,)

    @property
    def hidden(self) -> int:
        layer = self.ff.net[0].proj
        # packed weights, as bitsandbytes' of 4 bits, have another shape
        return getattr(layer, "out_features", None) or weight_of(layer).shape[0]

    @property
    def prompt_cache(self) -> PromptCache:
        """Cache of the text's keys and values; made on first use, so that a patched block has it too."""
        return self.__dict__.setdefault("_prompt_cache", PromptCache())

    def modulation(self, shared: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns shift, scale, gate of attention, then of the MLP, (G, D) each, G = B or B*F, or 1 out of a table."""
        if isinstance(shared, tuple):  # computed before the run
            return shared
        return (self.scale_shift_table + shared).to(shared.dtype).unbind(1)

    def forward(
        self,
        x: Tensor,
        pending: Pending | None,
        t_modulation: Tensor | tuple[Tensor, ...],
        context: BlockContextT2V,
    ) -> tuple[Tensor, Pending] | Tensor:
        """x (B, F, N, D), t_modulation (G, 6, D) -> x and the MLP's residual, which is still to be added."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(t_modulation)  # (G, D) each
        eps, eps_m = self.norm1.eps, (self._modules.get("norm2") or self.norm1).eps
        # every `del` frees an activation as early as it can be: sampling then holds 9 instead of 12
        x, h = self.add_and_norm(x, pending, shift_a, scale_a, context.pos, eps)  # (B, F, N, D) each
        out = self.attention(h, context, shift_a, scale_a)  # (B, F, N, D)
        del h, pending
        if context.text is None:
            y, bias = self.project(self.attn1, out)
        else:
            # cross-attention reads x without a norm, so no norm can add this residual on the way
            x = resolve(x, Pending(self.project(self.attn1, out, whole=True)[0].expand_as(x), gate_a, None))
            y, bias = self.project(self.attn2, self.attend_to_text(x, context.text, context.images))
            gate_a = torch.ones_like(gate_a[:1]).expand_as(gate_a)
        del out
        x, h = add_and_norm(x, Pending(y, gate_a, bias), shift_m, scale_m, eps=eps_m, readers=self.mlp_readers)
        del y
        y, bias = self.feed_forward(h, context.axis)
        # a copy, so that the next block reads no parameter of this one
        last = Pending(y, gate_m, None if bias is None else bias.clone())
        return resolve(x, last) if context.whole else (x, last)

    fused = forward

    def add_and_norm(
        self, x: Tensor, pending: Pending | None, shift: Tensor, scale: Tensor, pos: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Returns x with what is pending, and what `attention` needs of its norm."""
        return add_and_norm(x, pending, shift, scale, pos, eps, self.readers)

    def attention(self, h: Tensor | Rows8, context: BlockContextT2V, shift: Tensor, scale: Tensor) -> Tensor:
        """h (B, F, N, D), modulated by shift and scale -> its self-attention before the output projection."""
        if context.axis == "time" and context.shards is not None:
            return context.shards.over_time(h, lambda h: (self_attention(self.attn1, h, "time"), None))[0]
        return self_attention(self.attn1, h, context.axis)

    def project(self, attn: nn.Module, out: Tensor, whole: bool = False) -> tuple[Tensor, Tensor | None]:
        """Applies an attention's output projection; returns the bias that is still to be added, none if `whole`."""
        return (attn.to_out[0](out), None) if whole else split_bias(attn.to_out[0], out)

    def feed_forward(self, h: Tensor, axis: str) -> tuple[Tensor, Tensor | None]:
        """Applies the MLP; returns the result and the bias that is still to be added, if any."""
        return mlp(self.ff.net[0].proj, self.ff.net[2], h)

    def attend_to_text(self, x: Tensor, text: Text, images: int) -> Tensor:
        """Lets a clip's F*N tokens attend to its caption as one sequence, and each image's N tokens to its own."""
        q = self.attn2.to_q(x).unflatten(-1, (self.attn2.heads, -1))  # (B, F+n, N, H, K)
        layers = (self.attn2.to_k, self.attn2.to_v)
        k, v = self.prompt_cache(text.hidden, layers, self.keys) if text.kept else self.keys(text.hidden)
        if not images:
            return self.over_clip(q, k, v, text.mask)
        masks = (None, None) if text.mask is None else (text.mask[:, 0], text.mask[:, 1:].flatten(0, 1))
        video = self.over_clip(q[:, :-images], k[:, 0], v[:, 0], masks[0])
        still, k_still, v_still = (z.flatten(0, 1)[:, None] for z in (q[:, -images:], k[:, 1:], v[:, 1:]))
        out = ops.axis_attention(still, k_still, v_still, "space", key_mask=masks[1])  # (B*n, 1, N, D)
        return torch.cat([video, out.view(x.shape[0], images, *x.shape[2:])], dim=1)

    def keys(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Projects text (..., T, D) to keys and values (..., T, H, K)."""
        k, v = self.attn2.to_k(hidden), self.attn2.to_v(hidden)
        return k.unflatten(-1, (self.attn2.heads, -1)), v.unflatten(-1, (self.attn2.heads, -1))

    @staticmethod
    def over_clip(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attends over a clip's caption: q (B, F, N, H, K), k and v (B, T, H, K) -> (B, F, N, D)."""
        out = ops.axis_attention(q.flatten(1, 2)[:, None], k[:, None], v[:, None], "space", key_mask=mask)
        return out.view(*q.shape[:3], -1)
