"""One clip over several ranks: its frames are shared out while blocks attend over space, its patches over time.

So no block attends across ranks, and where the axis changes one all-to-all moves every token to its other owner. The
ranks of a group call the model together, on the same inputs, and get the same whole output; each has the gradients of
its own tokens alone, which `sum_gradients` adds up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latte_fast.modules.residual import Pending, resolve
from latte_fast.ops.axis_exchange import axis_exchange, axis_gather, shares


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the clips; the degrees' product divides the number of ranks, whose rest takes other clips.

    Args:
        sequence: number of ranks that share a clip's tokens.
        cfg: 2 gives the halves of a guided batch, with and without the condition, to two groups of ranks.
    """

    sequence: int = 1
    cfg: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("sequence", None), ("cfg", (1, 2))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value not in (allowed or (value,)):
                rule = "1 or 2" if allowed else "an integer of at least 1"
                raise ValueError(f"ParallelConfig: {name} must be {rule}, got {value!r}")


class Parallel:
    """The groups that this rank shares clips with. Neighbours share a clip, the next ones its guided batch's halves.

    Args:
        config: degrees; diffusers' ContextParallelConfig is taken too, whose ulysses_degree is `sequence`.
    """

    def __init__(self, config: Any, device: str = "cpu"):
        if not isinstance(config, ParallelConfig):
            config = ParallelConfig(sequence=_ulysses(config))
        if not dist.is_initialized():
            raise ValueError("enable_parallelism: torch.distributed must be initialised, as torchrun's commands do")
        world, wanted = dist.get_world_size(), config.sequence * config.cfg
        if world % wanted:
            rule = f"divide the {world} ranks"
            raise ValueError(f"enable_parallelism: sequence * cfg must {rule}, got {config.sequence} * {config.cfg}")
        names = ("data", "cfg", "sequence")
        mesh = dist.init_device_mesh(device, (world // wanted, config.cfg, config.sequence), mesh_dim_names=names)
        self.config = config
        self._groups = {name: mesh.get_group(name) for name in names}  # held, as their names are all that ops keep
        self._compared = False

    def name(self, axis: str) -> str:
        return self._groups[axis].group_name

    def rank(self, axis: str) -> int:
        return self._groups[axis].rank()

    def shards(self, frames: int, patches: int) -> "Shards | None":
        """Returns where the tokens of a forward go; None where no rank shares them."""
        degree = self.config.sequence
        if degree == 1:
            return None
        if degree > min(frames, patches):
            rule = f"at most the clip's {frames} frames and {patches} tokens a frame"
            raise ValueError(f"enable_parallelism: sequence must be {rule}, got {degree}")
        return Shards(self.name("sequence"), degree, self.rank("sequence"), frames)

    def compare(self, *inputs: Tensor) -> None:
        """Raises where the ranks of a clip are given different inputs; in the first forward alone, as it waits."""
        if self._compared or torch.compiler.is_compiling() or self.config.sequence == 1:
            return
        self._compared = True
        sizes = [x.shape[i] if i < x.dim() else 0 for x in inputs for i in range(6)]
        sums = [x.detach().double().sum().item() for x in inputs]
        own = torch.tensor([*sizes, *sums], dtype=torch.float64, device=inputs[0].device)
        every = [torch.empty_like(own) for _ in range(self.config.sequence)]
        dist.all_gather(every, own, group=self._groups["sequence"])
        first = every[0].nan_to_num()
        differ = [rank for rank, other in enumerate(every) if not torch.equal(other.nan_to_num(), first)]
        if differ:
            rule = f"the same on all ranks that share a clip, got others on rank {differ[0]} of them than on rank 0"
            raise ValueError(f"enable_parallelism: inputs must be {rule}")

    def own_half(self, value: Any, batch: int) -> Any:
        """Returns this rank's half of a tensor over a batch; other values as they are."""
        if not isinstance(value, Tensor) or not value.dim() or len(value) != batch:
            return value
        return value.chunk(2)[self.rank("cfg")]

    def both_halves(self, x: Tensor) -> Tensor:
        return axis_gather(x, 0, 2 * x.shape[0], self.name("cfg"))

    def sum_gradients(self, model: nn.Module) -> None:
        """Adds up the gradients of the ranks that share a clip, after a backward on the whole output."""
        if self.config.sequence == 1:
            return
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat, group=self._groups["sequence"])
        for g, new in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(new.view_as(g))


def _ulysses(config: Any) -> int:
    """Returns diffusers' degree of sharing a sequence, wherever its configuration holds it; refuses its other ways."""
    held = getattr(config, "context_parallel_config", None) or config
    degree = getattr(held, "ulysses_degree", None)
    if degree is None:
        raise TypeError(f"enable_parallelism: config must be a ParallelConfig, got {type(config).__name__}")
    if (getattr(held, "ring_degree", None) or 1) > 1:
        raise ValueError("enable_parallelism: ring_degree must be 1, as no attention goes across ranks")
    return degree


class Shards:
    """Where a forward's tokens are: this rank's frames of all patches, or its patches of all frames.

    Args:
        group: name of the group that shares them.
        degree: number of its ranks.
        rank: this rank's number among them.
        frames: number of the clip's frames, images beside it included.
    """

    def __init__(self, group: str, degree: int, rank: int, frames: int):
        self.group, self.degree, self.rank, self.frames = group, degree, rank, frames
        self.axis, self.tokens = "space", 0  # tokens of a frame, while they are shared out
        held = shares(frames, degree)
        self.begin, self.count = sum(held[:rank]), held[rank]

    def own_frames(self, x: Tensor) -> Tensor:
        """Returns this rank's frames of (B, F, ...)."""
        return x[:, self.begin : self.begin + self.count]

    def own_rows(self, condition: Any, batch: int) -> Any:
        """Returns this rank's frames of a condition (B*F, D); one for each clip, (B, D), is left as it is."""
        if not isinstance(condition, Tensor) or condition.shape[0] == batch:
            return condition
        return self.own_frames(condition.unflatten(0, (batch, -1))).flatten(0, 1)

    def along(self, axis: str, x: Tensor, pending: Pending | None) -> tuple[Tensor, Pending | None]:
        """Returns x and its pending residual where attention over `axis` finds all that it needs on this rank."""
        axis = "time" if axis == "time" else "space"
        if axis == self.axis:
            return x, pending
        return self.moved(resolve(x, pending), axis), None

    def own_positions(self, pos: Tensor | None) -> Tensor | None:
        """Returns this rank's frames of positions (F, 1, D)."""
        return None if pos is None else pos[self.begin : self.begin + self.count]

    def moved(self, x: Tensor, axis: str) -> Tensor:
        """Moves tokens (B, F, N, D) to where attention over `axis` can run."""
        self.axis = axis
        if axis == "time":
            self.tokens = x.shape[2]
            return axis_exchange(x, 1, self.frames, self.group)
        return axis_exchange(x, 2, self.tokens, self.group)

    def whole(self, x: Tensor) -> Tensor:
        """Gathers (B, F, N, C) from all ranks."""
        if self.axis == "space":
            return axis_gather(x, 1, self.frames, self.group)
        return axis_gather(x, 2, self.tokens, self.group)


def returning(run: Callable[..., tuple[Tensor, Pending | None]]) -> Callable[..., tuple[Tensor, Pending | None]]:
    """Returns a run of blocks, the last of whose arguments are shards, that ends with the frames where it began."""

    def around(*args: Any) -> tuple[Tensor, Pending | None]:
        return args[-1].along("space", *run(*args))

    return around


@contextmanager
def alone(model: Any) -> Iterator[None]:
    """Lets this rank call the model without the others within the context."""
    before = getattr(model, "parallel", None)
    if before is not None:
        model.parallel = None
    try:
        yield
    finally:
        if before is not None:
            model.parallel = before


def in_halves(model: Any, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns `call(x, t, **conditions)` of a model, each half of an even batch computed by another group of ranks."""

    def halved(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        parallel = getattr(model, "parallel", None)
        if parallel is None or parallel.config.cfg == 1 or len(x) % 2:
            return call(x, t, **conditions)
        own = {name: parallel.own_half(v, len(x)) for name, v in conditions.items()}
        return parallel.both_halves(call(parallel.own_half(x, len(x)), parallel.own_half(t, len(x)), **own))

    return halved


class Sharing:
    """A model whose clips several ranks may share."""

    parallel: Parallel | None = None

    def enable_parallelism(self, config: Any) -> None:
        """Lets the ranks of this process group share the model's clips from now on; all ranks call this together.

        Args:
            config: a ParallelConfig, or diffusers' ContextParallelConfig.
        """
        model: Any = self
        if getattr(getattr(model, "config", None), "patch_frames", 1) > 1:
            raise ValueError("enable_parallelism: patch_frames must be 1, as the head over frames sees the whole clip")
        self.parallel = Parallel(config, next(model.parameters()).device.type)

    def shards_of(self, x: Tensor, tokens: int, t: Tensor | None) -> Shards | None:
        """Returns where the tokens of a forward of x (B, F, C, H, W) at t go; None where no rank shares them."""
        if self.parallel is None:
            return None
        self.parallel.compare(*(given for given in (x, t) if given is not None))
        return self.parallel.shards(x.shape[1], tokens)
