"""The oracle: upstream's Latte to the letter, layout copies and repeated conditioning included; same keys, same call.

This is also the eager contender of every benchmark, so nothing here is made faster.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from latte_fast.config import PRESETS, TEXT_WIDTH, TEXT_WIDTH_JOINT, LatteConfig
from latte_fast.reference.embed import LabelEmbedder, PatchEmbed, TimestepEmbedder, space_table, time_table
from latte_fast.reference.functional import attention_ref, gate_residual_ref, norm_modulate_ref


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h k) -> three b h n k", three=3, h=self.num_heads)
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
    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (rows, L, D), c (rows, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = gate_residual_ref(x, self.attn(norm_modulate_ref(x, shift_a, scale_a)), gate_a)
        return gate_residual_ref(x, self.mlp(norm_modulate_ref(x, shift_m, scale_m)), gate_m)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(norm_modulate_ref(x, shift, scale))


class Latte(nn.Module):
    """x (B, F, C, H, W), t (B,), y (B,) or text (B, 77, 768) -> (B, F, 2C, H, W)."""

    text_width = TEXT_WIDTH

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.config = config = LatteConfig(**kwargs)
        width = config.hidden_size
        self.extras, self.in_channels, self.out_channels = config.extras, config.in_channels, config.out_channels
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        if config.extras == 2:
            self.y_embedder = LabelEmbedder(config.num_classes, width, config.class_dropout_prob)
        if config.extras == 78:
            self.text_embedding_projection = nn.Sequential(nn.SiLU(), nn.Linear(self.text_width, width))
        self.pos_embed = nn.Parameter(space_table(width, config.grid, config.grid), requires_grad=False)
        self.temp_embed = nn.Parameter(time_table(width, config.num_frames), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.out_channels)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        if self.extras == 2:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for i in (0, 2):
            nn.init.normal_(self.t_embedder.mlp[i].weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def unpatchify(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        p = self.config.patch_size
        return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=p, q=p)

    def embed_text(self, text: Tensor) -> Tensor:
        return self.text_embedding_projection(text.reshape(text.shape[0], -1))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        text_embedding: Tensor | None = None,
        use_fp16: bool = False,
    ) -> Tensor:
        c = self.t_embedder(t, use_fp16=use_fp16)
        frames = self.temp_embed.shape[1]
        # with text the final layer sees t alone, as upstream has it
        final = c
        if self.extras == 2:
            final = c = c + self.y_embedder(y, self.training)
        elif self.extras == 78:
            c = c + self.embed_text(text_embedding)
        c_frames, final = (repeat(v, "b d -> (b f) d", f=frames) for v in (c, final))
        return self.run(x.half() if use_fp16 else x, c_frames, c, final)

    def run(self, x: Tensor, c_frames: Tensor, c_clip: Tensor, final: Tensor, images: int = 0) -> Tensor:
        """The blocks: c_frames (B*(F+n), D) conditions space, c_clip (B, D) time; the last n frames skip time."""
        batch = x.shape[0]
        video = x.shape[1] - images
        x = self.x_embedder(rearrange(x, "b f c h w -> (b f) c h w")) + self.pos_embed
        c_time = repeat(c_clip, "b d -> (b n) d", n=self.pos_embed.shape[1])
        for i in range(0, len(self.blocks), 2):
            x = self.blocks[i](x, c_frames)
            x = rearrange(x, "(b f) n d -> (b n) f d", b=batch)
            v, still = x[:, :video], x[:, video:]
            if i == 0:
                v = v + self.temp_embed
            v = self.blocks[i + 1](v, c_time)
            x = rearrange(torch.cat([v, still], dim=1) if images else v, "(b n) f d -> (b f) n d", b=batch)
        x = self.unpatchify(self.final_layer(x, final))
        return rearrange(x, "(b f) c h w -> b f c h w", b=batch)

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        cfg_scale: float = 7.0,
        use_fp16: bool = False,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """Guidance over a batch [cond ; uncond] that shares x's first half; the variance channels stay unguided."""
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y=y, use_fp16=use_fp16, text_embedding=text_embedding)
        eps, rest = out.split([self.in_channels, out.shape[2] - self.in_channels], dim=2)
        cond, uncond = eps.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=2)


class LatteIMG(Latte):
    """The joint image-video Latte: n images follow the frames, share t, and skip the temporal blocks."""

    text_width = TEXT_WIDTH_JOINT

    def __init__(self, extras: int = 2, **kwargs: Any):
        super().__init__(extras=extras, **kwargs)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        use_fp16: bool = False,
        y_image: list[Tensor] | None = None,
        use_image_num: int = 0,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """x (B, F+n, C, H, W); y_image: B tensors of n labels. Upstream raises in eval with n > 0, here as in train."""
        c = self.t_embedder(t, use_fp16=use_fp16)
        frames = x.shape[1] - use_image_num
        c_frames = final = repeat(c, "b d -> b f d", f=frames + use_image_num)
        if self.extras == 2:
            y = self.y_embedder(y, self.training)
            c = c + y
            y_frames = repeat(y, "b d -> b f d", f=frames)
            if use_image_num:
                labels = torch.stack([self.y_embedder(row, self.training) for row in y_image])
                y_frames = torch.cat([y_frames, labels], dim=1)
            c_frames = final = c_frames + y_frames
        elif self.extras == 78:
            text = self.embed_text(text_embedding)
            c, c_frames = c + text, c_frames + text[:, None]
        c_frames, final = c_frames.flatten(0, 1), final.flatten(0, 1)
        return self.run(x.half() if use_fp16 else x, c_frames, c, final, use_image_num)


def _build(cls: type[Latte], name: str) -> Any:
    return lambda **kwargs: cls(**PRESETS[name], **kwargs)


Latte_models = {name: _build(Latte, name) for name in PRESETS}
LatteIMG_models = {name.replace("Latte", "LatteIMG"): _build(LatteIMG, name) for name in PRESETS}
