"""The model in a run's configuration: a preset or its sizes, for every family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latte_fast.config import PRESETS
from latte_fast.flex_config import SIDES


def require(ok: bool, name: str, rule: str, value: Any) -> None:
    if not ok:
        raise ValueError(f"train: {name} must be {rule}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """The model: a preset, or its sizes; channels, latent side, frames and classes come from the data.

    Data with captions trains the text-to-video model, which has only variant 1; a `pretrained` folder sets its sizes.

    Args:
        preset: Latte-{S,B,L,XL}/{2,4,8}; the next four options override its sizes.
        patch_size: side of a patch in latent pixels.
        hidden_size: width of the transformer.
        depth: number of blocks, spatial and temporal together; the published text-to-video model has 56. FlexDiT's
            model of captions has spatial ones alone.
        num_heads: number of attention heads.
        mlp_ratio: hidden width of the MLP as a multiple of hidden_size.
        class_dropout_prob: probability of dropping a label or caption, for guidance; with 0 there is no null class.
        learn_sigma: whether the model predicts its variance too.
        variant: variant 1 to 4 of the paper, the order of attention over space and time; 0 is DiT, space alone.
        patch_frames: number of frames in a patch.
        conditioning: conditioning by modulation (adaln) or by extra tokens.
        time_pos: positions in time: a sin-cos table added once (absolute), or rotary (rope).
        full_attention: whether variant 4 has all heads in both of its attentions.
        layout: FlexDiT's layout, a letter a block (P pooling, G generating, S sparse, R recovering, D dense), the name
            of a layout of this depth, or auto; by default all blocks are Latte's own.
        sides: sides of FlexDiT's sparse grid, from noise to sample, on a square grid of patches.
        recompute: what the backward recomputes to save memory: nothing, norms and GELU, also fc1, or whole blocks.
    """

    preset: str | None = None
    patch_size: int | None = None
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    learn_sigma: bool = True
    variant: int = 1
    patch_frames: int = 1
    conditioning: Literal["adaln", "tokens"] = "adaln"
    time_pos: Literal["absolute", "rope"] = "absolute"
    full_attention: bool = False
    layout: str | None = None
    sides: tuple[int, ...] = SIDES
    recompute: Literal["none", "elementwise", "mlp", "block"] = "none"

    def sizes(self, known: Mapping[str, int]) -> dict[str, Any]:
        """Returns the four sizes: from the options, else from the preset, else from `known`."""
        presets = ", ".join(PRESETS)
        require(self.preset is None or self.preset in PRESETS, "model.preset", f"one of {presets}", self.preset)
        sizes = dict(known) | (dict(PRESETS[self.preset]) if self.preset else {})
        for name in ("patch_size", "hidden_size", "depth", "num_heads"):
            value = getattr(self, name)
            if value is not None:
                sizes[name] = value
            require(name in sizes, f"model.{name}", "given where model.preset is not", value)
        return sizes
