"""The oracle: upstream's Latte to the letter, layout copies and repeated conditioning included; same keys, same call.

This is also the eager contender of every benchmark, so nothing here is made faster. The variants that upstream lacks
are written in the same style.
"""

from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from latte_fast.config import PRESETS, TABLE_3_PRESETS, TEXT_WIDTH, TEXT_WIDTH_JOINT, LatteConfig
from latte_fast.reference.blocks import Block, FinalLayer
from latte_fast.reference.embed import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    rope_tables,
    space_table,
    time_table,
)


class Latte(nn.Module):
    """x (B, F, C, H, W), t (B,) or (B, F), y (B,) or text (B, 77, 768) -> (B, F, 2C, H, W)."""

    text_width = TEXT_WIDTH
    config_type: type[LatteConfig] = LatteConfig

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.config = config = self.config_type(**kwargs)
        width = config.hidden_size
        self.extras, self.in_channels, self.out_channels = config.extras, config.in_channels, config.out_channels
        self.patch_size, self.num_heads = config.patch_size, config.num_heads
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, width, config.patch_frames)
        self.t_embedder = TimestepEmbedder(width)
        if config.extras == 2:
            self.y_embedder = LabelEmbedder(config.num_classes, width, config.class_dropout_prob)
        if config.extras == 78:
            self.text_embedding_projection = nn.Sequential(nn.SiLU(), nn.Linear(self.text_width, width))
        self.pos_embed = nn.Parameter(space_table(width, config.grid, config.grid), requires_grad=False)
        if config.has_time_table:
            self.temp_embed = nn.Parameter(time_table(width, config.token_frames), requires_grad=False)
        self.blocks = nn.ModuleList(self.make_block(i) for i in range(config.depth))
        self.final_layer = FinalLayer(config)
        if config.patch_frames > 1:
            window = (config.patch_frames, 1, 1)
            self.upsample = nn.ConvTranspose3d(config.out_channels, config.out_channels, window, stride=window)
        self.initialize_weights()

    def make_block(self, i: int) -> nn.Module:
        return Block(self.config)

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
        for module in [*self.blocks, self.final_layer]:
            if not module.plain:
                nn.init.zeros_(module.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        text_embedding: Tensor | None = None,
        use_fp16: bool = False,
    ) -> Tensor:
        label = self.embed_condition(y, text_embedding)
        return self.run(x.half() if use_fp16 else x, self.t_embedder(t, use_fp16=use_fp16), label)

    def embed_condition(self, y: Tensor | None, text: Tensor | None) -> Tensor | None:
        if self.extras == 2:
            return self.y_embedder(y, self.training)
        if self.extras == 78:
            assert text is not None
            return self.text_embedding_projection(text.reshape(text.shape[0], -1))
        return None

    def run(self, x: Tensor, t: Tensor, label: Tensor | None, stills: Tensor | None = None, images: int = 0) -> Tensor:
        """x (B, F+n, C, H, W), embeddings t (B, D) or (B, F+n, D), label (B, D), of image labels stills (B, n, D)."""
        config, batch = self.config, x.shape[0]
        x = self.x_embedder(x) + self.pos_embed  # ((b f), n, d)
        frames = x.shape[0] // batch
        steps = t if t.dim() == 3 else repeat(t, "b d -> b f d", f=frames)
        labels = None if label is None else repeat(label, "b d -> b f d", f=frames - (0 if stills is None else images))
        if stills is not None and labels is not None:
            labels = torch.cat([labels, stills], dim=1)
        c_frames = c_time = final = None
        extra = config.extra_tokens
        if extra:
            rows = torch.stack([steps] if labels is None else [steps, labels], dim=2).flatten(0, 1)
            x = torch.cat([rows.to(x.dtype), x], dim=1)
        else:
            c_frames = (steps if labels is None else steps + labels).flatten(0, 1)
            c_clip = t[:, : frames - images] if t.dim() == 3 else t[:, None]
            c_clip = c_clip if label is None else c_clip + label[:, None]  # a row a frame, or one a clip
            c_time = repeat(c_clip, "b f d -> (b n f) d", n=self.pos_embed.shape[1])
            # with text upstream conditions the final layer on t alone
            final = steps.flatten(0, 1) if self.extras == 78 else c_frames
        rope = None
        if config.time_pos == "rope":
            rope = tuple(table.to(x.device) for table in rope_tables(frames - images, config.head_width))
        x = self.run_blocks(x, c_frames, c_time, rope, batch, images)
        return self.unpatchify(self.final_layer(x[:, extra:], final), batch)

    def run_blocks(
        self,
        x: Tensor,
        c_frames: Tensor | None,
        c_time: Tensor | None,
        rope: tuple[Tensor, ...] | None,
        batch: int,
        images: int,
    ) -> Tensor:
        config = self.config
        for i, block in enumerate(self.blocks):
            temp = self.temp_embed if config.has_time_table and i == config.first_time_block else None
            if config.axis(i) == "space":
                x = block(x, c_frames)
            elif config.axis(i) == "time":
                video, still = block.to_time(x, batch, images, temp)
                x = block.to_frames(block(video, c_time, rope), still)
            else:
                x = block.over_both(x, c_frames, c_time, batch, images, temp, rope)
        return x

    def unpatchify(self, x: Tensor, batch: int) -> Tensor:
        side, p = int(x.shape[1] ** 0.5), self.patch_size
        x = rearrange(x, "(b f) (h w) (p q c) -> b f c (h p) (w q)", b=batch, h=side, p=p, q=p)
        if self.config.patch_frames > 1:
            x = self.upsample(x.transpose(1, 2)).transpose(1, 2)
        return x

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        cfg_scale: float = 7.0,
        use_fp16: bool = False,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """Guides a batch [cond ; uncond], both on x's first half; the variance channels stay unguided."""
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y=y, use_fp16=use_fp16, text_embedding=text_embedding)
        eps, rest = out.split([self.in_channels, out.shape[2] - self.in_channels], dim=2)
        cond, uncond = eps.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=2)


class LatteIMG(Latte):
    """The joint image-video Latte: n images follow the frames, share t (B,), and skip all attention over time."""

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
        """x (B, F+n, C, H, W); y_image: B tensors of n labels. Upstream fails in eval with n > 0, this does not."""
        label = self.embed_condition(y, text_embedding)
        stills = None
        if self.extras == 2 and use_image_num:
            assert y_image is not None
            stills = torch.stack([self.y_embedder(row, self.training) for row in y_image])
        step = self.t_embedder(t, use_fp16=use_fp16)
        return self.run(x.half() if use_fp16 else x, step, label, stills, use_image_num)


Latte_models = {name: partial(Latte, **kw) for name, kw in (PRESETS | TABLE_3_PRESETS).items()}
LatteIMG_models = {name.replace("Latte", "LatteIMG"): partial(LatteIMG, **kw) for name, kw in PRESETS.items()}
