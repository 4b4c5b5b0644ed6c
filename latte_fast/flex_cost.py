"""What a FlexLatte costs: multiply-adds block by block at each density, and averaged over a schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

from latte_fast.config import LatteConfig
from latte_fast.cost_model import FREQUENCIES, Cost, cost
from latte_fast.flex_config import FlexLatteConfig, FlexT2VConfig, density_schedule, sparse_grid


@dataclass(frozen=True)
class FlexCost:
    """Multiply-adds of a forward of one layout.

    Args:
        dense: of the dense Latte of the same sizes.
        by_side: at each side of the sparse grid.
        schedule: the side at each step of a sampler.
        parameters: number of trained parameters.
    """

    dense: int
    by_side: dict[int, int]
    schedule: tuple[int, ...]
    parameters: int

    @property
    def mean(self) -> float:
        """Multiply-adds of a forward, averaged over the schedule."""
        return sum(self.by_side[side] for side in self.schedule) / len(self.schedule)

    @property
    def share(self) -> float:
        """The mean over the dense model's."""
        return self.mean / self.dense


def flex_cost(
    config: FlexLatteConfig,
    batch: int = 1,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    *,
    steps: int = 50,
) -> FlexCost:
    """Computes the multiply-adds of a forward of `batch` clips at each side, and over a schedule of `steps`.

    Args:
        config: configuration of the model.
        batch: number of clips.
        frames: number of frames in a clip, by default the config's.
        size: side or (height, width) in pixels, by default the config's; a latent pixel is 8 of them.
        steps: number of sampling steps.
    """
    plain = LatteConfig(**{name: getattr(config, name) for name in LatteConfig.__dataclass_fields__})
    dense = cost(plain, batch, frames, size)
    height, width = (size, size) if isinstance(size, int) else size or (8 * config.input_size,) * 2
    grid = height // 8 // config.patch_size, width // 8 // config.patch_size
    token_frames = (frames or config.num_frames) // config.patch_frames
    shared = dense.macs_needed - sum(dense_block(config, i, batch, token_frames, grid) for i in range(config.depth))
    by_side = {
        side: shared + sum(block_macs(config, i, batch, token_frames, grid, side) for i in range(config.depth))
        for side in config.sides
    }
    return FlexCost(dense.macs_needed, by_side, density_schedule(steps, config.sides), _parameters(config, dense))


