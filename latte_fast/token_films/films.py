"""Draws the tokens of long films span by span, and keeps them in a file, so that a stop loses little."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latte_fast.files import atomic
from latte_fast.models.tats.decoder import Context, causal_context, gap_context
from latte_fast.runs.tokens import TokenLayout, TrainedTokens
from latte_fast.token_films.draw import Drawing, uniforms
from latte_fast.token_films.schedule import Span
from latte_fast.token_films.steps import Steps
from latte_fast.token_films.tiles import Tile, tiles, to_draw

Tick = Callable[..., object]  # called with a number of steps
# seconds between writes of a film's tokens
KEPT_EVERY = 5.0


@dataclass
class Films:
    """The tokens of some films, (B, frames, h w) int64, and how many parts of the work are done."""

    tokens: Tensor
    done: int = 0

    def save(self, path: Path, mark: str) -> None:
        with atomic(path) as partial:
            save_file({"tokens": self.tokens.cpu()}, partial, metadata={"done": str(self.done), "mark": mark})

    def restore(self, path: Path, mark: str) -> None:
        """Takes over what a stopped process of the same request has kept; what another one left is ignored."""
        with suppress(SafetensorError, OSError, ValueError, KeyError), safe_open(path, "pt") as file:
            about = file.metadata() or {}
            kept = file.get_tensor("tokens")
            if about["mark"] == mark and kept.shape == self.tokens.shape:
                self.tokens.copy_(kept)
                self.done = int(about["done"])


@dataclass(frozen=True)
class Part:
    """A part of the work that is done as a whole: a span of all films, or the gaps of some."""

    steps: int
    run: Callable[[], None]


def draw(films: Films, parts: Sequence[Part], keep: Path | None, mark: str, tick: Tick) -> None:
    """Does the parts that are not done, and keeps the tokens now and then in the file `keep`."""
    if keep is not None:
        films.restore(keep, mark)
    tick(sum(part.steps for part in parts[: films.done]))
    since = time.perf_counter()
    for part in parts[films.done :]:
        part.run()
        films.done += 1
        if keep is not None and (time.perf_counter() - since > KEPT_EVERY or films.done == len(parts)):
            films.save(keep, mark)
            since = time.perf_counter()


class Drawer:
    """Draws films of some samples with one transformer.

    Args:
        trained: transformer and what its tokens stand for.
        labels: class of each sample, (B,), or the tokens of its caption, (B, n); None for a model without either.
        numbers: numbers of the samples.
        seed: seed of all draws.
        how: how tokens are drawn.
        tick: function that is called after each token.
        kept: what draws the tokens of a number of sequences, kept for the next Drawer of the same transformer.
        sounds: tokens of each sample's sound, (t, n), where a sound is the condition.
        overlap: codes that neighbouring windows of a frame share, where the model sees windows; 0 is half of them.
    """

    def __init__(
        self,
        trained: TrainedTokens,
        labels: Tensor | None,
        numbers: Sequence[int],
        seed: int,
        how: Drawing,
        tick: Tick,
        kept: dict[int, Steps] | None = None,
        sounds: Sequence[Tensor] = (),
        overlap: int = 0,
    ):
        self.model, self.layout = trained.model, trained.layout
        self.device = self.model.pos_emb.device
        given = torch.zeros(len(numbers), dtype=torch.int64) if labels is None else labels
        self.given = given.view(len(numbers), -1).to(self.device)  # (B, n)
        self.numbers, self.seed, self.how, self.tick = list(numbers), seed, how, tick
        self._kept = {} if kept is None else kept
        self.sounds = list(sounds)
        self.tiles = tiles_of(self.layout, overlap)

    def _given(self, first: int) -> Tensor:
        """Returns the conditions of a window that begins at a latent frame: of a sound that of all the block's frames.

        A sound that ends before them goes on with its last tokens, as in training.
        """
        if not self.sounds:
            return self.given
        places = torch.arange(first, first + self.layout.frames)
        rows = [sound[places.clamp(max=len(sound) - 1)].flatten() for sound in self.sounds]
        return torch.stack(rows).to(self.device)

    def spans(self, tokens: Tensor, spans: Sequence[Span]) -> Iterator[Part]:
        """Yields the parts that draw spans of films (B, frames, h w); frames are those that the model sees."""
        for span in spans:
            for tile in self.tiles:
                first, last = to_draw(tile, span.stop - span.start)
                yield Part(last - first, lambda span=span, tile=tile: self._windowed(tokens, span, tile))  # type: ignore[misc]
            if not self.tiles:
                steps = (span.stop - span.start) * self.layout.per_frame
                yield Part(steps, lambda span=span: self._span(tokens, span))  # type: ignore[misc]

    def _span(self, tokens: Tensor, span: Span) -> None:
        known = tokens[:, span.context : span.start].flatten(1) + self.layout.conditions
        context = causal_context(torch.cat([self._given(span.context), known], 1))
        frames = range(span.start, span.stop)
        places = [frame * self.layout.every for frame in frames]
        rows = list(range(len(self.numbers)))
        tokens[:, span.start : span.stop] = self._draw(context, [(row, places) for row in rows])

    def _windowed(self, tokens: Tensor, span: Span, tile: Tile) -> None:
        """Draws what a window of new frames lacks, after its part of the frames before and what others have drawn."""
        inside, frames = tile.places.to(tokens.device), range(span.start, span.stop)
        first, last = to_draw(tile, len(frames))
        window = tokens[:, span.context : span.stop, inside]  # (B, frames, side * side)
        before = (span.start - span.context) * len(inside) + first
        given = torch.cat([self._given(span.context), window.flatten(1)[:, :before] + self.layout.conditions], 1)
        places = self.layout.film_places(inside[None])[0]
        context = replace(causal_context(given), places=places, conditions=self.layout.given)
        new = window[:, span.start - span.context :].flatten(1)
        drawn = tile.drawn.repeat(len(frames)).to(new.device)
        held = torch.where(drawn, new, -1)[:, first:last]
        shares = torch.stack(
            [uniforms(self.seed, self.numbers, frame, self.layout.film_side**2)[:, tile.places] for frame in frames], 1
        ).flatten(1)[:, first:last]
        steps = self._steps(len(self.numbers))
        new[:, first:last] = steps.draw(context, shares.to(self.device), self.tick, held)
        tokens[:, span.start : span.stop, inside] = new.unflatten(1, (len(frames), -1))

    def gaps(self, tokens: Tensor, spans: Sequence[Span], at_once: int, reading: str) -> Iterator[Part]:
        """Yields the parts that fill gaps of films, up to `at_once` gaps of any of the films in one."""
        jobs = [(row, span) for row in range(len(tokens)) for span in spans]
        for start in range(0, len(jobs), at_once):
            some = jobs[start : start + at_once]
            steps = (some[0][1].stop - some[0][1].start) * self.layout.per_frame
            yield Part(steps, lambda some=some: self._gaps(tokens, some, reading))  # type: ignore[misc]

    def _gaps(self, tokens: Tensor, jobs: Sequence[tuple[int, Span]], reading: str) -> None:
        before = torch.stack([tokens[row, span.context] for row, span in jobs]) + self.layout.conditions
        after = torch.stack([tokens[row, span.stop] for row, span in jobs]) + self.layout.conditions
        given = torch.stack([self.given[row] for row, _ in jobs])
        context = gap_context(self.model, torch.cat([given, before], 1), after, reading)
        wanted = [(row, list(range(span.start, span.stop))) for row, span in jobs]
        for (row, span), drawn in zip(jobs, self._draw(context, wanted), strict=True):
            tokens[row, span.start : span.stop] = drawn

    def _draw(self, context: Context, wanted: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        """Draws latent frames (n, frames, h w) after a context; `wanted` has each sequence's sample and frames."""
        size = self.layout.per_frame
        rows = [
            torch.cat([uniforms(self.seed, [self.numbers[row]], place, size)[0] for place in places])
            for row, places in wanted
        ]
        drawn = self._steps(len(wanted)).draw(context, torch.stack(rows).to(self.device), self.tick)
        return drawn.unflatten(1, (len(wanted[0][1]), size))

    def _steps(self, batch: int) -> Steps:
        """Returns what draws a number of sequences; one at a time holds its cache."""
        if batch not in self._kept:
            self._kept.clear()
            layout = self.layout
            self._kept[batch] = Steps(
                self.model, batch, layout.conditions, layout.n_codes, self.how, holds=bool(self.tiles)
            )
        return self._kept[batch]


def tiles_of(layout: TokenLayout, overlap: int) -> list[Tile]:
    """Returns the windows of a film's frame; none for a model that sees whole frames."""
    return tiles(layout.whole, layout.side, overlap) if layout.whole else []


def mark_of(held: object, numbers: Sequence[int]) -> str:
    """Returns what tells a request's kept tokens from another's: the request as plain values, and the samples."""
    return json.dumps([held, list(numbers)], sort_keys=True)
