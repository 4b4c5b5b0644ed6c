"""LatteConfig and the presets: the only home of widths, heads and depths. Plain numbers, importable by every layer."""

from dataclasses import dataclass

# name: (depth, width, heads); depth counts spatial and temporal blocks together
SIZES = {
    "XL": (28, 1152, 16),
    "L": (24, 1024, 16),
    "B": (12, 768, 12),
    "S": (12, 384, 6),
}
PATCHES = (2, 4, 8)
TEXT_WIDTH = 77 * 768  # extras=78: one CLIP sequence, flattened
TEXT_WIDTH_JOINT = 1024  # the same in the joint image-video model
# every name upstream accepts; here all compute the same, right thing
ATTENTION_MODES = ("math", "flash", "xformers")


@dataclass(frozen=True)
class LatteConfig:
    """Upstream's constructor keywords. `input_size` is the latent side, pixels / 8."""

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

    def __post_init__(self) -> None:
        def require(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"Latte: {name} must be {rule}, got {getattr(self, name)!r}")

        for name in (
            "input_size",
            "patch_size",
            "in_channels",
            "hidden_size",
            "num_heads",
            "num_frames",
            "num_classes",
        ):
            require(isinstance(getattr(self, name), int) and getattr(self, name) > 0, name, "a positive integer")
        require(
            self.depth > 0 and self.depth % 2 == 0, "depth", "even and positive: spatial and temporal blocks alternate"
        )
        require(self.input_size % self.patch_size == 0, "input_size", f"a multiple of patch_size {self.patch_size}")
        require(self.hidden_size % self.num_heads == 0, "hidden_size", f"a multiple of num_heads {self.num_heads}")
        require(self.hidden_size % 4 == 0, "hidden_size", "a multiple of 4: the position tables halve it twice")
        width = self.head_width
        require(width % 8 == 0 and width <= 128, "num_heads", "such that the head width is a multiple of 8 up to 128")
        require(self.extras in (1, 2, 78), "extras", "1 (unconditional), 2 (class) or 78 (text)")
        require(self.attention_mode in ATTENTION_MODES, "attention_mode", f"one of {', '.join(ATTENTION_MODES)}")
        require(0 <= self.class_dropout_prob < 1, "class_dropout_prob", "in [0, 1)")

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> int:
        return self.input_size // self.patch_size

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)


def preset(size: str, patch: int) -> dict[str, int]:
    """The constructor keywords of Latte-{size}/{patch}."""
    depth, width, heads = SIZES[size]
    return {"depth": depth, "hidden_size": width, "num_heads": heads, "patch_size": patch}


PRESETS = {f"Latte-{size}/{patch}": preset(size, patch) for size in SIZES for patch in PATCHES}