def flex_text_cost(
    config: FlexT2VConfig, batch: int = 1, frames: int = 1, text: int = 120, *, steps: int = 50
) -> FlexCost:
    """Computes the multiply-adds of a FlexLatteT2V's forward at each side, and over a schedule of `steps`.

    Args:
        config: configuration of the model.
        batch: number of captions.
        frames: number of images of a caption.
        text: number of tokens of a caption.
        steps: number of sampling steps.
    """
    d, grid, dense = config.width, (config.grid, config.grid), batch * frames * config.grid**2
    patch = config.patch_size**2
    shared = dense * d * patch * (config.in_channels + config.channels_out)
    # the time step's embedding and modulation, and the text's projection
    shared += batch * (FREQUENCIES * d + 7 * d * d) + batch * text * (config.caption_channels * d + d * d)

    def block(kind: str, side: int) -> int:
        sparse = batch * frames * side * side
        tokens = sparse if kind in "GS" else dense
        # keys and values of the text, its queries, output and scores, then the MLP
        total = 2 * batch * text * d * d + tokens * (2 * d * d + 2 * text * d) + 8 * tokens * d * d
        if kind in "SD":
            return total + 4 * tokens * d * d + 2 * tokens * (tokens // (batch * frames)) * d
        if kind == "P":
            return total + 2 * batch * frames * d * d
        scores = 2 * dense * side * side * d
        if kind == "G":
            return total + (2 * sparse + 2 * dense) * d * d + scores
        return total + (3 * dense + 3 * sparse) * d * d + scores

    by_side = {side: shared + sum(block(kind, side) for kind in config.kinds) for side in config.sides}
    whole = shared + config.depth * block("D", grid[0])
    bias = int(config.attention_bias)
    attention = 3 * (d * d + bias * d) + d * d + d
    parameters = config.depth * (6 * d + 2 * attention + 8 * d * d + 5 * d) + 2 * d
    parameters += d * patch * config.in_channels + d + (d + 1) * patch * config.channels_out
    parameters += (FREQUENCIES + 1 + d + 1 + 6 * d + 6 + config.caption_channels + 1 + d + 1) * d
    parameters -= config.kinds.count("P") * 2 * (d * d + bias * d)
    parameters += config.kinds.count("R") * 2 * (d * d + d)
    return FlexCost(whole, by_side, density_schedule(steps, config.sides), parameters)


def dense_block(config: LatteConfig, i: int, batch: int, frames: int, grid: tuple[int, int]) -> int:
    """Counts the multiply-adds of a dense block with S-AdaLN."""
    return _ordinary(config, config.axis(i), batch, frames, grid[0] * grid[1])


def block_macs(config: FlexLatteConfig, i: int, batch: int, frames: int, grid: tuple[int, int], side: int) -> int:
    """Counts the multiply-adds of block i of the layout."""
    kind, axis, d = config.kinds[i], config.axis(i), config.hidden_size
    rows, columns = sparse_grid(*grid, side)
    dense, sparse = batch * frames * grid[0] * grid[1], batch * frames * rows * columns
    if kind in "SD":
        return _ordinary(config, axis, batch, frames, rows * columns if kind == "S" else grid[0] * grid[1])
    common = batch * 6 * d * d
    if kind == "P":
        # v and proj on the mean of each sequence
        sequences = batch * (frames if axis == "space" else grid[0] * grid[1])
        return common + 2 * sequences * d * d + _mlp(config, dense)
    scores = 2 * dense * rows * columns * d
    if kind == "G":
        return common + (2 * sparse + 2 * dense) * d * d + scores + _mlp(config, sparse)
    # q, proj and W2 on the dense tokens; k, v and W1 on the sparse ones
    return common + (3 * dense + 3 * sparse) * d * d + scores + _mlp(config, dense)


def _ordinary(config: LatteConfig, axis: str, batch: int, frames: int, patches: int) -> int:
    d, tokens = config.hidden_size, batch * frames * patches
    keys = patches if axis == "space" else frames
    return batch * 6 * d * d + 4 * tokens * d * d + 2 * tokens * keys * d + _mlp(config, tokens)


def _mlp(config: LatteConfig, tokens: int) -> int:
    return 2 * tokens * config.hidden_size * int(config.hidden_size * config.mlp_ratio)


def _parameters(config: FlexLatteConfig, dense: Cost) -> int:
    d = config.hidden_size
    lost = config.kinds.count("P") * 2 * (d * d + d)
    new = config.kinds.count("R") * 2 * (d * d + d)
    return dense.parameters - lost + new


def rows(name: str, batch: int, config: FlexLatteConfig, result: FlexCost) -> list[tuple[str, str]]:
    """Formats a cost as lines (name, value)."""
    lines = [
        ("model", f"{name}, batch {batch}, layout {config.layout}"),
        ("parameters", f"{result.parameters / 1e6:.2f} M"),
        ("dense multiply-adds", f"{result.dense / 1e9:.2f} G"),
    ]
    for side, macs in result.by_side.items():
        steps = result.schedule.count(side)
        value = f"{macs / 1e9:.2f} G ({macs / result.dense - 1:+.1%}), {steps} of {len(result.schedule)} steps"
        lines.append((f"side {side}", value))
    lines.append(("mean over the schedule", f"{result.mean / 1e9:.2f} G ({result.share - 1:+.1%})"))
    return lines


def layout_table(configs: Sequence[tuple[str, FlexLatteConfig]], steps: int = 50) -> str:
    """Returns the multiply-adds of layouts as a Markdown table, the change from dense at each side and on average."""
    sides = sorted({side for _, config in configs for side in config.sides})
    lines = ["| model | layout | " + " | ".join(f"side {side}" for side in sides) + " | mean |"]
    lines.append("|---" * (len(sides) + 3) + "|")
    for name, config in configs:
        result = flex_cost(config, steps=steps)
        cells = [f"{result.by_side[s] / result.dense - 1:+.1%}" if s in result.by_side else "" for s in sides]
        lines.append(f"| {name} | `{config.layout}` | " + " | ".join(cells) + f" | {result.share - 1:+.1%} |")
    return "\n".join(lines)
