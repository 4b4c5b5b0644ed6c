"""What it costs to share a clip among GPUs: the bytes that they exchange, and the least time of a forward."""

from dataclasses import dataclass
from itertools import pairwise

from latte_fast.config import LatteConfig


@dataclass(frozen=True)
class Links:
    """How fast GPUs exchange tokens.

    Args:
        inside: bytes a second that a GPU sends within its machine.
        between: bytes a second that it sends to other machines.
        per_machine: number of GPUs in a machine.
        wait: seconds that an exchange takes besides its bytes.
    """

    inside: float
    between: float
    per_machine: int = 8
    wait: float = 30e-6


@dataclass(frozen=True)
class SharedCost:
    """The cost of one forward on GPUs that share its clips.

    Args:
        gpus: number of GPUs.
        exchanges: number of exchanges in the blocks.
        sent: bytes that the GPU with most tokens sends in all of them.
        compute: seconds of its share of the forward.
        exchange: seconds of the exchanges.
    """

    gpus: int
    exchanges: int
    sent: int
    compute: float
    exchange: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange


def exchanges_of(config: LatteConfig) -> int:
    """Counts exchanges: one where the axis changes between blocks, two in a block over both axes."""
    axes = [config.axis(i) for i in range(config.depth)]
    return 2 * axes.count("both") + sum(one != two for one, two in pairwise(axes))


def sent_by_first(config: LatteConfig, batch: int, frames: int, tokens: int, gpus: int, bytes_each: int) -> int:
    """Returns the bytes that the first GPU, which has most tokens, sends in all exchanges of a forward."""
    f, n = -(-frames // gpus), -(-tokens // gpus)
    row = batch * config.hidden_size * bytes_each
    # frames to patches and back, in turn
    there, back = f * (tokens - n) * row, n * (frames - f) * row
    count = exchanges_of(config)
    return there * -(-count // 2) + back * (count // 2)


def shared_cost(
    config: LatteConfig,
    batch: int,
    frames: int,
    patches: int,
    gpus: int,
    links: Links,
    alone: float,
    bytes_each: int = 2,
) -> SharedCost:
    """Computes the cost of a forward of `batch` clips that take `alone` seconds on one GPU.

    Args:
        config: the model's configuration.
        batch: number of clips that the GPUs share.
        frames: number of frames in a clip.
        patches: number of patches in a frame.
        gpus: number of GPUs.
        links: how fast they exchange tokens.
        alone: seconds of the forward on one GPU.
        bytes_each: bytes of an activation.
    """
    tokens = patches + config.extra_tokens
    if not 1 <= gpus <= min(frames, tokens):
        raise ValueError(
            f"cost: gpus must be in [1, {min(frames, tokens)}], the frames and tokens of a clip, got {gpus}"
        )
    if gpus == 1:
        return SharedCost(1, 0, 0, alone, 0.0)
    count, sent = exchanges_of(config), sent_by_first(config, batch, frames, tokens, gpus, bytes_each)
    # the GPU with most frames and most patches sets the pace
    over_time = sum(config.axis(i) == "time" for i in range(config.depth)) / config.depth
    share = over_time * -(-tokens // gpus) / tokens + (1 - over_time) * -(-frames // gpus) / frames
    away = max(0, gpus - links.per_machine) / (gpus - 1)  # of the others, those in another machine
    moving = sent * ((1 - away) / links.inside + away / links.between)
    return SharedCost(gpus, count, sent, share * alone, moving + count * links.wait)


def rows(costs: list[SharedCost]) -> list[str]:
    """Formats costs as a table; the last column is the clips a second of as many GPUs with clips of their own, as 1."""
    head = ("GPUs", "exchanges", "MB sent", "compute ms", "exchange ms", "forward ms", "faster", "clips/s")
    lines = ["".join(f"{name:>13}" for name in head)]
    alone = costs[0].seconds
    for c in costs:
        faster = alone / c.seconds
        cells = (
            f"{c.gpus}", f"{c.exchanges}", f"{c.sent / 1e6:.2f}", f"{c.compute * 1e3:.2f}", f"{c.exchange * 1e3:.2f}",
            f"{c.seconds * 1e3:.2f}", f"{faster:.2f}x", f"{faster / c.gpus:.2f}",
        )  # fmt: skip
        lines.append("".join(f"{cell:>13}" for cell in cells))
    return lines
