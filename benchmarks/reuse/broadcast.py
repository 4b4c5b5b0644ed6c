"""Published schedules that reuse attention and leave the rest to be computed: Pyramid Attention Broadcast, FasterCache.

Their steps cost a part of a forward, counted in multiply-adds: attention's share of a block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.runs.plan import PlanRow
from latte_fast.sampling.planned import Denoiser


class Broadcast(nn.Module):
    """Stands in an attention's place: calls it, or gives its earlier results in another combination."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.reuses = False
        self.slope = 0.0  # share of the last change that is added on reuse
        self.kept: list[Tensor] = []

    def forward(self, h: Tensor, *args: Any) -> Tensor:
        if self.reuses and self.kept:
            newest, older = self.kept[0], self.kept[-1]
            return newest + self.slope * (newest - older) if self.slope else newest
        out = self.attention(h, *args)
        y = out if isinstance(out, Tensor) else out[0] if out[1] is None else out[0] + out[1]
        self.kept = [y, *self.kept][:2]
        return y


@contextmanager
def broadcasting(net: Any) -> Iterator[list[tuple[str, Broadcast]]]:
    """Puts a Broadcast in the place of every attention of a Latte; yields them with their axes."""
    own = [block.attn for block in net.blocks]
    placed = [(net.config.axis(i), Broadcast(attention)) for i, attention in enumerate(own)]
    try:
        for block, (_, stand_in) in zip(net.blocks, placed, strict=True):
            block.attn = stand_in
        yield placed
    finally:
        for block, attention in zip(net.blocks, own, strict=True):
            block.attn = attention


class Broadcasting(Denoiser):
    """A Denoiser whose steps reuse attention as a schedule says; `cost` adds up forwards, by their multiply-adds."""

    placed: list[tuple[str, Broadcast]]
    share: float  # of attention in a forward
    steps: int
    cost: float

    @classmethod
    def of(cls, denoiser: Denoiser, placed: list[tuple[str, Broadcast]], share: float, steps: int) -> "Broadcasting":
        out = cls.__new__(cls)
        out.__dict__.update(denoiser.__dict__)
        out.placed, out.share, out.steps, out.cost = placed, share, steps, 0.0
        return out

    def __call__(self, x: Tensor, row: PlanRow, time: Tensor, position: int) -> Tensor:
        self.reuse.compute(position)
        reused = self.decide(row.time, position)
        self.cost += (1 - self.share * reused) * self.halves(position)
        start = self.process.predict_start(self.guided_at(x, row, time, position), x, time.expand(x.shape[0]))
        return start.clamp(-1, 1) if self.clip else start

    def decide(self, time: float, position: int) -> float:
        """Says to each attention whether it is reused; returns the share of them that are."""
        raise NotImplementedError

    def halves(self, position: int) -> float:
        """Returns the share of the batch that is run."""
        return 1.0

    def guided_at(self, x: Tensor, row: PlanRow, time: Tensor, position: int) -> Tensor:
        return self.guided(x, row, time)


class Pyramid(Broadcasting):
    """Pyramid Attention Broadcast: over space every 2nd step is computed, over time every 4th, for t in (100, 800)."""

    within = (100, 800)

    def decide(self, time: float, position: int) -> float:
        inside = self.within[0] < time < self.within[1]
        for axis, stand_in in self.placed:
            stand_in.reuses = inside and position % (4 if axis == "time" else 2) != 0
        return sum(stand_in.reuses for _, stand_in in self.placed) / len(self.placed)


class Faster(Broadcasting):
    """FasterCache: attention extrapolated at every other step, and the unguided half out of the guided one.

    From a third of the steps on, the unguided half is computed at every fifth; between, the kept difference of both is
    taken apart by frequency, and the low ones count more in the earlier half, the high ones in the later half.
    """

    begins = 1 / 3
    period = 5
    weight = 1.1

    def decide(self, time: float, position: int) -> float:
        late = position >= self.begins * self.steps
        for _, stand_in in self.placed:
            stand_in.reuses = late and position % 2 == 1
            stand_in.slope = position / self.steps
        return float(late and position % 2 == 1)

    def halves(self, position: int) -> float:
        return 0.5 if self.keeps(position) else 1.0

    def keeps(self, position: int) -> bool:
        late = position >= self.begins * self.steps
        return bool(self.doubled) and late and position % self.period != 0 and position != self.steps - 1

    def guided_at(self, x: Tensor, row: PlanRow, time: Tensor, position: int) -> Tensor:
        if not self.keeps(position):
            for _, stand_in in self.placed:  # a half batch was kept by the steps before
                stand_in.kept = [y for y in stand_in.kept if y.shape[0] == 2 * x.shape[0]]
            return self.guided(x, row, time)
        for _, stand_in in self.placed:
            stand_in.kept = [y[: x.shape[0]] for y in stand_in.kept]
        out = self.model(x, time.expand(x.shape[0]), **self.given).float()[:, :, : x.shape[2]]
        assert self.difference is not None
        spectrum = torch.fft.fftshift(torch.fft.fft2(self.difference), dim=(-2, -1))
        low = torch.zeros_like(spectrum.real)
        rows, columns = spectrum.shape[-2:]
        low[..., rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4] = 1
        early = position < self.steps / 2
        weights = 1 + (self.weight - 1) * (low if early else 1 - low)
        difference = torch.fft.ifft2(torch.fft.ifftshift(spectrum * weights, dim=(-2, -1))).real
        return out + (self.scale - 1) * difference
