"""FlexLatteT2V: FlexDiT on the space half of the text-to-video model, which is PixArt-alpha, a model of images."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from latte_fast.flex_config import FlexT2VConfig, sparse_grid
from latte_fast.models.flexdit.density import Grid, check_side, pool_tokens
from latte_fast.models.flexdit.text_block import FlexContextT2V, GenerateBlockT2V, PoolBlockT2V, RecoverBlockT2V
from latte_fast.models.latte_t2v.block import BlockContextT2V, BlockT2V
from latte_fast.models.latte_t2v.checks import check_inputs, checked_time, text_mask
from latte_fast.models.latte_t2v.model import LatteT2V
from latte_fast.modules.modulation import Conditioning, of_block
from latte_fast.modules.recompute import run_block
from latte_fast.modules.residual import Pending, resolve
from latte_fast.modules.sequence import Shards

BLOCKS: dict[str, type[BlockT2V]] = {"P": PoolBlockT2V, "G": GenerateBlockT2V, "R": RecoverBlockT2V}


class FlexLatteT2V(LatteT2V):
    """x (B, C, F, H, W), t (B,) or (B, F), text (B, T, caption_channels), the sparse grid's side -> (B, 2C, F, H, W).

    The F frames are independent images of one caption.

    Args:
        **kwargs: fields of FlexT2VConfig, `layout` and `sides` among them, and LatteT2V's `recompute`.
    """

    config_type = FlexT2VConfig
    folder_classes = ("FlexLatteT2V",)
    config: FlexT2VConfig

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.extend_time = "sincos"  # without time blocks any F will do
        self.start_modules()

    def start_modules(self) -> None:
        """Makes every module start as a skip: its dense input passes through as it is."""
        for block in self.transformer_blocks:
            if isinstance(block, RecoverBlockT2V):
                block.start()

    def make_blocks(self, space: bool) -> list[nn.Module]:
        if not space:
            return []
        config = self.config
        args = (config.width, config.num_attention_heads, config.attention_bias, config.norm_eps, space)
        return [BLOCKS.get(kind, BlockT2V)(*args) for kind in config.kinds]

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.transformer_blocks)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        side: int | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Predicts noise and variance; `side`, a number of the host, is by default the largest of the sides.

        Args:
            hidden_states: (B, C, F, H, W) latents.
            timestep: (B,), (1,) or a number, or (B, F).
            encoder_hidden_states: (B, T, caption_channels).
            encoder_attention_mask: (B, T), 1 where a token counts, or the bias (B, 1, T), as LatteT2V takes it.
            side: side of the sparse grid on a square grid.
            return_dict: whether to return an object with `.sample` instead of a tuple.
        """
        x, text = hidden_states, encoder_hidden_states
        check_side(side)
        check_inputs(self, x, text, 0, return_dict)
        assert text is not None
        p = self.config.patch_size
        sparse = sparse_grid(x.shape[3] // p, x.shape[4] // p, self.config.sides[-1] if side is None else side)
        mask = text_mask(encoder_attention_mask, text, 0)
        layout = partial(self.run_layout, sparse=sparse)
        sample = self.run(x, checked_time(timestep, x), text, mask, False, 0, layout)
        return self.output(sample) if return_dict else (sample,)

    def run_layout(
        self,
        x: Tensor,
        modulation: Conditioning,
        space: BlockContextT2V,
        temporal: bool,
        grid: Grid,
        shards: Shards | None = None,
        *,
        sparse: Grid,
    ) -> tuple[Tensor, Pending | None]:
        """Runs the blocks of the layout: dense ones on the grid's N tokens, those of a module on the sparse M."""
        assert space.text is not None
        pending: Pending | None = None
        module: FlexContextT2V | None = None  # from a module's first G to its R
        for kind, block in zip(self.config.kinds, self.transformer_blocks, strict=True):
            if kind == "G" and module is None:
                module = FlexContextT2V([resolve(x, pending)], grid, sparse, space.text)
                x, pending = pool_tokens(module.dense[0], grid, sparse), None  # (B, F, M, D)
            context = module if kind in "GR" else space
            x, pending = run_block(self.policy, block, x, pending, of_block(modulation, block), context)
            module = None if kind == "R" else module
        return x, pending
