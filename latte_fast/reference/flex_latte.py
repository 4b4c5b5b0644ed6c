"""The oracle of FlexDiT on Latte, by the paper's formulas: nothing is moved before the mean or the upsampling.

Layouts are the oracle's own, as in reference/latte.py: space blocks see ((b f), n, d), time blocks ((b n), f, d).
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latte_fast.config import TEXT_WIDTH_JOINT
from latte_fast.flex_config import FlexLatteConfig, sparse_grid
from latte_fast.reference.blocks import Block
from latte_fast.reference.functional import attention_ref
from latte_fast.reference.latte import Latte

Grid = tuple[int, int]


def pool_tokens_ref(x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
    """Averages x (rows, N, D) on a grid -> (rows, M, D) by adaptive_avg_pool2d."""
    picture = rearrange(x, "b (h w) d -> b d h w", h=grid[0])
    return rearrange(F.adaptive_avg_pool2d(picture, sparse), "b d h w -> b (h w) d")


def upsample_tokens_ref(x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
    """Repeats x (rows, M, D) -> (rows, N, D): token i of n takes source floor(i * s / n)."""
    picture = rearrange(x, "b (h w) d -> b h w d", h=sparse[0])
    lines = torch.stack([picture[:, i * sparse[0] // grid[0]] for i in range(grid[0])], dim=1)
    whole = torch.stack([lines[:, :, j * sparse[1] // grid[1]] for j in range(grid[1])], dim=2)
    return rearrange(whole, "b h w d -> b (h w) d")


class PoolingAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Any = None) -> Tensor:
        v = self.v(x)
        uniform = torch.full((x.shape[1], x.shape[1]), 1 / x.shape[1], dtype=x.dtype, device=x.device)
        return self.proj(uniform @ v)


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        q = rearrange(self.q(x), "b n (h k) -> b h n k", h=self.num_heads)
        k, v = rearrange(self.kv(keys), "b n (two h k) -> two b h n k", two=2, h=self.num_heads)
        return self.proj(rearrange(attention_ref(q, k, v, q.shape[-1] ** -0.5), "b h n k -> b n (h k)"))


class FlexBlock(Block):
    """A block of one of the kinds P, G and R."""

    def __init__(self, config: FlexLatteConfig, kind: str):
        super().__init__(config)
        width = config.hidden_size
        self.attn = PoolingAttention(width) if kind == "P" else CrossAttention(width, config.num_heads)
        if kind == "R":
            self.merged_layer1 = nn.Linear(width, width)
            self.merged_layer2 = nn.Linear(width, width)

    def generate(self, x: Tensor, dense: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        y = self.attn(self.modulate(x, "norm1", shift_a, scale_a), self.modulate(dense, "norm1", shift_a, scale_a))
        x = self.add(x, y, gate_a)
        return self.add(x, self.mlp(self.modulate(x, "norm2", shift_m, scale_m)), gate_m)

    def recover(self, x: Tensor, dense: Tensor, c: Tensor, grid: Grid, sparse: Grid) -> Tensor:
        merged = self.merged_layer1(upsample_tokens_ref(x, grid, sparse)) + self.merged_layer2(dense)
        return self.generate(merged, x, c)


class FlexLatte(Latte):
    """x (B, F, C, H, W), t (B,) or (B, F), y (B,), the side of the sparse grid -> (B, F, 2C, H, W)."""

    config_type = FlexLatteConfig
    config: FlexLatteConfig

    def make_block(self, i: int) -> nn.Module:
        kind = self.config.kinds[i]
        return FlexBlock(self.config, kind) if kind in "PGR" else Block(self.config)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        for block in self.blocks:
            if hasattr(block, "merged_layer1"):
                nn.init.zeros_(block.merged_layer1.weight)
                nn.init.eye_(block.merged_layer2.weight)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        side: int | None = None,
        text_embedding: Tensor | None = None,
        y_image: list[Tensor] | None = None,
        use_image_num: int = 0,
    ) -> Tensor:
        self.side = self.config.sides[-1] if side is None else side
        stills = None
        if self.extras == 2 and use_image_num:
            assert y_image is not None
            stills = torch.stack([self.y_embedder(row, self.training) for row in y_image])
        label = self.embed_condition(y, text_embedding)
        return self.run(x, self.t_embedder(t), label, stills, use_image_num)

    def run_blocks(
        self, x: Tensor, c_frames: Any, c_time: Any, rope: tuple[Tensor, ...] | None, batch: int, images: int
    ) -> Tensor:
        config = self.config
        grid = (config.grid, config.grid)
        sparse = sparse_grid(*grid, self.side)
        c_time = c_time.unflatten(0, (batch, grid[0] * grid[1], -1))  # (b, n, f or 1, d), the same at every n
        dense: Tensor | None = None
        for i, (kind, block) in enumerate(zip(config.kinds, self.blocks, strict=True)):
            temp = self.temp_embed if config.has_time_table and i == config.first_time_block else None
            if kind == "G":
                if dense is None:
                    dense, x = x, pool_tokens_ref(x, grid, sparse)
                x = block.generate(x, dense, c_frames)
            elif kind == "R":
                assert dense is not None
                x, dense = block.recover(x, dense, c_frames, grid, sparse), None
            elif config.axis(i) == "space":
                x = block(x, c_frames)
            else:
                video, still = block.to_time(x, batch, images, temp)
                x = block.to_frames(block(video, c_time[:, : x.shape[1]].flatten(0, 2), rope), still)
        return x


class FlexLatteIMG(FlexLatte):
    """The joint image-video model: n images follow the frames, share t, and skip all attention over time."""

    text_width = TEXT_WIDTH_JOINT
