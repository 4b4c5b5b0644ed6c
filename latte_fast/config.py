"""LatteConfig, LatteT2VConfig and the presets: the only place for widths, heads and depths, importable anywhere."""

import math
from dataclasses import dataclass
from typing import Any

# name: (depth, width, heads); depth counts spatial and temporal blocks together
SIZES = {
    "XL": (28, 1152, 16),
    "L": (24, 1024, 16),
    "B": (12, 768, 12),
    "S": (12, 384, 6),
}
PATCHES = (2, 4, 8)
TEXT_WIDTH = 77 * 768  # extras=78: one CLIP sequence, flattened
TEXT_WIDTH_JOINT = 1024  # the text width of the joint image-video model
# upstream's names; here all of them compute the same, exact attention
ATTENTION_MODES = ("math", "flash", "xformers")
CONDITIONING = ("adaln", "tokens")
TIME_POSITIONS = ("absolute", "rope")


@dataclass(frozen=True)
class LatteConfig:
    """Upstream's constructor keywords, then the rest of the paper's design space.

    Args:
        input_size: side of the latent, pixels / 8.
        variant: 0, DiT: all blocks over space, frames independent; 1, space and time blocks in turn; 2, all space
            blocks, then all time blocks; 3, both attentions one after the other in each block; 4, both in parallel with
            half the heads each, their outputs added.
        patch_frames: 1, uniform frames; s > 1, compression frames: patches of s frames, and a transposed convolution
            after the decoder that restores F.
        conditioning: "adaln" (S-AdaLN) or "tokens" (time step and class as tokens before plain blocks).
        time_pos: "absolute" (sin-cos, added once before the first time attention) or "rope" (rotary, in every one).
        full_attention: variant 4 with all heads in both attentions, as the model of the paper's table 3 counts.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_frames: int = 16
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True
    extras: int = 1
    attention_mode: str = "math"
    variant: int = 1
    patch_frames: int = 1
    conditioning: str = "adaln"
    time_pos: str = "absolute"
    full_attention: bool = False

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"Latte: {name} must be {rule}, got {getattr(self, name)!r}")

        sizes = ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_frames")
        for name in (*sizes, "num_classes", "patch_frames"):
            require(_integer(getattr(self, name)) and getattr(self, name) > 0, name, "a positive integer")
        for name in ("learn_sigma", "full_attention"):
            require(isinstance(getattr(self, name), bool), name, "True or False")
        require(_number(self.mlp_ratio) and self.mlp_ratio * self.hidden_size >= 1, "mlp_ratio", "a positive number")
        dropped = self.class_dropout_prob
        require(_number(dropped) and 0 <= dropped < 1, "class_dropout_prob", "a number in [0, 1)")
        require(self.variant in (0, 1, 2, 3, 4), "variant", "0, 1, 2, 3 or 4")
        even = "even for variants 1 and 2: half the blocks attend over space, half over time"
        require(self.variant not in (1, 2) or self.depth % 2 == 0, "depth", even)
        require(self.variant != 4 or self.full_attention or self.num_heads % 2 == 0, "num_heads", "even for variant 4")
        require(self.variant == 4 or not self.full_attention, "full_attention", "False but for variant 4")
        divides = f"a divisor of num_frames {self.num_frames}"
        require(self.num_frames % self.patch_frames == 0, "patch_frames", divides)
        require(self.conditioning in CONDITIONING, "conditioning", f"one of {', '.join(CONDITIONING)}")
        require(self.time_pos in TIME_POSITIONS, "time_pos", f"one of {', '.join(TIME_POSITIONS)}")
        require(self.input_size % self.patch_size == 0, "input_size", f"a multiple of patch_size {self.patch_size}")
        require(self.hidden_size % self.num_heads == 0, "hidden_size", f"a multiple of num_heads {self.num_heads}")
        require(self.hidden_size % 4 == 0, "hidden_size", "a multiple of 4: the position tables halve it twice")
        width = self.head_width
        require(width % 8 == 0 and width <= 128, "num_heads", "such that the head width is a multiple of 8 up to 128")
        require(self.extras in (1, 2, 78), "extras", "1 (unconditional), 2 (class) or 78 (text)")
        require(self.attention_mode in ATTENTION_MODES, "attention_mode", f"one of {', '.join(ATTENTION_MODES)}")

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def heads_each(self) -> int:
        """Heads of one attention: half of num_heads in variant 4, which has two attentions in parallel."""
        return self.num_heads // 2 if self.variant == 4 and not self.full_attention else self.num_heads

    @property
    def token_frames(self) -> int:
        return self.num_frames // self.patch_frames

    @property
    def extra_tokens(self) -> int:
        """Tokens that carry the condition: the time step's, and the class's or text's."""
        return 0 if self.conditioning == "adaln" else 1 + (self.extras != 1)

    def axis(self, block: int) -> str:
        """Returns what block i attends over: "space", "time" or "both"."""
        if self.variant == 0:
            return "space"
        if self.variant > 2:
            return "both"
        time = block % 2 == 1 if self.variant == 1 else block >= self.depth // 2
        return "time" if time else "space"

    def stays_in_time(self, block: int) -> bool:
        """Returns whether block i is one of several over time that follow each other."""
        near = (i for i in (block - 1, block + 1) if 0 <= i < self.depth)
        return self.axis(block) == "time" and any(self.axis(i) == "time" for i in near)

    @property
    def first_time_block(self) -> int:
        """The block before whose time attention absolute temporal positions are added, once; `depth` for variant 0."""
        return next((i for i in range(self.depth) if self.axis(i) != "space"), self.depth)

    @property
    def has_time_table(self) -> bool:
        return self.time_pos == "absolute" and self.variant != 0

    @property
    def grid(self) -> int:
        return self.input_size // self.patch_size

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return _integer(value) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True)
class LatteT2VConfig:
    """The text-to-video model's fields, by the names of diffusers' config; the defaults are the published values.

    Args:
        num_layers: number of pairs of a space and a time block.
        sample_size: side of the latent that the position table is made for; other sizes stretch it.
        caption_channels: width of the text encoder's output.
        video_length: number of frames in the time table; a clip has as many, or one.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = 8
    num_layers: int = 28
    dropout: float = 0.0
    cross_attention_dim: int | None = 1152
    attention_bias: bool = True
    sample_size: int = 64
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int | None = 1000
    norm_type: str = "ada_norm_single"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    caption_channels: int = 4096
    video_length: int = 16

    def __post_init__(self) -> None:
        fixed = {"dropout": 0.0, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single"}
        for name, only in fixed.items() | {("norm_elementwise_affine", False)}:
            if getattr(self, name) != only:
                raise ValueError(f"LatteT2V: {name} must be {only!r}, got {getattr(self, name)!r}")
        counts = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size", "patch_size")
        for name in (*counts, "caption_channels", "video_length"):
            value = getattr(self, name)
            if not _integer(value) or value < 1:
                raise ValueError(f"LatteT2V: {name} must be a positive integer, got {value!r}")
        if self.attention_head_dim % 8 or self.attention_head_dim > 128:
            raise ValueError(
                f"LatteT2V: attention_head_dim must be a multiple of 8 up to 128, got {self.attention_head_dim}"
            )
        if self.cross_attention_dim not in (None, self.width):
            # the text is projected to the model's width before any block sees it
            raise ValueError(
                f"LatteT2V: cross_attention_dim must be the width {self.width}, got {self.cross_attention_dim}"
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def channels_out(self) -> int:
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def grid(self) -> int:
        return self.sample_size // self.patch_size

    @property
    def interpolation(self) -> int:
        """The divisor of positions on the grid, which keeps them below 64 / patch_size at any size."""
        return max(self.sample_size // 64, 1)


def preset(size: str, patch: int) -> dict[str, int]:
    """Returns the constructor keywords of Latte-{size}/{patch}."""
    if size not in SIZES:
        raise ValueError(f"preset: size must be one of {', '.join(SIZES)}, got {size!r}")
    depth, width, heads = SIZES[size]
    return {"depth": depth, "hidden_size": width, "num_heads": heads, "patch_size": patch}


PRESETS: dict[str, dict[str, Any]] = {f"Latte-{s}/{p}": preset(s, p) for s in SIZES for p in PATCHES}
# the exact models that the paper's table 3 counts: 23 blocks, two attentions of 16 heads x 72 each, no learned variance
TABLE_3 = {"depth": 23, "hidden_size": 1152, "num_heads": 16, "learn_sigma": False}
TABLE_3_PRESETS: dict[str, dict[str, Any]] = {
    "Latte-XL/2-table3-v3": TABLE_3 | {"patch_size": 2, "variant": 3},
    "Latte-XL/4-table3-v4": TABLE_3 | {"patch_size": 4, "variant": 4, "full_attention": True},
}
