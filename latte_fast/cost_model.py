"""What a Latte costs: parameters, multiply-adds by three conventions, bytes, and the floor of its forward's time."""

from dataclasses import dataclass
from typing import Any

from latte_fast.config import PRESETS, TABLE_3_PRESETS, TEXT_WIDTH, LatteConfig

FREQUENCIES = 256
# widths D that a block keeps per token for the backward, by Latte's recompute policy
KEPT_WIDTHS = {"none": 18, "elementwise": 11, "mlp": 7, "block": 1}
# widths D that a block moves per token outside its GEMMs: two fused passes of 4 each, attention 4
MOVED_WIDTHS = 12
# the same with 8-bit layers: both norms write half of their result, 1 less; GELU is a pass of its own, which reads
# fc1's result in bf16 and writes half of it, 4 + 2 more
MOVED_WIDTHS_8BIT = 17


@dataclass(frozen=True)
class Cost:
    """The cost of one forward.

    Args:
        parameters: number of trained parameters, as the paper counts.
        frozen: number of values in the position tables.
        macs_needed: multiply-adds that latte_fast runs, with the condition's linear layers once per clip.
        macs_upstream: multiply-adds that upstream runs, with these layers on rows repeated per frame and patch.
        macs_paper: multiply-adds of linear layers and convolutions on repeated rows, plus two per normalised value,
            without attention; the paper's tables give this at batch 3 as "FLOPs".
        weight_bytes: bytes of the parameters at `bytes_each`.
        moved_bytes: bytes that the elementwise passes and attention of a forward read and write.
        kept_bytes: bytes that a forward keeps for its backward, by recompute policy.
        macs_8bit: multiply-adds of those needed that 8-bit layers take: qkv, fc1 and fc2 of every block.
        weight_bytes_8bit: bytes of the parameters with these layers in 8 bits, and a scale a row.
        moved_bytes_8bit: moved_bytes with these layers in 8 bits.
    """

    parameters: int
    frozen: int
    macs_needed: int
    macs_upstream: int
    macs_paper: int
    weight_bytes: int
    moved_bytes: int
    kept_bytes: dict[str, int]
    macs_8bit: int
    weight_bytes_8bit: int
    moved_bytes_8bit: int

    def floor_seconds_8bit(
        self, flops_per_second: float, flops_per_second_8bit: float, bytes_per_second: float
    ) -> float:
        """Returns the least time of a forward with 8-bit layers, whose multiply-adds run at a rate of their own."""
        wide = 2 * (self.macs_needed - self.macs_8bit) / flops_per_second
        return wide + 2 * self.macs_8bit / flops_per_second_8bit + self.moved_bytes_8bit / bytes_per_second

    def floor_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Returns the least time of a forward: multiply-adds at that rate, then all other passes at that bandwidth."""
        return 2 * self.macs_needed / flops_per_second + self.moved_bytes / bytes_per_second


def cost(
    config: LatteConfig | str,
    batch: int = 1,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    *,
    bytes_each: int = 2,
) -> Cost:
    """Computes the cost of a forward of `batch` clips.

    Args:
        config: a LatteConfig or a preset's name.
        batch: number of clips.
        frames: number of frames in a clip, by default the config's.
        size: side or (height, width) in pixels, by default the config's; a latent pixel is 8 of them.
        bytes_each: bytes of a weight or an activation, 2 for bf16.
    """
    if isinstance(config, str):
        known = PRESETS | TABLE_3_PRESETS
        if config not in known:
            raise ValueError(f"cost: config must be one of {', '.join(known)}, got {config!r}")
        config = LatteConfig(**known[config])
    if bytes_each < 1:
        raise ValueError(f"cost: bytes_each must be at least 1, got {bytes_each}")
    frames = config.num_frames if frames is None else frames
    height, width = (size, size) if isinstance(size, int) else size or (8 * config.input_size,) * 2
    for name, value, step in (("frames", frames, config.patch_frames), ("size", height, 8 * config.patch_size),
                              ("size", width, 8 * config.patch_size), ("batch", batch, 1)):  # fmt: skip
        if value < 1 or value % step:
            raise ValueError(f"cost: {name} must be a positive multiple of {step}, got {value}")
    counter = _Counter(config, batch, frames // config.patch_frames, (height // 8, width // 8))
    tokens, d = counter.tokens, config.hidden_size
    parameters = _parameters(config)
    return Cost(
        parameters=parameters,
        frozen=d * (config.grid**2 + (config.token_frames if config.has_time_table else 0)),
        macs_needed=counter.products(repeated=False) + counter.attention(),
        macs_upstream=counter.products(repeated=True) + counter.attention(),
        macs_paper=counter.products(repeated=True) + counter.norms(),
        weight_bytes=parameters * bytes_each,
        moved_bytes=MOVED_WIDTHS * d * tokens * config.depth * bytes_each,
        kept_bytes={policy: n * d * tokens * config.depth * bytes_each for policy, n in KEPT_WIDTHS.items()},
        macs_8bit=counter.weights_8bit() * tokens,
        weight_bytes_8bit=parameters * bytes_each - counter.weights_8bit() * (bytes_each - 1) + 4 * counter.rows_8bit(),
        moved_bytes_8bit=MOVED_WIDTHS_8BIT * d * tokens * config.depth * bytes_each,
    )


class _Counter:
    """Counts the multiply-adds of one forward, part by part."""

    def __init__(self, config: LatteConfig, batch: int, frames: int, latent: tuple[int, int]):
        self.config, self.batch, self.frames = config, batch, frames
        self.patches = latent[0] * latent[1] // config.patch_size**2
        self.length = self.patches + config.extra_tokens
        self.tokens = batch * frames * self.length

    def products(self, repeated: bool) -> int:
        """Counts linear layers and convolutions, on condition rows repeated per frame and patch or one per clip."""
        c = self.config
        d, inner = c.hidden_size, c.heads_each * c.head_width
        patch = c.in_channels * c.patch_frames * c.patch_size**2
        out = c.patch_size**2 * c.out_channels
        real = self.batch * self.frames * self.patches
        attentions = 2 if c.variant > 2 else 1
        total = real * d * (patch + out) + self.batch * (FREQUENCIES * d + d * d)
        total += c.depth * self.tokens * (attentions * 4 * d * inner + 2 * d * int(d * c.mlp_ratio))
        if c.extras == 78:
            total += self.batch * TEXT_WIDTH * d
        if c.conditioning == "adaln":
            rows = {"space": self.frames, "time": self.patches, "both": self.frames + self.patches}
            for i in range(c.depth):
                total += self.batch * (rows[c.axis(i)] if repeated else 1) * 6 * d * d
            total += self.batch * (self.frames if repeated else 1) * 2 * d * d
        if c.patch_frames > 1:
            pixels = self.patches * c.patch_size**2
            total += self.batch * self.frames * pixels * c.out_channels**2 * c.patch_frames
        return total

    def weights_8bit(self) -> int:
        """Counts the weights of the layers that have 8 bits by default: qkv, fc1 and fc2."""
        c = self.config
        inner, hidden = c.heads_each * c.head_width, int(c.hidden_size * c.mlp_ratio)
        return c.depth * c.hidden_size * ((2 if c.variant > 2 else 1) * 3 * inner + 2 * hidden)

    def rows_8bit(self) -> int:
        """Counts the rows of these weights, which have a scale each."""
        c = self.config
        inner, hidden = c.heads_each * c.head_width, int(c.hidden_size * c.mlp_ratio)
        return c.depth * ((2 if c.variant > 2 else 1) * 3 * inner + hidden + c.hidden_size)

    def attention(self) -> int:
        """Counts q k^T and p v."""
        c = self.config
        keys = {"space": self.length, "time": self.frames, "both": self.length + self.frames}
        inner = c.heads_each * c.head_width
        return sum(2 * self.tokens * inner * keys[c.axis(i)] for i in range(c.depth))

    def norms(self) -> int:
        """Counts two per normalised value: one norm per sublayer, and the head's."""
        sublayers = 3 if self.config.variant == 3 else 2
        head = self.batch * self.frames * self.patches
        return 2 * self.config.hidden_size * (self.config.depth * sublayers * self.tokens + head)


