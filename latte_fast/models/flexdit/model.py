"""FlexLatte: Latte whose middle blocks run on a sparser grid of tokens, the sparser the noisier the clip is.

Tokens stay (B, F, N, D); those of the sparse grid are a tensor (B, F, M, D) of their own.
"""

from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.cuda_graphs.few_clips import replayed_if_few
from latte_fast.flex_config import FlexLatteConfig, sparse_grid
from latte_fast.models.flexdit.block import GenerateBlock, ModuleContext, PoolBlock, RecoverBlock
from latte_fast.models.flexdit.density import Grid, check_side, pool_tokens
from latte_fast.models.latte.block import Rope
from latte_fast.models.latte.checks import check_guided, check_inputs
from latte_fast.models.latte.model import Latte, LatteIMG, RunBlocks
from latte_fast.modules.modulation import Conditioning, of_block
from latte_fast.modules.recompute import run_block
from latte_fast.modules.residual import Pending, resolve
from latte_fast.modules.sequence import Shards

BLOCKS = {"P": PoolBlock, "G": GenerateBlock, "R": RecoverBlock}


class AtDensity:
    """The blocks of a FlexLatte with a sparse grid, called as Latte.run_blocks is: a method keeps no argument alive."""

    def __init__(self, model: "FlexLatte", grid: Grid, sparse: Grid):
        self.model, self.grid, self.sparse = model, grid, sparse

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
        """Runs the blocks of the layout: dense ones on the grid's N tokens, those of a module on the sparse M."""
        model, config = self.model, self.model.config
        pending: Pending | None = None
        module: ModuleContext | None = None  # from a module's first G to its R
        for i, (kind, block) in enumerate(zip(config.kinds, model.blocks, strict=True)):
            if shards is not None:
                x, pending = shards.along(config.stays_in_time(i), x, pending)
            if kind == "G" and module is None:
                module = ModuleContext([resolve(x, pending)], self.grid, self.sparse)
                x, pending = pool_tokens(module.dense[0], self.grid, self.sparse), None  # (B, F, M, D)
            if kind in "GR":
                x, pending = run_block(model.recompute, block, x, pending, of_block(silu_space, block), module)
                module = None if kind == "R" else module
                continue
            context = model.context_of(i, pos, rope, images, shards)
            over_time = silu_time if shards is None else shards.own_video(silu_time, len(x))
            silu_c = of_block(over_time if context.axis == "time" else silu_space, block)
            x, pending = model.run_one(block, x, pending, silu_c, context)
        return (x, pending) if shards is None else shards.along(False, x, pending)


class FlexLatte(Latte):
    """x (B, F, C, H, W), t (B,) or (B, F), y (B,) or text (B, 77, 768), the sparse grid's side -> (B, F, 2C, H, W).

    Args:
        **kwargs: fields of FlexLatteConfig, `layout` and `sides` among them, and Latte's `recompute`, `extend_time` and
            `extend_space`.
    """

    config_type = FlexLatteConfig
    config: FlexLatteConfig

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for block in self.blocks:
            if isinstance(block, RecoverBlock):
                block.start()

    def make_block(self, i: int) -> nn.Module:
        config = self.config
        kind = BLOCKS.get(config.kinds[i])
        if kind is None:
            return super().make_block(i)
        return kind(config.hidden_size, config.num_heads, config.mlp_ratio)

    @replayed_if_few
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        side: int | None = None,
        text_embedding: Tensor | None = None,
        use_fp16: bool = False,
    ) -> Tensor:
        """Predicts noise and variance; `side`, a number of the host, is by default the largest of the sides."""
        if use_fp16:
            x = x.to(torch.float16)
        check_inputs(self, x, t, y, text_embedding)
        return self.run(x, *self.embed(t, y, text_embedding), run_blocks=self.at_density(x, side))

    def at_density(self, x: Tensor, side: int | None) -> RunBlocks:
        """Returns the call of all blocks with the sparse grid of this side."""
        check_side(side)
        grid = x.shape[3] // self.patch_size, x.shape[4] // self.patch_size
        sparse = sparse_grid(*grid, self.config.sides[-1] if side is None else side)
        return AtDensity(self, grid, sparse).run_blocks

    def forward_with_cfg(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        cfg_scale: float = 7.0,
        side: int | None = None,
        use_fp16: bool = False,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """Guides a batch [cond ; uncond], both on x's first half; the variance channels stay unguided."""
        check_guided(x, cfg_scale)
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y=y, side=side, text_embedding=text_embedding, use_fp16=use_fp16)
        return self.guide(out, cfg_scale)


class FlexLatteIMG(FlexLatte, LatteIMG):
    """FlexLatte for joint training: n images follow the video frames and skip all attention over time."""

    @replayed_if_few
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        side: int | None = None,
        use_fp16: bool = False,
        y_image: list[Tensor] | Tensor | None = None,
        use_image_num: int = 0,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """x (B, F+n, C, H, W), the last n frames images, with labels y_image (B, n); the same in train and eval."""
        inputs = self.joint_inputs(x, t, y, use_fp16, y_image, use_image_num, text_embedding)
        return self.run(*inputs, self.at_density(x, side))
