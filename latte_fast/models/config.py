"""The `model` section of a run's configuration: a preset or explicit sizes, for every family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latte_fast.config import PRESETS


def require(ok: bool, name: str, rule: str, value: Any) -> None:
    if not ok:
        raise ValueError(f"train: {name} must be {rule}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """The model: a preset or explicit sizes; channels, latent side, frames and classes come from the data.

    Data with captions trains the text-to-video model, which has variant 1 only; a pretrained folder can give its sizes.

    Args:
        preset: Latte-{S,B,L,XL}/{2,4,8}; the four sizes below override its own.
        patch_size: side of a patch in latent pixels.
        hidden_size: width of a token.
        depth: number of blocks, spatial and temporal together; the published text-to-video model has 56.
        num_heads: number of attention heads.
        mlp_ratio: hidden width of the MLP over the width of a token.
        class_dropout_prob: probability of dropping a label or caption, for guidance; 0 leaves no null class.
        learn_sigma: whether the model also predicts the variance.
        variant: the paper's arrangement of space and time attention, 1 to 4.
        patch_frames: number of frames in a patch.
        conditioning: modulation of every block (adaln) or extra tokens (tokens).
        time_pos: temporal positions, sin-cos added once (absolute) or rotary (rope).
        full_attention: whether variant 4 has all heads in both attentions, rather than half in each.
        recompute: what the backward computes again, not keeps: nothing, norms and GELU, fc1 too, or whole blocks.
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
    recompute: Literal["none", "elementwise", "mlp", "block"] = "none"

    def sizes(self, known: Mapping[str, int]) -> dict[str, Any]:
        """Returns the four sizes: explicit ones first, then the preset's, then those in `known`."""
        presets = ", ".join(PRESETS)
        require(self.preset is None or self.preset in PRESETS, "model.preset", f"one of {presets}", self.preset)
        sizes = dict(known) | (dict(PRESETS[self.preset]) if self.preset else {})
        for name in ("patch_size", "hidden_size", "depth", "num_heads"):
            value = getattr(self, name)
            if value is not None:
                sizes[name] = value
            require(name in sizes, f"model.{name}", "given where model.preset is not", value)
        return sizes