def _parameters(c: LatteConfig) -> int:
    d, inner, hidden = c.hidden_size, c.heads_each * c.head_width, int(c.hidden_size * c.mlp_ratio)
    out = c.patch_size**2 * c.out_channels

    def linear(rows: int, columns: int) -> int:
        return rows * columns + columns

    attentions = (2 if c.variant > 2 else 1) * (linear(d, 3 * inner) + linear(inner, d))
    plain = c.conditioning == "tokens"
    block = attentions + linear(d, hidden) + linear(hidden, d) + (4 * d if plain else linear(d, 6 * d))
    total = c.depth * block + linear(c.in_channels * c.patch_frames * c.patch_size**2, d)
    total += linear(FREQUENCIES, d) + linear(d, d) + linear(d, out) + (2 * d if plain else linear(d, 2 * d))
    if c.extras == 2:
        total += (c.num_classes + (c.class_dropout_prob > 0)) * d
    if c.extras == 78:
        total += linear(TEXT_WIDTH, d)
    if c.patch_frames > 1:
        total += c.out_channels**2 * c.patch_frames + c.out_channels
    return total


def rows(name: str, batch: int, result: Cost) -> list[tuple[str, Any]]:
    """Formats a cost as lines (name, value)."""
    kept = ", ".join(f"{policy} {value / 1e9:.2f}" for policy, value in result.kept_bytes.items())
    return [
        ("model", f"{name}, batch {batch}"),
        ("parameters", f"{result.parameters / 1e6:.2f} M ({result.weight_bytes / 1e9:.2f} GB)"),
        ("multiply-adds needed", f"{result.macs_needed / 1e9:.2f} G"),
        ("as upstream runs them", f"{result.macs_upstream / 1e9:.2f} G"),
        ("as the paper counts", f"{result.macs_paper / 1e9:.2f} G"),
        ("moved outside products", f"{result.moved_bytes / 1e9:.2f} GB"),
        ("kept for the backward", f"{kept} GB"),
    ]
