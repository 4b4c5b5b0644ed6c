"""Latte and LatteIMG: upstream's constructor, call, parameter names and numbers, and the paper's other variants.

Tokens stay (B, F, N, D) from patches to output in every variant.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from latte_fast.config import PRESETS, TABLE_3_PRESETS, TEXT_WIDTH, TEXT_WIDTH_JOINT, LatteConfig
from latte_fast.cuda_graphs.few_clips import replayed_if_few
from latte_fast.models.checks import EXTEND, check_keyword
from latte_fast.models.latte.block import Block, BlockContext, FinalLayer, Rope
from latte_fast.models.latte.checks import check_guided, check_inputs, check_labels
from latte_fast.models.latte.initialize import initialize
from latte_fast.models.latte.parts import LATTE
from latte_fast.modules.caching import Caching
from latte_fast.modules.conv_transpose3d import ConvTranspose3d
from latte_fast.modules.embed import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    rope_tables,
    space_table,
    stretch_space,
    stretch_time,
    time_table,
)
from latte_fast.modules.hooks import is_changed
from latte_fast.modules.modulation import Conditioning, ModulationTable, of_block
from latte_fast.modules.parts import Fused
from latte_fast.modules.recompute import POLICIES, run_block
from latte_fast.modules.residual import Pending, resolve
from latte_fast.modules.sequence import Parallel, Shards, Sharing
from latte_fast.modules.stack_reuse import StackReuse, with_reuse

RunBlocks = Callable[..., tuple[Tensor, Pending | None]]
ORDERS = {0: "one", 1: "one", 2: "one", 3: "sequential", 4: "parallel"}


class Latte(Fused, Sharing, Caching, nn.Module):
    """x (B, F, C, H, W), t (B,) or (B, F), y (B,) or text (B, 77, 768) -> (B, F, 2C, H, W).

    With t (B, F) every frame has a time step of its own.

    Args:
        recompute: what the backward computes again instead of keeping: "none"; "elementwise", norms and GELU (x, qkv,
            attention, both sublayer results and the pre-activation are kept); "mlp", fc1 too; "block", all but x.
        extend_time: positions where F is not num_frames: "error" refuses as upstream does, "sincos" continues the
            table, "interpolate" stretches the stored table. Rotary positions take any F.
        extend_space: positions where H, W are not input_size, by the same rules; any multiple of the patch is taken.
        **kwargs: fields of LatteConfig: upstream's constructor keywords and the paper's design space.
    """

    text_width = TEXT_WIDTH
    config_type: type[LatteConfig] = LatteConfig
    # class attributes, so that an upstream model patched to this class has them too
    parts = LATTE
    recompute = "none"
    extend_time = "error"
    extend_space = "error"
    replays_few_clips = True  # of themselves, as CUDA graphs; see cuda_graphs/few_clips.py
    stack_reuse: StackReuse | None = None  # set for a run with reuse, or by enable_cache
    modulation_table: ModulationTable | None = None  # set for a run with a table; see modules/modulation.py
    parallel: Parallel | None = None  # set by enable_parallelism
    config: LatteConfig

    def __init__(
        self, *, recompute: str = "none", extend_time: str = "error", extend_space: str = "error", **kwargs: Any
    ):
        super().__init__()
        check_keyword("recompute", recompute, POLICIES)
        check_keyword("extend_time", extend_time, EXTEND)
        check_keyword("extend_space", extend_space, EXTEND)
        self.recompute, self.extend_time, self.extend_space = recompute, extend_time, extend_space
        self.config = config = self.config_type(**kwargs)
        self.extras, self.in_channels, self.out_channels = config.extras, config.in_channels, config.out_channels
        self.learn_sigma, self.patch_size, self.num_heads = config.learn_sigma, config.patch_size, config.num_heads
        width, plain = config.hidden_size, config.conditioning == "tokens"
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
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.out_channels, plain)
        if config.patch_frames > 1:
            window = (config.patch_frames, 1, 1)
            self.upsample = ConvTranspose3d(config.out_channels, config.out_channels, window, stride=window)
        initialize(self)

    def make_block(self, i: int) -> nn.Module:
        config = self.config
        order, plain = ORDERS[config.variant], config.conditioning == "tokens"
        return Block(config.hidden_size, config.num_heads, config.mlp_ratio, order, plain, config.heads_each)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.x_embedder.parameters()).dtype

    @replayed_if_few
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
        return self.run(x, *self.embed(t, y, text_embedding))

    def embed(self, t: Tensor, y: Tensor | None, text: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Embeds the step, (B, D) or (B, F, D), and the condition, (B, D); None where a table has all they are for."""
        if self.stack_reuse is not None:
            self.stack_reuse.begin(t)
        if self.modulation_table is not None:
            return None, None
        return self.t_embedder(t), self.embed_condition(y, text)

    def embed_condition(self, y: Tensor | None, text: Tensor | None) -> Tensor | None:
        """Embeds the class or the text, (B, D); None for an unconditional model."""
        if self.extras == 2:
            return self.y_embedder(y, self.training)
        if self.extras == 78:
            assert text is not None
            return self.text_embedding_projection(text.flatten(1))
        return None

    def run(
        self,
        x: Tensor,
        time: Tensor | None,
        label: Tensor | None,
        stills: Tensor | None = None,
        images: int = 0,
        run_blocks: RunBlocks | None = None,
    ) -> Tensor:
        """x (B, F+n, C, H, W) -> (B, F+n, 2C, H, W), the last n frames images.

        Args:
            x: clips.
            time: embedding of the time step, (B, D), or of each frame's, (B, F+n, D).
            label: embedding of the condition, (B, D).
            stills: embeddings of the images' labels, (B, n, D).
            images: number n of images.
            run_blocks: function that runs the blocks, by default the method of this name.
        """
        config, p = self.config, self.patch_size
        rows, columns = x.shape[3] // p, x.shape[4] // p
        batch, frames, extra = x.shape[0], x.shape[1] // config.patch_frames - images, config.extra_tokens
        shards = self.shards_of(x, time, frames, rows * columns + extra, images)
        if shards is not None:
            x = shards.own_frames(x, config.patch_frames)
        x = self.x_embedder(x) + self.space_positions(rows, columns).to(self.dtype)  # (B, F, N, D)
        silu_space: Conditioning = None
        silu_time: Conditioning = None
        silu_head: Conditioning = None
        if self.modulation_table is not None:
            assert stills is None
            silu_space = silu_time = silu_head = self.modulation_table.at(x.shape[0])
        elif extra:  # all-tokens conditioning
            assert time is not None
            tokens = self.tokens(time, label, stills, frames, images).to(x.dtype)
            x = torch.cat([tokens if shards is None else shards.own_frames(tokens), x], dim=2)
        else:  # S-AdaLN
            assert time is not None
            silu_space, silu_time, silu_head = self.conditions(time, label, stills, frames)  # (G, D) each
        pos, rope = self.time_positions(frames, x.device)  # (F, 1, D), or (F, K/2) twice
        if pos is not None and images and config.variant > 2:
            pos = pad(pos, (0, 0, 0, 0, 0, images))  # images have no position in time
        if shards is not None:
            silu_space, silu_head = shards.own_rows(silu_space, batch), shards.own_rows(silu_head, batch)
        run = with_reuse(self.stack_reuse, run_blocks or self.run_blocks)
        first = [x]
        del x  # the blocks free it, if nobody else names it
        x, pending = run(first.pop(), silu_space, silu_time, pos, rope, images, shards)  # (B, F, N, D)
        if extra:
            x = x[:, :, extra:]
            pending = None if pending is None else pending._replace(y=pending.y[:, :, extra:])
        if is_changed(self.final_layer):
            x, pending = resolve(x, pending), None
        x = self.final_layer(x, pending, of_block(silu_head, None))  # (B, F, N, P*P*2C)
        out = self.unpatchify(x, rows, columns)  # (B, F, 2C, H, W)
        return out if shards is None else shards.whole(out, config.patch_frames)

    def run_blocks(
        self,
        x: Tensor,
        silu_space: Conditioning,
        silu_time: Conditioning,
        pos: Tensor | None,
        rope: Rope | None,
        images: int,
        shards: Shards | None = None,
    ) -> tuple[Tensor, Pending | None]:
        config = self.config
        pending: Pending | None = None
        for i, block in enumerate(self.blocks):
            axis = config.axis(i)
            if shards is not None:
                x, pending = shards.along(config.stays_in_time(i), x, pending)
            context = self.context_of(i, pos, rope, images, shards)
            over_time = silu_time if shards is None else shards.own_video(silu_time, len(x))
            silu_c = of_block(over_time if axis == "time" else silu_space, block)
            x, pending = self.run_one(block, x, pending, silu_c, context)
        return (x, pending) if shards is None else shards.along(False, x, pending)

    def context_of(
        self, i: int, pos: Tensor | None, rope: Rope | None, images: int, shards: Shards | None
    ) -> BlockContext:
        """Returns what block i needs besides its tokens and condition."""
        pos = pos if i == self.config.first_time_block else None
        if shards is not None:
            pos, images = pos if shards.away else shards.own_positions(pos), shards.images
            shards = None if shards.away else shards
        return BlockContext(self.config.axis(i), pos, rope, images, shards=shards)

    def run_one(
        self, block: nn.Module, x: Tensor, pending: Pending | None, silu_c: Any, context: BlockContext
    ) -> tuple[Tensor, Pending | None]:
        if context.axis == "time" and context.images:
            return self.beside_images(block, x, pending, silu_c, context), None
        return run_block(self.recompute, block, x, pending, silu_c, context)  # (B, F, N, D)

    def conditions(
        self, time: Tensor, label: Tensor | None, stills: Tensor | None, frames: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns SiLU(condition) for space, time, head: (B, D), or a row a frame where its step or label is its own.

        Those are (B*(F+n), D) over space and in the head; over time they are (B*F, D), of the steps alone.
        """
        own_steps = time.dim() == 3
        if stills is None and not own_steps:
            clip = silu(time if label is None else time + label)
            # upstream conditions its head on the class, but not on the text
            return clip, clip, silu(time) if self.extras == 78 else clip
        rows = time if own_steps else time[:, None]
        if label is not None:
            labels = label[:, None]
            if stills is not None:
                labels = torch.cat([labels.expand(-1, frames, -1), stills], dim=1)  # (B, F+n, D)
            rows = rows + labels
        rows = silu(rows)  # (B, F+n, D)
        per_frame = rows.flatten(0, 1)
        over_time = rows[:, :frames].flatten(0, 1) if own_steps else silu(time if label is None else time + label)
        head = silu(time).flatten(0, 1) if self.extras == 78 and own_steps else per_frame
        return per_frame, over_time, head

    def tokens(self, time: Tensor, label: Tensor | None, stills: Tensor | None, frames: int, images: int) -> Tensor:
        """Returns the condition's tokens (B, F+n, 1 or 2, D): the time step's, then the class's or text's."""
        out = [time if time.dim() == 3 else time[:, None].expand(-1, frames + images, -1)]
        if label is not None:
            labels = label[:, None].expand(-1, frames if stills is not None else frames + images, -1)
            out.append(labels if stills is None else torch.cat([labels, stills], dim=1))
        return torch.stack(out, dim=2)

    def beside_images(
        self, block: nn.Module, x: Tensor, pending: Pending | None, silu_c: Any, context: BlockContext
    ) -> Tensor:
        """Applies a time block to the video frames of (B, F+n, N, D); the n images only get their pending residual."""
        batch, frames = x.shape[0], x.shape[1] - context.images
        video, still = pending, pending
        if pending is not None:
            y, gate, bias = pending
            if gate.shape[0] > 1:
                per_frame = gate.unflatten(0, (batch, -1)).expand(batch, x.shape[1], -1)  # (B, F+n, D)
                gates = (per_frame[:, :frames].flatten(0, 1), per_frame[:, frames:].flatten(0, 1))
            else:
                gates = (gate, gate)
            video, still = Pending(y[:, :frames], gates[0], bias), Pending(y[:, frames:], gates[1], bias)
        after = resolve(*run_block(self.recompute, block, x[:, :frames], video, silu_c, context._replace(images=0)))
        return torch.cat([after, resolve(x[:, frames:], still)], dim=1)

    def space_positions(self, rows: int, columns: int) -> Tensor:
        """Returns positions (1, N, D): the stored table, or for another grid the one that `extend_space` asks for."""
        table: Tensor = self.pos_embed
        side = int(table.shape[1] ** 0.5)
        if (rows, columns) == (side, side):
            return table
        if self.extend_space == "sincos":
            return space_table(table.shape[2], rows, columns, table.device).to(table.dtype)
        return stretch_space(table, rows, columns)

    def time_positions(self, frames: int, device: torch.device) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Returns absolute positions (F, 1, D), which `extend_time` fits to another F, or rotary (cos, sin)."""
        if self.config.variant == 0:
            return None, None
        if self.config.time_pos == "rope":
            return None, rope_tables(frames, self.config.head_width, device)
        table: Tensor = self.temp_embed
        if frames != table.shape[1]:
            if self.extend_time == "sincos":
                table = time_table(table.shape[2], frames, table.device).to(table.dtype)
            else:
                table = stretch_time(table, frames)
        return table.transpose(0, 1), None

    def unpatchify(self, x: Tensor, rows: int, columns: int) -> Tensor:
        p = self.patch_size
        if self.config.patch_frames == 1:
            return rearrange(x, "b f (h w) (p q c) -> b f c (h p) (w q)", h=rows, w=columns, p=p, q=p)
        latent = rearrange(x, "b f (h w) (p q c) -> b c f (h p) (w q)", h=rows, w=columns, p=p, q=p)
        return self.upsample(latent).transpose(1, 2)  # (B, F, C, H, W)

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
        check_guided(x, cfg_scale)
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y=y, use_fp16=use_fp16, text_embedding=text_embedding)
        return self.guide(out, cfg_scale)

    def guide(self, out: Tensor, scale: float) -> Tensor:
        eps, rest = out.split([self.in_channels, out.shape[2] - self.in_channels], dim=2)
        cond, uncond = eps.chunk(2)
        guided = uncond + scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=2)


