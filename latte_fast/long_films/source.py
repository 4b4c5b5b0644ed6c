"""A source of long films: a model of short clips, how it draws longer ones, and the VAE that decodes them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.codecs.vae import CHUNK, frame_factor_of
from latte_fast.long_films.diagonal import Diagonal
from latte_fast.long_films.fifo import Fifo
from latte_fast.long_films.request import LongRequest, checked
from latte_fast.long_films.rollout import Rollout
from latte_fast.long_films.stepper import Stepper
from latte_fast.long_films.store import Tick, Work, mark_of, work_off
from latte_fast.long_films.windows import Windows, film_stores
from latte_fast.media.pixels import to_pixels
from latte_fast.sampling.files import contents
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource


class LongSource:
    """Draws films of any length from a source of clips.

    Args:
        source: model, its process and its VAE.
        frame_steps: share of clips whose frames had steps of their own in the model's training.
    """

    def __init__(self, source: ModelSource, frame_steps: float = 0.0):
        self.source, self.frame_steps = source, frame_steps
        self.network = source.network
        self._known: dict[LongRequest, Any] = {}

    def complete(self, request: LongRequest) -> LongRequest:
        """Returns a request with its options filled in and its forwards counted; refuses what the model can't draw."""
        patch_frames = getattr(self.source.adapter.config, "patch_frames", 1)
        request = checked(request, self.source.shape[0], patch_frames, frame_factor_of(self.source.vae))
        if request.kind == "rollout" and not self.frame_steps and not request.options.insist:
            rule = "fifo or windows for a model trained without diffusion.frame_steps"
            raise ValueError(f"sample: long must be {rule} unless long_films.insist is given, got rollout")
        self.source.guided_condition(request, [0])
        self.source.plan_for(replace(request, frames=None))
        return replace(request, forwards=self.forwards(request))

    def forwards(self, request: LongRequest) -> int:
        """Returns the number of the model's calls for a batch of films."""
        work = self.work(request, [0], Path("film"), lambda n: None)
        return sum(work.forwards(unit) for unit in range(work.units))

    def steps(self, request: Any) -> int:
        return int(request.forwards)

    def work(self, request: LongRequest, numbers: Sequence[int], path: Path, tick: Tick) -> Work:
        """Returns what draws the films `numbers` into the file `path`."""
        assert request.frames is not None
        if request.kind == "rollout":
            return Rollout(self.source, request, numbers, path, tick)
        stepper = Stepper(self.source, request, numbers)
        if request.kind == "windows":
            return Windows(stepper, request.frames, path, tick)
        schedule = Diagonal(request.frames, request.steps, self.source.shape[0], request.options.lookahead)
        return Fifo(stepper, schedule, path, tick)

    def batch(self, request: Request) -> int:
        return self.source.batch(request)

    def names(self, request: Request) -> list[str]:
        return self.source.names(request)

    def notes(self, request: Request) -> dict[str, Any]:
        assert isinstance(request, LongRequest)
        held = self.source.notes(request)
        kept = {name: x for name, x in held.items() if name not in ("kind", "options", "forwards")}
        options = {f"long_films.{name}": x for name, x in asdict(request.options).items() if name != "insist"}
        return kept | {"long": request.kind} | options

    @contextmanager
    def films(
        self, request: Request, numbers: Sequence[int], out: Path, tick: Tick
    ) -> Iterator[tuple[list[Iterator[Tensor]], list[str]]]:
        """Draws the latents of samples and yields each film, decoded a part at a time as it is read, and their names.

        While the context lasts, and after a stop, the latents lie in `out`, from which the same request goes on.
        """
        assert isinstance(request, LongRequest)
        path = out / f".film-{numbers[0]:06d}"
        keep = path.with_name(f"{path.name}.safetensors")
        work = self.work(request, numbers, path, tick)
        work_off(work, keep, mark_of(self._contents(request), numbers), tick)
        names = self.source.condition_for(numbers, request.seed).names
        yield [self.decoded(work, i) for i in range(len(numbers))], names
        for file in (*film_stores(path), keep):
            file.unlink(missing_ok=True)

    def draw(self, request: Request, numbers: Sequence[int], tick: Tick = lambda *n: None) -> tuple[Tensor, list[str]]:
        """Draws samples `numbers` as uint8 (B, F, H, W, 3), and their names."""
        with tempfile.TemporaryDirectory() as folder, self.films(request, numbers, Path(folder), tick) as drawn:
            films, names = drawn
            return torch.stack([torch.cat(list(film)) for film in films]), names

    @torch.no_grad()
    def decoded(self, work: Work, number: int) -> Iterator[Tensor]:
        """Yields the frames of a film, uint8 (n, H, W, 3)."""
        for first in range(0, work.film.frames, CHUNK):
            latents = work.film.read(first, min(first + CHUNK, work.film.frames))[number : number + 1]
            yield to_pixels(self.source.vae.decode(latents.to(self.source.device))[0])

    def _contents(self, request: LongRequest) -> Any:
        """Returns what a request's files are known by; the digest of all weights is taken once."""
        if request not in self._known:
            self._known = {request: contents(self, request)}
        return self._known[request]
