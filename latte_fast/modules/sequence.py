"""One clip over several ranks: each has some of its frames, and for attention over time some patches of all frames.

So no attention goes across ranks. Attention over time is between two all-to-alls: the normed tokens go to the ranks of
their patches, and what they attended to comes back; the residual stays where it is. The ranks of a group call the model
together, on the same inputs, and get the same whole output; each has the gradients of its own tokens alone, which
`sum_gradients` adds up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latte_fast.modules.linear8 import Linear8
from latte_fast.modules.residual import Pending, resolve
from latte_fast.ops.axis_exchange import Exchange, axis_exchange, axis_gather, shares


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the clips; the degrees' product divides the number of ranks, whose rest takes other clips.

    Args:
        sequence: number of ranks that share a clip's tokens.
        cfg: 2 gives the halves of a guided batch, with and without the condition, to two groups of ranks.
        pieces: number of pieces in which tokens go to attention over time and come back, so that one is on its way
            while another is computed; by default 2 on a GPU, else 1.
    """

    sequence: int = 1
    cfg: int = 1
    pieces: int | None = None

    def __post_init__(self) -> None:
        given = ("pieces",) if self.pieces is not None else ()
        for name, allowed in (("sequence", None), ("cfg", (1, 2)), *((name, None) for name in given)):
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
        self.pieces = config.pieces or (2 if device == "cuda" else 1)
        self._groups = {name: mesh.get_group(name) for name in names}  # held, as their names are all that ops keep
        self._compared = False

    def name(self, axis: str) -> str:
        return self._groups[axis].group_name

    def rank(self, axis: str) -> int:
        return self._groups[axis].rank()

    def shards(self, frames: int, patches: int, images: int = 0, in_pieces: bool = True) -> "Shards | None":
        """Returns where the tokens of a forward go; None where no rank shares them."""
        degree = self.config.sequence
        if degree == 1:
            return None
        if degree > min(frames, patches):
            rule = f"at most the clip's {frames} frames and {patches} tokens a frame"
            raise ValueError(f"enable_parallelism: sequence must be {rule}, got {degree}")
        pieces = self.pieces if in_pieces else 1
        return Shards(self.name("sequence"), self.rank("sequence"), degree, frames, images, pieces)

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

    def each_some(self, make: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Returns make(x) of things (n, ...) that do not depend on each other; each rank of a clip makes some of them.

        Args:
            make: function of some of them, at least one, without gradients.
            x: the things, the same on all ranks that share a clip.
        """
        halves, parts = self.config.cfg, self.config.sequence
        if len(x) < halves * parts:
            return make(x)
        half = x.split(shares(len(x), halves))[self.rank("cfg")]
        made = make(half.split(shares(len(half), parts))[self.rank("sequence")])
        if parts > 1:
            made = axis_gather(made, 0, len(half), self.name("sequence"))
        return made if halves == 1 else axis_gather(made, 0, len(x), self.name("cfg"))

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
    """Where a forward's tokens are: each rank has some frames of all patches, and some of the images beside a clip.

    Args:
        group: name of the group that shares them.
        rank: this rank's number in it.
        ranks: number of its ranks.
        frames: number of the clip's frames.
        images: number of images beside it.
        pieces: number of pieces in which tokens go to attention over time.
    """

    def __init__(self, group: str, rank: int, ranks: int, frames: int, images: int = 0, pieces: int = 1):
        self.group, self.pieces, self.frames, self.all_images = group, pieces, frames, images
        self.away = 0  # number of tokens of a frame while the ranks of the patches have them
        self.held, stills = shares(frames, ranks), shares(images, ranks)
        self.begin, self.count = sum(self.held[:rank]), self.held[rank]
        self.first_image, self.images = frames + sum(stills[:rank]), stills[rank]

    def own_frames(self, x: Tensor, each: int = 1) -> Tensor:
        """Returns this rank's frames and images of (B, F+n, ...), where `each` frames make one of the model's."""
        video = x[:, self.begin * each : (self.begin + self.count) * each]
        return torch.cat([video, self.own_images(x)], 1) if self.images else video

    def own_images(self, x: Tensor) -> Tensor:
        return x[:, self.first_image : self.first_image + self.images]

    def own_rows(self, condition: Any, batch: int) -> Any:
        """Returns this rank's part of a condition (B*(F+n), D); one for each clip, (B, D), is left as it is."""
        if not isinstance(condition, Tensor) or condition.shape[0] == batch:
            return condition
        return self.own_frames(condition.unflatten(0, (batch, -1))).flatten(0, 1)

    def own_video(self, condition: Any, batch: int) -> Any:
        """Returns this rank's part of a condition (B*F, D) over time; all of it while it has all frames of patches."""
        if self.away or not isinstance(condition, Tensor) or condition.shape[0] == batch:
            return condition
        return condition.unflatten(0, (batch, -1))[:, self.begin : self.begin + self.count].flatten(0, 1)

    def own_positions(self, pos: Tensor | None) -> Tensor | None:
        """Returns this rank's part of positions (F, 1, D), or (F+n, 1, D)."""
        if pos is None or len(pos) > self.frames:
            return None if pos is None else self.own_frames(pos[None])[0]
        return pos[self.begin : self.begin + self.count]

    def along(self, stays: bool, x: Tensor, pending: Pending | None) -> tuple[Tensor, Pending | None]:
        """Moves x, its pending residual added, to the patches' ranks for blocks over time that follow each other.

        Args:
            stays: whether the next block is one of them; images beside a clip, which skip them, stay with the frames.
            x: tokens (B, F, N, D).
            pending: their residual.
        """
        if (stays and not self.all_images) == bool(self.away):
            return x, pending
        x, ranks = resolve(x, pending), len(self.held)
        if self.away:
            x, self.away = axis_exchange(x, 2, shares(self.away, ranks), self.held, self.group), 0
        else:
            self.away = x.shape[2]
            x = axis_exchange(x, 1, self.held, shares(self.away, ranks), self.group)
        return x, None

    def over_time(self, h: Tensor, attend: Callable[[Tensor], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        """Applies attention over time to tokens (B, F, N, D), of which this rank has some frames.

        Args:
            h: this rank's frames.
            attend: function of some patches of all frames that returns as many tokens, and what they all share.
        """
        patches = h.shape[2]
        pieces = max(1, min(self.pieces, patches // len(self.held)))
        if pieces == 1 or torch.compiler.is_compiling():
            owned = shares(patches, len(self.held))
            y, shared = attend(axis_exchange(h, 1, self.held, owned, self.group))
            return axis_exchange(y, 2, owned, self.held, self.group), shared
        sizes = shares(patches, pieces)
        owned_of = [shares(n, len(self.held)) for n in sizes]
        there = [Exchange(1, self.held, owned, self.group) for owned in owned_of]
        back = [Exchange(2, owned, self.held, self.group) for owned in owned_of]
        gone = [way.begin(part) for way, part in zip(there, h.split(sizes, 2), strict=True)]
        coming = []
        for out, way, token in zip(there, back, gone, strict=True):
            y, shared = attend(out.end(token))
            coming.append(way.begin(y))
        return torch.cat([way.end(token) for way, token in zip(back, coming, strict=True)], 2), shared

    def whole(self, x: Tensor, each: int = 1) -> Tensor:
        """Gathers (B, F+n, ...) from all ranks, where `each` frames were made of one of the model's."""
        video, images = x.split([self.count * each, self.images], 1)
        if each > 1:
            video = video.unflatten(1, (self.count, each))
        video = axis_gather(video, 1, self.frames, self.group)
        video = video.flatten(1, 2) if each > 1 else video
        if not self.all_images:
            return video
        return torch.cat([video, axis_gather(images, 1, self.all_images, self.group)], 1)


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


def decoded(model: Any, framewise: bool, decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Returns decode(latents), (B, F, ...): where frames are decoded one by one, each rank of a clip takes some."""
    parallel = getattr(model, "parallel", None)
    if parallel is None or not framewise:
        return decode(latents)
    pictures = parallel.each_some(lambda some: decode(some[None])[0], latents.flatten(0, 1))
    return pictures.unflatten(0, tuple(latents.shape[:2]))


class Sharing:
    """A model whose clips several ranks may share."""

    parallel: Parallel | None = None

    def enable_parallelism(self, config: Any) -> None:
        """Lets the ranks of this process group share the model's clips from now on; all ranks call this together.

        Args:
            config: a ParallelConfig, or diffusers' ContextParallelConfig.
        """
        model: Any = self
        eight = [name for name, module in model.named_modules() if isinstance(module, Linear8)]
        if eight:
            raise ValueError(
                f"enable_parallelism: layers must be of 16 or 32 bits where ranks share a clip, got {eight[0]} in 8"
            )
        self.parallel = Parallel(config, next(model.parameters()).device.type)

    def shards_of(self, x: Tensor, t: Tensor | None, frames: int, tokens: int, images: int) -> Shards | None:
        """Returns where the tokens of a forward of x at t go, so many of each frame; None where no rank shares them."""
        if self.parallel is None:
            return None
        self.parallel.compare(*(given for given in (x, t) if given is not None))
        # a block that is computed again would send its pieces again
        model: Any = self
        in_pieces = getattr(model, "policy", model.recompute) == "none" or not torch.is_grad_enabled()
        return self.parallel.shards(frames, tokens, images, in_pieces)