class LatteIMG(Latte):
    """The joint image-video Latte: n images follow the video frames and skip all attention over time.

    They share t (B,), or have steps of their own in t (B, F+n).
    """

    text_width = TEXT_WIDTH_JOINT

    def __init__(self, *, extras: int = 2, **kwargs: Any):
        if kwargs.get("patch_frames", 1) > 1:
            raise ValueError(
                f"{type(self).__name__}: patch_frames must be 1, got {kwargs['patch_frames']}: "
                "an image fills no patch of frames"
            )
        super().__init__(extras=extras, **kwargs)

    @replayed_if_few
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
        """x (B, F+n, C, H, W), the last n frames images, with labels y_image (B, n); the same in train and eval."""
        return self.run(*self.joint_inputs(x, t, y, use_fp16, y_image, use_image_num, text_embedding))

    def joint_inputs(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        use_fp16: bool,
        y_image: list[Tensor] | Tensor | None,
        images: int,
        text: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, int]:
        """Checks inputs; returns x, the embeddings of time, condition and images' labels, and the number of images."""
        if use_fp16:
            x = x.to(torch.float16)
        check_inputs(self, x, t, y, text, images=images)
        time, label = self.embed(t, y, text)
        return x, time, label, self.embed_stills(x, y_image, images), images

    def embed_stills(self, x: Tensor, y_image: list[Tensor] | Tensor | None, images: int) -> Tensor | None:
        """Embeds the labels (B, n) of the images beside each clip, (B, n, D); None where there are none."""
        if self.extras != 2 or not images:
            return None
        check_labels(self, "y_image", y_image, (x.shape[0], images))
        assert y_image is not None
        return torch.stack([self.y_embedder(row, self.training) for row in y_image])


class _Registry(dict):
    """Constructors by preset name; the KeyError of an unknown name lists the known ones."""

    def __missing__(self, name: object) -> Any:
        raise KeyError(f"preset must be one of {', '.join(self)}, got {name!r}")


Latte_models = _Registry({name: partial(Latte, **kw) for name, kw in (PRESETS | TABLE_3_PRESETS).items()})
LatteIMG_models = _Registry(
    {name.replace("Latte", "LatteIMG"): partial(LatteIMG, **kw) for name, kw in PRESETS.items()}
)
