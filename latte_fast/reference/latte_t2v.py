"""The oracle of the text-to-video model: upstream's LatteT2V and diffusers' LatteTransformer3DModel, same keys.

The layouts, copies and repeats are upstream's. Where their code departs from what they document, this follows the
documentation: a text mask reaches every frame, and joint training adds the temporal table with and without recompute.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from latte_fast.config import LatteT2VConfig
from latte_fast.reference.embed import sincos, time_table
from latte_fast.reference.functional import attention_ref, gate_residual_ref, norm_modulate_ref


def space_table(config: LatteT2VConfig, rows: int, columns: int) -> Tensor:
    """Returns (1, rows * columns, D): columns in the first half of D, then rows, scaled to positions on config.grid."""
    at = [np.arange(n, dtype=np.float32) / (n / config.grid) / config.interpolation for n in (rows, columns)]
    row, column = np.divmod(np.arange(rows * columns), columns)
    table = [sincos(config.width // 2, at[1][column]), sincos(config.width // 2, at[0][row])]
    return torch.from_numpy(np.concatenate(table, axis=1)).float()[None]


class Attention(nn.Module):
    def __init__(self, config: LatteT2VConfig):
        super().__init__()
        width, self.heads = config.width, config.num_attention_heads
        self.to_q = nn.Linear(width, width, bias=config.attention_bias)
        self.to_k = nn.Linear(width, width, bias=config.attention_bias)
        self.to_v = nn.Linear(width, width, bias=config.attention_bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (rows, L, D), text (rows, T, D), mask (rows, T) bool."""
        source = x if text is None else text
        q, k, v = (
            rearrange(linear(y), "b n (h k) -> b h n k", h=self.heads)
            for linear, y in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        out = attention_ref(q, k, v, q.shape[-1] ** -0.5, None if mask is None else mask[:, None, None])
        return self.to_out[0](rearrange(out, "b h n k -> b n (h k)"))


class Gelu(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([Gelu(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """Self-attention, over space also cross-attention to the text, then the MLP."""

    def __init__(self, config: LatteT2VConfig, space: bool):
        super().__init__()
        self.eps = config.norm_eps
        self.scale_shift_table = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)
        self.attn1 = Attention(config)
        if space:
            self.attn2 = Attention(config)
        self.ff = FeedForward(config.width)

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (rows, L, D), t (rows, 6D)."""
        modulation = self.scale_shift_table + t.unflatten(1, (6, -1))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(1)
        x = gate_residual_ref(x, self.attn1(norm_modulate_ref(x, shift_a, scale_a, self.eps)), gate_a)
        if text is not None:
            x = x + self.attn2(x, text, mask)
        return gate_residual_ref(x, self.ff(norm_modulate_ref(x, shift_m, scale_m, self.eps)), gate_m)


class Timestep(nn.Module):
    """[cos | sin] of t at 128 frequencies in fp32, Linear, SiLU, Linear; then the six modulations of every block."""

    def __init__(self, width: int):
        super().__init__()
        layers = nn.ModuleDict({"linear_1": nn.Linear(256, width), "linear_2": nn.Linear(width, width)})
        self.emb = nn.ModuleDict({"timestep_embedder": layers})
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """t (B,) -> (B, 6D) and the embedding (B, D)."""
        rates = torch.exp(-np.log(10000.0) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angles = t[:, None].float() * rates
        wave = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
        layers = self.emb["timestep_embedder"]
        e = layers["linear_2"](F.silu(layers["linear_1"](wave)))
        return self.linear(F.silu(e)), e


class Caption(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class LatteT2V(nn.Module):
    """x (B, C, F, H, W), t (B,) or (B, F), text (B, T, channels) -> (B, C_out, F, H, W)."""

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.config = config = LatteT2VConfig(**kwargs)
        width, p = config.width, config.patch_size
        self.pos_embed = nn.ModuleDict({"proj": nn.Conv2d(config.in_channels, width, p, stride=p)})
        self.transformer_blocks = nn.ModuleList(Block(config, True) for _ in range(config.num_layers))
        self.temporal_transformer_blocks = nn.ModuleList(Block(config, False) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, p * p * config.channels_out)
        self.adaln_single = Timestep(width)
        self.caption_projection = Caption(config.caption_channels, width)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        enable_temporal_attentions: bool = True,
        use_image_num: int = 0,
    ) -> Tensor:
        """Predicts noise and variance; the mask is (B, T), True or 1 where a token counts.

        The last use_image_num frames are images with captions of their own: text (B, 1 + n, T, channels) and a mask
        (B, 1 + n, T); they skip the time blocks.
        """
        x, config, images = hidden_states, self.config, use_image_num
        batch, frames = x.shape[0], x.shape[2] - images
        rows, columns = x.shape[3] // config.patch_size, x.shape[4] // config.patch_size
        x = self.pos_embed["proj"](rearrange(x, "b c f h w -> (b f) c h w")).flatten(2).transpose(1, 2)
        x = x + space_table(config, rows, columns).to(x)
        t, e = self.adaln_single(timestep.flatten(), x.dtype)
        each = 1 if timestep.dim() == 2 else frames + images  # frames that share a step
        t_space, e = (repeat(z, "b d -> (b f) d", f=each) for z in (t, e))
        t_clip = t.unflatten(0, (batch, -1))[:, :frames]  # a row a frame, or one a clip
        t_time = repeat(t_clip, "b f d -> (b n f) d", n=rows * columns)
        text = self.per_frame(self.caption_projection(encoder_hidden_states), frames, images)
        mask = None
        if encoder_attention_mask is not None:
            mask = self.per_frame(encoder_attention_mask.bool()[..., None], frames, images)[..., 0]
        table = time_table(config.width, config.video_length).to(x)
        for i, (space, time) in enumerate(zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)):
            x = space(x, t_space, text, mask)
            if enable_temporal_attentions:
                x = rearrange(x, "(b f) n d -> b n f d", b=batch)
                video, still = x[:, :, :frames].flatten(0, 1), x[:, :, frames:]
                if i == 0 and frames > 1:
                    video = video + table
                video = time(video, t_time).unflatten(0, (batch, -1))
                x = rearrange(torch.cat([video, still], dim=2), "b n f d -> (b f) n d")
        shift, scale = (self.scale_shift_table + e[:, None]).unbind(1)
        x = self.proj_out(norm_modulate_ref(x, shift, scale))
        p = config.patch_size
        return rearrange(
            x, "(b f) (h w) (p q c) -> b c f (h p) (w q)", b=batch, h=rows, w=columns, p=p, q=p
        ).contiguous()

    @staticmethod
    def per_frame(x: Tensor, frames: int, images: int) -> Tensor:
        """Repeats (B, T, ...) or (B, 1 + n, T, ...) as ((B (F + n)), T, ...), the first one once per video frame."""
        if not images:
            return repeat(x, "b ... -> (b f) ...", f=frames)
        video = repeat(x[:, 0], "b ... -> b f ...", f=frames)
        return torch.cat([video, x[:, 1:]], dim=1).flatten(0, 1)
