"""The oracle's blocks, in upstream's layouts: space attends in (b f) n d, time in (b n) f d, with copies in between."""

import torch
from einops import rearrange
from torch import Tensor, nn

from latte_fast.config import LatteConfig
from latte_fast.reference.functional import Rope, attention_ref, gate_residual_ref, norm_modulate_ref, rotate_ref


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * inner)
        self.proj = nn.Linear(inner, width)

    def forward(self, x: Tensor, rope: Rope | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h k) -> three b h n k", three=3, h=self.num_heads)
        if rope is not None:
            q, k = rotate_ref(q, rope), rotate_ref(k, rope)
        return self.proj(rearrange(attention_ref(q, k, v, q.shape[-1] ** -0.5), "b h n k -> b n (h k)"))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention over one axis (variants 1, 2), space then time (3) or both in parallel (4), then the MLP."""

    def __init__(self, config: LatteConfig):
        super().__init__()
        width, heads = config.hidden_size, config.heads_each
        inner = heads * config.head_width
        self.variant, self.plain = config.variant, config.conditioning == "tokens"
        if self.plain:
            self.norm1 = nn.LayerNorm(width, eps=1e-6)
            self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn: nn.Module = Attention(width, heads, inner)
        if self.variant > 2:
            self.attn_time = Attention(width, heads, inner)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        if not self.plain:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulate(self, x: Tensor, norm: str, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        if self.plain:
            return getattr(self, norm)(x)
        assert shift is not None and scale is not None
        return norm_modulate_ref(x, shift, scale)

    def add(self, x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
        return x + y if gate is None else gate_residual_ref(x, y, gate)

    def modulation(self, c: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None,) * 6 if self.plain else self.adaLN_modulation(c).chunk(6, dim=1)

    def forward(self, x: Tensor, c: Tensor | None, rope: Rope | None = None) -> Tensor:
        """Runs a block of variants 1 and 2 over one axis: x (rows, L, D), c (rows, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        x = self.add(x, self.attn(self.modulate(x, "norm1", shift_a, scale_a), rope), gate_a)
        return self.add(x, self.mlp(self.modulate(x, "norm2", shift_m, scale_m)), gate_m)

    def over_both(
        self,
        x: Tensor,
        c_frames: Tensor | None,
        c_time: Tensor | None,
        batch: int,
        images: int,
        temp: Tensor | None,
        rope: Rope | None,
    ) -> Tensor:
        """Runs a block of variants 3 and 4: x ((b f), n, D); images skip time attention, before which temp is added."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c_frames)
        shift_t, scale_t, gate_t, *_ = self.modulation(c_time)
        if self.variant == 4 and temp is not None:
            x = self.to_frames(*self.to_time(x, batch, images, temp))
        h = self.modulate(x, "norm1", shift_a, scale_a)
        y = self.attn(h)
        if self.variant == 3:
            v, still = self.to_time(self.add(x, y, gate_a), batch, images, temp)
            y = self.attn_time(self.modulate(v, "norm1", shift_t, scale_t), rope)
            x = self.to_frames(self.add(v, y, gate_t), still)
        else:
            v, still = self.to_time(h, batch, images, None)
            y_time = self.attn_time(v, rope)
            x_video, x_still = self.to_time(self.add(x, y, gate_a), batch, images, None)
            x = self.to_frames(self.add(x_video, y_time, gate_t), x_still)
        return self.add(x, self.mlp(self.modulate(x, "norm2", shift_m, scale_m)), gate_m)

    @staticmethod
    def to_time(x: Tensor, batch: int, images: int, temp: Tensor | None) -> tuple[Tensor, Tensor]:
        """Splits ((b f), n, D) into the video ((b n), f, D), with temp added, and the images (b, n, images, D)."""
        x = rearrange(x, "(b f) n d -> b n f d", b=batch)
        video, still = x[:, :, : x.shape[2] - images].flatten(0, 1), x[:, :, x.shape[2] - images :]
        return video if temp is None else video + temp, still

    @staticmethod
    def to_frames(video: Tensor, still: Tensor) -> Tensor:
        video = video.unflatten(0, still.shape[:2])
        return rearrange(torch.cat([video, still], dim=2) if still.shape[2] else video, "b n f d -> (b f) n d")


class FinalLayer(nn.Module):
    def __init__(self, config: LatteConfig):
        super().__init__()
        width = config.hidden_size
        self.plain = config.conditioning == "tokens"
        if self.plain:
            self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, config.patch_size**2 * config.out_channels)
        if not self.plain:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        if self.plain:
            return self.linear(self.norm_final(x))
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(norm_modulate_ref(x, shift, scale))
