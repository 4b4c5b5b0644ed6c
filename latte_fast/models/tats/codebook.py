"""The codebook: nearest codes, and codes that follow the latents which chose them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from latte_fast import ops
from latte_fast.models.tats.norm import Wide

DECAY, LAPLACE, COMMITMENT = 0.99, 1e-7, 0.25


class Quantised(NamedTuple):
    """What the codebook makes of latents z (B, D, t, h, w)."""

    embeddings: Tensor  # the nearest codes, like z; gradients pass straight to z
    indices: Tensor  # (B, t, h, w) int64
    commitment: Tensor  # (B,) a quarter of the mean squared distance to the code
    perplexity: Tensor  # () exp of the entropy of the codes that this call chose


class Codebook(Wide):
    """Codes as exponential averages of latents; in training every call updates them, or `update` does if `waits`.

    Codes count as initialised once any of the counts N is above 0, which the state dict holds: a loaded codebook is
    never drawn anew.

    Args:
        n_codes: number of codes.
        width: width of a code.
        restart: a code whose count is below this starts again from a latent of the batch; 0 never restarts one.
    """

    def __init__(self, n_codes: int, width: int, restart: float = 0.0):
        super().__init__()
        self.register_buffer("embeddings", torch.randn(n_codes, width))
        self.register_buffer("N", torch.zeros(n_codes))
        self.register_buffer("z_avg", self.embeddings.clone())
        self.restart, self.waits = restart, False
        self.source: Callable[[], torch.Generator] | None = None  # of the draws; by default torch's global generator
        self.perplexity, self.usage = torch.tensor(0.0), torch.tensor(0.0)  # of the last update
        self._initialised: bool | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.register_load_state_dict_post_hook(lambda module, keys: module.forget())

    @property
    def initialised(self) -> bool:
        if self._initialised is None:
            self._initialised = bool(self.N.any())
        return self._initialised

    def forget(self) -> None:
        """Drops what was derived from buffers that have been replaced, and latents that wait for an update."""
        self._initialised = None
        self._pending.clear()

    def forward(self, z: Tensor) -> Quantised:
        with torch.autocast(z.device.type, enabled=False):
            return self._quantise(z if z.dtype == torch.float64 else z.float())

    def _quantise(self, z: Tensor) -> Quantised:
        flat = z.detach().movedim(1, -1).flatten(0, -2)  # (M, D)
        if self.training and not self.initialised:
            self._start(flat)
        chosen = ops.nearest_code(flat.contiguous(), self.embeddings)
        # a copy, as the codes may be updated before the gradient is asked for
        nearest = self.embeddings[chosen].unflatten(0, (z.shape[0], *z.shape[2:])).movedim(-1, 1)
        commitment = COMMITMENT * F.mse_loss(z, nearest, reduction="none").mean([1, 2, 3, 4])
        with torch.no_grad():
            perplexity = perplexity_of(counts_of(chosen, len(self.N)))
        if self.training:
            self._pending.append((flat, chosen))
            if not self.waits:
                self.update()
        straight = (nearest - z).detach() + z if z.requires_grad else nearest
        return Quantised(straight, chosen.view(z.shape[0], *z.shape[2:]), commitment, perplexity)

    def look_up(self, indices: Tensor) -> Tensor:
        """Returns the codes of indices (B, t, h, w): (B, D, t, h, w)."""
        return F.embedding(indices, self.embeddings).movedim(-1, 1)

    @torch.no_grad()
    def update(self) -> None:
        """Moves counts and sums by 1 % towards those of the latents since the last update, of all ranks."""
        assert self._pending, "no latents have been seen since the last update"
        flat, chosen = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        counts = counts_of(chosen, len(self.N)).to(self.N)
        sums = torch.zeros_like(self.z_avg).index_add_(0, chosen, flat.to(self.z_avg))
        counts, sums = summed(counts), summed(sums)
        self.N.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.z_avg.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        total = self.N.sum()
        smoothed = (self.N + LAPLACE) / (total + len(self.N) * LAPLACE) * total
        self.embeddings.copy_(self.z_avg / smoothed[:, None])
        self.perplexity, self.usage = perplexity_of(counts), (counts > 0).float().mean()
        if self.restart:
            self._restart(flat)

    def _restart(self, flat: Tensor) -> None:
        """Gives dead codes a latent of the batch each, and a count with which one use a batch keeps them alive."""
        dead = self.N.lt(self.restart)[:, None]
        fresh = self._drawn(flat)
        self.embeddings.copy_(torch.where(dead, fresh, self.embeddings))
        self.z_avg.copy_(torch.where(dead, fresh * self.restart, self.z_avg))
        self.N.clamp_(min=self.restart)

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        """Takes latents of the first batch as codes."""
        drawn = self._drawn(flat)
        self.embeddings.copy_(drawn)
        self.z_avg.copy_(drawn)
        self.N.fill_(1)
        self._initialised = True

    def _drawn(self, flat: Tensor) -> Tensor:
        """Draws n_codes latents of all ranks' batch, the same on each; of a smaller batch, some twice with noise."""
        codes, width = tuple(self.embeddings.shape)
        ranks, rank = world()
        rows = len(flat) * ranks
        times = -(-codes // rows)
        source = self.source() if self.source is not None else None
        order = torch.randperm(rows * times, generator=source)[:codes] % rows
        if source is None and ranks > 1:
            order = order.to(flat.device)
            dist.broadcast(order, 0)
        order = order.to(flat.device)
        mine = order // len(flat) == rank
        # ranks hold their latents only, and zeros for the others'
        drawn = flat[order % len(flat)].to(self.embeddings) * mine[:, None]
        drawn = summed(drawn)
        if times > 1:
            noise = torch.randn(codes, width, generator=source) * (0.01 / width**0.5)
            if source is None and ranks > 1:
                noise = noise.to(flat.device)
                dist.broadcast(noise, 0)
            drawn += noise.to(drawn)
        return drawn


def counts_of(chosen: Tensor, n_codes: int) -> Tensor:
    """Counts how often each code was chosen, (n_codes,) int64; on a GPU bincount would make the host wait."""
    counts = torch.zeros(n_codes, dtype=torch.int64, device=chosen.device)
    return counts.scatter_add_(0, chosen, torch.ones_like(chosen))


def perplexity_of(counts: Tensor) -> Tensor:
    share = counts / counts.sum()
    return torch.exp(-(share * torch.log(share + 1e-10)).sum())


def world() -> tuple[int, int]:
    """Returns the number of ranks, and this one's."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


def summed(x: Tensor) -> Tensor:
    """Sums over ranks, in place."""
    if world()[0] > 1:
        dist.all_reduce(x)
    return x
