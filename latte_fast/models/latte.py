"""Latte and LatteIMG, fast: upstream's constructor, call, keys and numbers; tokens stay (B, F, N, D) throughout."""

from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from latte_fast.config import PRESETS, TEXT_WIDTH, TEXT_WIDTH_JOINT, LatteConfig
from latte_fast.models.checks import check_inputs, check_keyword, check_labels
from latte_fast.modules.block import Block, FinalLayer, Pending, resolve
from latte_fast.modules.embed import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    space_table,
    stretch_space,
    stretch_time,
    time_table,
)
from latte_fast.modules.recompute import POLICIES, run_block

EXTEND = ("error", "sincos", "interpolate")


class Latte(nn.Module):
    """x (B, F, C, H, W), t (B,), y (B,) or text (B, 77, 768) -> (B, F, 2C, H, W).

    Args:
        recompute: what is made again in the backward instead of kept: "none"; "elementwise", norms and GELU (x, qkv,
            attention, both sublayer results and the pre-activation are kept); "mlp", fc1 too; "block", all but x.
        extend_time: what to do where F is not num_frames: "error" as upstream, "sincos" (the table continued) or
            "interpolate" (the stored table stretched).
        extend_space: the same where H, W are not input_size; any multiple of the patch, square or not.
        **kwargs: upstream's constructor keywords, the fields of LatteConfig.
    """

    text_width = TEXT_WIDTH
    # on the class, so that a patched upstream instance has them too
    recompute = "none"
    extend_time = "error"
    extend_space = "error"

    def __init__(
        self, *, recompute: str = "none", extend_time: str = "error", extend_space: str = "error", **kwargs: Any
    ):
        super().__init__()
        check_keyword("recompute", recompute, POLICIES)
        check_keyword("extend_time", extend_time, EXTEND)
        check_keyword("extend_space", extend_space, EXTEND)
        self.recompute, self.extend_time, self.extend_space = recompute, extend_time, extend_space
        self.config = config = LatteConfig(**kwargs)
        self.extras, self.in_channels, self.out_channels = config.extras, config.in_channels, config.out_channels
        self.learn_sigma, self.patch_size, self.num_heads = config.learn_sigma, config.patch_size, config.num_heads
        width = config.hidden_size
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
        """DiT's: xavier linear layers, N(0, 0.02) embedders, zero modulation and output, so a fresh model returns 0."""
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
        for zero in [*(b.adaLN_modulation[1] for b in self.blocks), self.final_layer.adaLN_modulation[1]]:
            nn.init.zeros_(zero.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    @property
    def dtype(self) -> torch.dtype:
        return self.x_embedder.proj.weight.dtype

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        text_embedding: Tensor | None = None,
        use_fp16: bool = False,
    ) -> Tensor:
        if use_fp16:
            x = x.to(torch.float16)
        check_inputs(self, x, t, y, text_embedding)
        c = self.t_embedder(t)  # (B, D)
        final = c
        if self.extras == 2:
            final = c = c + self.y_embedder(y, self.training)
        elif self.extras == 78:
            # upstream's final layer sees t alone
            c = c + self.embed_text(text_embedding)
        return self.run(x, c, c, final)

    def embed_text(self, text: Tensor | None) -> Tensor:
        assert text is not None
        return self.text_embedding_projection(text.flatten(1))

    def run(self, x: Tensor, c_space: Tensor, c_time: Tensor, final: Tensor, images: int = 0) -> Tensor:
        """Patches, blocks, head. A condition is (B, D), or (B*F, D) with one row a frame; n images skip time."""
        _, frames, _, height, width = x.shape
        rows, columns = height // self.patch_size, width // self.patch_size
        space_pos, time_pos = self.positions(frames - images, rows, columns)
        x = self.x_embedder(x) + space_pos.to(self.dtype)  # (B, F, N, D)
        silu_space = nn.functional.silu(c_space)
        silu_time = silu_space if c_time is c_space else nn.functional.silu(c_time)
        silu_final = silu_space if final is c_space else nn.functional.silu(final)
        pending: Pending | None = None
        for i, block in enumerate(self.blocks):
            if i % 2 == 0:
                x, pending = run_block(self.recompute, block, x, pending, silu_space, "space")
            else:
                pos = time_pos if i == 1 else None
                step = partial(run_block, self.recompute, block, silu_c=silu_time, axis="time", pos=pos)
                x, pending = self.step_beside_images(step, x, pending, images) if images else step(x, pending)
        out = self.final_layer(x, pending, silu_final)
        return self.unpatchify(out, rows, columns)

    def step_beside_images(
        self, step: partial, x: Tensor, pending: Pending | None, images: int
    ) -> tuple[Tensor, Pending | None]:
        """A time block on the video frames of (B, F+n, N, D); the n images pass by, their residual added."""
        batch, frames = x.shape[0], x.shape[1] - images
        if pending is None:
            video, still = resolve(*step(x[:, :frames], None)), x[:, frames:]
        else:
            y, gate, bias = pending
            per_frame = gate.unflatten(0, (batch, -1)).expand(batch, x.shape[1], -1)  # (B, F+n, D)
            gates = (per_frame[:, :frames].flatten(0, 1), per_frame[:, frames:].flatten(0, 1))
            video = resolve(*step(x[:, :frames], Pending(y[:, :frames], gates[0], bias)))
            still = resolve(x[:, frames:], Pending(y[:, frames:], gates[1], bias))
        return torch.cat([video, still], dim=1), None

    def positions(self, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """(1, N, D) and (F, 1, D): the stored tables, or extended by the model's rule."""
        space: Tensor = self.pos_embed
        time: Tensor = self.temp_embed
        side = int(space.shape[1] ** 0.5)
        if (rows, columns) != (side, side):
            if self.extend_space == "sincos":
                space = space_table(space.shape[2], rows, columns, space.device).to(space.dtype)
            else:
                space = stretch_space(space, rows, columns)
        if frames != time.shape[1]:
            if self.extend_time == "sincos":
                time = time_table(time.shape[2], frames, time.device).to(time.dtype)
            else:
                time = stretch_time(time, frames)
        return space, time.transpose(0, 1)

    def unpatchify(self, x: Tensor, rows: int, columns: int) -> Tensor:
        p = self.patch_size
        return rearrange(x, "b f (h w) (p q c) -> b f c (h p) (w q)", h=rows, w=columns, p=p, q=p)

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
        if x.shape[0] % 2:
            raise ValueError(f"forward_with_cfg: x must hold an even batch [cond ; uncond], got {x.shape[0]}")
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y=y, use_fp16=use_fp16, text_embedding=text_embedding)
        eps, rest = out.split([self.in_channels, out.shape[2] - self.in_channels], dim=2)
        cond, uncond = eps.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=2)


