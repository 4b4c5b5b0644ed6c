"""The oracle of FlexDiT on the space half of the text-to-video model, in the layouts of reference/latte_t2v.py."""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from latte_fast.flex_config import FlexT2VConfig, sparse_grid
from latte_fast.reference.flex_latte import Grid, pool_tokens_ref, upsample_tokens_ref
from latte_fast.reference.functional import gate_residual_ref, norm_modulate_ref
from latte_fast.reference.latte_t2v import Attention, Block, Caption, Timestep, space_table


class PoolingAttention(nn.Module):
    def __init__(self, config: FlexT2VConfig):
        super().__init__()
        self.to_v = nn.Linear(config.width, config.width, bias=config.attention_bias)
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width), nn.Dropout(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        v = self.to_v(x)
        uniform = torch.full((x.shape[1], x.shape[1]), 1 / x.shape[1], dtype=x.dtype, device=x.device)
        return self.to_out[0](uniform @ v)


class FlexBlock(Block):
    """A space block of any kind; G and R read keys and values from other tokens."""

    def __init__(self, config: FlexT2VConfig, kind: str):
        super().__init__(config, True)
        self.attn1 = PoolingAttention(config) if kind == "P" else Attention(config)  # type: ignore[assignment]
        if kind == "R":
            self.merged_layer1 = nn.Linear(config.width, config.width)
            self.merged_layer2 = nn.Linear(config.width, config.width)

    def between(self, x: Tensor, keys: Tensor, t: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        modulation = self.scale_shift_table + t.unflatten(1, (6, -1))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(1)
        h, keys = (norm_modulate_ref(z, shift_a, scale_a, self.eps) for z in (x, keys))
        x = gate_residual_ref(x, self.attn1(h, keys), gate_a)
        x = x + self.attn2(x, text, mask)
        return gate_residual_ref(x, self.ff(norm_modulate_ref(x, shift_m, scale_m, self.eps)), gate_m)

    def merge(self, x: Tensor, dense: Tensor, grid: Grid, sparse: Grid) -> Tensor:
        return self.merged_layer1(upsample_tokens_ref(x, grid, sparse)) + self.merged_layer2(dense)


class FlexLatteT2V(nn.Module):
    """x (B, C, F, H, W), t (B,) or (B, F), text (B, T, channels), the sparse grid's side -> (B, C_out, F, H, W)."""

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.config = config = FlexT2VConfig(**kwargs)
        width, p = config.width, config.patch_size
        self.pos_embed = nn.ModuleDict({"proj": nn.Conv2d(config.in_channels, width, p, stride=p)})
        self.transformer_blocks = nn.ModuleList(FlexBlock(config, kind) for kind in config.kinds)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, p * p * config.channels_out)
        self.adaln_single = Timestep(width)
        self.caption_projection = Caption(config.caption_channels, width)

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor | None = None, side: int | None = None
    ) -> Tensor:
        config, p = self.config, self.config.patch_size
        batch, _, frames, height, width = x.shape
        grid = (height // p, width // p)
        sparse = sparse_grid(*grid, config.sides[-1] if side is None else side)
        x = self.pos_embed["proj"](rearrange(x, "b c f h w -> (b f) c h w")).flatten(2).transpose(1, 2)
        x = x + space_table(config, *grid).to(x)
        each = 1 if t.dim() == 2 else frames  # frames that share a step
        steps, e = (repeat(z, "b d -> (b f) d", f=each) for z in self.adaln_single(t.flatten(), x.dtype))
        text = repeat(self.caption_projection(text), "b n d -> (b f) n d", f=frames)
        mask = None if mask is None else repeat(mask.bool(), "b n -> (b f) n", f=frames)
        dense: Tensor | None = None
        for kind, block in zip(config.kinds, self.transformer_blocks, strict=True):
            if kind == "G":
                if dense is None:
                    dense, x = x, pool_tokens_ref(x, grid, sparse)
                x = block.between(x, dense, steps, text, mask)
            elif kind == "R":
                assert dense is not None
                x, dense = block.between(block.merge(x, dense, grid, sparse), x, steps, text, mask), None
            else:
                x = block(x, steps, text, mask)
        shift, scale = (self.scale_shift_table + e[:, None]).unbind(1)
        x = self.proj_out(norm_modulate_ref(x, shift, scale))
        return rearrange(x, "(b f) (h w) (p q c) -> b c f (h p) (w q)", b=batch, h=grid[0], w=grid[1], p=p, q=p)
