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
        sent: bytes that the GPU with most tokens sends in all of them, and in the gathering of the output.
        compute: seconds of a GPU's mean share of the forward.
        exchange: seconds that the bytes take.
        waiting: seconds that exchanges take besides, and that GPUs wait for the one with most frames.
    """

    gpus: int
    exchanges: int
    sent: int
    compute: float
    exchange: float
    waiting: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange + self.waiting


def exchanges_of(config: LatteConfig) -> int:
    """Counts exchanges: two around each attention over time, of blocks that follow each other around all of them."""
    axes = ["space", *(config.axis(i) for i in range(config.depth))]
    return 2 * sum(one == "both" or (one == "time" != before) for before, one in pairwise(axes))


def sent_by_first(config: LatteConfig, batch: int, frames: int, tokens: int, gpus: int, bytes_each: int) -> int:
    """Returns the bytes that the first GPU, which has most tokens, sends in all exchanges of a forward."""
    f, n = -(-frames // gpus), -(-tokens // gpus)
    row = batch * config.hidden_size * bytes_each
    # to the patches' ranks and back
    return exchanges_of(config) // 2 * (f * (tokens - n) + n * (frames - f)) * row


def gathered_by_first(config: LatteConfig, batch: int, frames: int, patches: int, gpus: int, bytes_each: int) -> int:
    """Returns the bytes that a GPU sends where all gather the output, each as much as the one with most frames."""
    values = patches * config.patch_size**2 * config.out_channels * config.patch_frames
    return (gpus - 1) * batch * -(-frames // gpus) * values * bytes_each


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
        return SharedCost(1, 0, 0, alone, 0.0, 0.0)
    count = exchanges_of(config)
    sent = sent_by_first(config, batch, frames, tokens, gpus, bytes_each)
    sent += gathered_by_first(config, batch, frames, patches, gpus, bytes_each)
    away = max(0, gpus - links.per_machine) / (gpus - 1)  # of the others, those in another machine
    moving = sent * ((1 - away) / links.inside + away / links.between)
    # the GPU with most frames sets the pace
    behind = (-(-frames // gpus) / frames - 1 / gpus) * alone
    return SharedCost(gpus, count, sent, alone / gpus, moving, (count + 1) * links.wait + behind)


def rows(costs: list[SharedCost]) -> list[str]:
    """Formats costs as a table; the last column is the clips a second of as many GPUs with clips of their own, as 1."""
    head = ("GPUs", "exchanges", "MB sent", "compute ms", "exchange ms", "waiting ms", "forward ms", "faster",
            "clips/s")  # fmt: skip
    lines = ["".join(f"{name:>13}" for name in head)]
    alone = costs[0].seconds
    for c in costs:
        faster = alone / c.seconds
        cells = (
            f"{c.gpus}", f"{c.exchanges}", f"{c.sent / 1e6:.2f}", f"{c.compute * 1e3:.2f}", f"{c.exchange * 1e3:.2f}",
            f"{c.waiting * 1e3:.2f}", f"{c.seconds * 1e3:.2f}", f"{faster:.2f}x", f"{faster / c.gpus:.2f}",
        )  # fmt: skip
        lines.append("".join(f"{cell:>13}" for cell in cells))
    return lines