class LatteIMG(Latte):
    """The joint image-video Latte: n images follow the video frames, share t, and skip the temporal blocks."""

    text_width = TEXT_WIDTH_JOINT

    def __init__(self, *, extras: int = 2, **kwargs: Any):
        super().__init__(extras=extras, **kwargs)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        use_fp16: bool = False,
        y_image: list[Tensor] | Tensor | None = None,
        use_image_num: int = 0,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """x (B, F+n, C, H, W), the last n frames images; y_image their labels, B rows of n. Train and eval alike."""
        if use_fp16:
            x = x.to(torch.float16)
        check_inputs(self, x, t, y, text_embedding, images=use_image_num)
        c = self.t_embedder(t)  # (B, D)
        if self.extras == 2:
            labels = self.y_embedder(y, self.training)
            if use_image_num:
                check_labels(self, "y_image", y_image, (x.shape[0], use_image_num))
                assert y_image is not None
                stills = torch.stack([self.y_embedder(row, self.training) for row in y_image])  # (B, n, D)
                frames = labels[:, None].expand(-1, x.shape[1] - use_image_num, -1)
                c_frames = (c[:, None] + torch.cat([frames, stills], dim=1)).flatten(0, 1)  # (B*(F+n), D)
                return self.run(x, c_frames, c + labels, c_frames, use_image_num)
            c = c + labels
            return self.run(x, c, c, c)
        with_text = c + self.embed_text(text_embedding) if self.extras == 78 else c
        return self.run(x, with_text, with_text, c, use_image_num)


Latte_models = {name: partial(Latte, **keywords) for name, keywords in PRESETS.items()}
LatteIMG_models = {name.replace("Latte", "LatteIMG"): partial(LatteIMG, **kw) for name, kw in PRESETS.items()}
