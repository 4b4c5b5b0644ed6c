"""The oracle of the FlexDiT authors' image model, by their formulas and under their keys.

Attention with equal weights is a product with an N x N matrix, upsampling is torch's and comes before W1, as theirs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latte_fast.config import LatteConfig
from latte_fast.reference.blocks import Block, FinalLayer
from latte_fast.reference.embed import LabelEmbedder, PatchEmbed, TimestepEmbedder, space_table
from latte_fast.reference.flex_latte import CrossAttention, PoolingAttention
from latte_fast.reference.functional import gate_residual_ref, norm_modulate_ref


class CrossBlock(Block):
    """A block whose queries come from x, and whose keys and values come from other tokens."""

    def __init__(self, config: LatteConfig, merges: bool):
        super().__init__(config)
        width = config.hidden_size
        self.attn = CrossAttention(width, config.num_heads)
        if merges:
            self.merged_layer1 = nn.Linear(width, width)
            self.merged_layer2 = nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor, keys: Tensor) -> Tensor:  # type: ignore[override]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        h = self.attn(norm_modulate_ref(x, shift_a, scale_a), norm_modulate_ref(keys, shift_a, scale_a))
        x = gate_residual_ref(x, h, gate_a)
        return gate_residual_ref(x, self.mlp(norm_modulate_ref(x, shift_m, scale_m)), gate_m)


class Dumbbell(nn.Module):
    """A module of merging, semantic, recovering and normal blocks: G, S, R and D."""

    def __init__(self, config: LatteConfig, group: Sequence[int]):
        super().__init__()
        merge, semantic, recover, normal = group
        self.token_merge_blocks = nn.ModuleList(CrossBlock(config, merges=False) for _ in range(merge))
        self.semantic_blocks = nn.ModuleList(Block(config) for _ in range(semantic))
        self.token_recover_blocks = nn.ModuleList(CrossBlock(config, merges=True) for _ in range(recover))
        self.normal_blocks = nn.ModuleList(Block(config) for _ in range(normal))

    def forward(self, x: Tensor, c: Tensor, side: int) -> Tensor:
        grid = int(x.shape[1] ** 0.5)
        picture = rearrange(x, "b (h w) d -> b d h w", h=grid)
        s = rearrange(F.adaptive_avg_pool2d(picture, side), "b d h w -> b (h w) d")
        for block in self.token_merge_blocks:
            s = block(s, c, x)
        for block in self.semantic_blocks:
            s = block(s, c)
        raised = F.interpolate(rearrange(s, "b (h w) d -> b d h w", h=side), size=grid, mode="nearest")
        raised = rearrange(raised, "b d h w -> b (h w) d")
        for block in self.token_recover_blocks:
            x = block(block.merged_layer1(raised) + block.merged_layer2(x), c, s)
        for block in self.normal_blocks:
            x = block(x, c)
        return x


class SparseDiT(nn.Module):
    """x (B, C, H, W), t (B,), y (B,), the side of the sparse grid -> (B, 2C, H, W).

    Args:
        config: sizes of a DiT: a LatteConfig of variant 0 with classes.
        pool: number of pooling blocks at the bottom.
        groups: of each module its numbers of merging, semantic, recovering and normal blocks.
        top: number of normal blocks at the top.
    """

    def __init__(self, config: LatteConfig, pool: int, groups: Sequence[Sequence[int]], top: int):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, width, 1)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width, config.class_dropout_prob)
        self.pos_embed = nn.Parameter(space_table(width, config.grid, config.grid), requires_grad=False)
        self.poolingformer_blocks = nn.ModuleList(Block(config) for _ in range(pool))
        for block in self.poolingformer_blocks:
            block.attn = PoolingAttention(width)
        self.dumbbell_blocks = nn.ModuleList(Dumbbell(config, group) for group in groups)
        self.normal_blocks = nn.ModuleList(Block(config) for _ in range(top))
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, side: int = 8) -> Tensor:
        x = self.x_embedder(x[:, None]) + self.pos_embed  # (b, n, d)
        c = self.t_embedder(t) + self.y_embedder(y, False)
        for block in self.poolingformer_blocks:
            x = block(x, c)
        for block in self.dumbbell_blocks:
            x = block(x, c, side)
        for block in self.normal_blocks:
            x = block(x, c)
        x = self.final_layer(x, c)
        grid, p = self.config.grid, self.config.patch_size
        return torch.einsum("nhwpqc->nchpwq", x.unflatten(1, (grid, grid)).unflatten(3, (p, p, -1))).reshape(
            len(x), -1, grid * p, grid * p
        )
