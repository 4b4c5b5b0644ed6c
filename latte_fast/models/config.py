"""The model of a run as its configuration has it: a preset or its sizes, for every family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latte_fast.config import PRESETS


def require(ok: bool, name: str, rule: str, value: Any) -> None:
    if not ok:
        raise ValueError(f"train: {name} must be {rule}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """The model: a preset, or its sizes; channels, latent side, frames and classes come from the data.

    With captions it is the text-to-video model, which has variant 1 alone; a folder to start from gives its sizes too.

    Args:
        preset: Latte-{S,B,L,XL}/{2,4,8}, whose sizes the four below override.
        patch_size: of a patch's side in latent pixels.
        hidden_size: width.
        depth: blocks, spatial and temporal together; the published text-to-video model has 56.
        num_heads: of an attention.
        mlp_ratio: hidden width of the MLP over the width.
        class_dropout_prob: how often a label or caption is dropped, for guidance; 0 leaves no null class.
        learn_sigma: whether the model predicts its variance too.
        variant: 1 to 4, the paper's order of space and time.
        patch_frames: frames of a patch.
        conditioning: by modulation or by tokens.
        time_pos: sin-cos added once, or rotary.
        full_attention: variant 4 with all heads in both attentions.
        recompute: what the backward makes again instead of keeping: nothing, norms and GELU, fc1 too, or whole blocks.
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
        """The four sizes: given, the preset's, or those known otherwise."""
        presets = ", ".join(PRESETS)
        require(self.preset is None or self.preset in PRESETS, "model.preset", f"one of {presets}", self.preset)
        sizes = dict(known) | (dict(PRESETS[self.preset]) if self.preset else {})
        for name in ("patch_size", "hidden_size", "depth", "num_heads"):
            value = getattr(self, name)
            if value is not None:
                sizes[name] = value
            require(name in sizes, f"model.{name}", "given where model.preset is not", value)
        return sizes
