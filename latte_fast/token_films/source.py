"""A source of films: a token transformer that draws them, one that fills gaps, and the VQGAN that decodes."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latte_fast.codecs.clip_bpe import ClipBPE
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.media.pixels import to_pixels
from latte_fast.models.tats.chunks import decode_in_chunks
from latte_fast.runs.tokens import TokenLayout, TrainedTokens
from latte_fast.sampling.chunks import labels_of
from latte_fast.sampling.request import Request
from latte_fast.token_films.draw import Drawing
from latte_fast.token_films.films import Drawer, Films, Part, Tick, draw, mark_of, tiles_of
from latte_fast.token_films.schedule import Span, gaps, windows
from latte_fast.token_films.steps import Steps
from latte_fast.token_films.tiles import to_draw


@dataclass(frozen=True)
class TokenOptions:
    """How a token transformer draws films.

    Args:
        temperature: divisor of the logits; 0 takes the likeliest token always.
        top_k: number of likeliest tokens that can be drawn; 0 is all.
        top_p: probability of the tokens that can be drawn, the likeliest first; 1 is all.
        context: number of latent frames that a window of a long film begins with.
        stride: number of latent frames that a window adds.
        overlap: number of codes that neighbouring windows of a frame share, for a model that sees windows of frames; 0
            is half a window.
        between: run of a model that fills the gaps of a hierarchy, where the drawing one draws key frames.
        reading: what the model between sees: trained, as in its training; or released, as the authors' sampler shows
            it, which is used with their weights.
        gaps: number of gaps filled at once, which takes memory; another number may change last bits.
        chunk: number of latent frames decoded before their frames are written; films do not depend on it.
        bpe: CLIP's vocabulary, for a model with captions; by default the file that the run was trained with.
        sound_vae: VQGAN of sounds, for a model that hears them; by default that of the run.
    """

    temperature: float = 1.0
    top_k: int = 2048
    top_p: float = 0.92
    context: int = 1
    stride: int = 1
    overlap: int = 0
    between: str = ""
    reading: Literal["trained", "released"] = "trained"
    gaps: int = 16
    chunk: int = 16
    bpe: str = ""
    sound_vae: str = ""

    def __post_init__(self) -> None:
        for name in ("context", "stride", "gaps", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"sample: tokens.{name} must be at least 1, got {getattr(self, name)}")
        if self.overlap < 0:
            raise ValueError(f"sample: tokens.overlap must be at least 0, got {self.overlap}")
        if self.reading not in ("trained", "released"):
            raise ValueError(f"sample: tokens.reading must be trained or released, got {self.reading!r}")

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.temperature, self.top_k, self.top_p)


class TokenSource:
    """Draws films by the numbers of samples: a sample's tokens follow from the seed and its number alone.

    Args:
        trained: transformer that draws films, or their key frames.
        codec: VQGAN of its tokens.
        options: how it draws.
        wanted: classes by name or number, in turn over the samples; by default drawn by the seed. Of a model with
            captions, what to show.
        between: transformer that fills the gaps between key frames.
        bpe: vocabulary of a model with captions.
        sounds: tokens of sounds, (t, n) each, in turn over the samples, for a model that hears them.
    """

    def __init__(
        self,
        trained: TrainedTokens,
        codec: VQGANCodec,
        options: TokenOptions,
        wanted: Sequence[str] = (),
        between: TrainedTokens | None = None,
        bpe: ClipBPE | None = None,
        sounds: Sequence[Tensor] = (),
    ):
        check_models(trained, codec, between)
        check_sounds(trained.layout, sounds)
        self.tiles = tiles_of(trained.layout, options.overlap)
        if options.overlap and not self.tiles:
            rule = "0 for a model that sees whole frames"
            raise ValueError(f"sample: tokens.overlap must be {rule}, got {options.overlap}")
        self.sounds = [sound.long() for sound in sounds]
        self.trained, self.codec, self.options, self.between = trained, codec, options, between
        self.drawing = options.drawing
        self.captions: list[str] = []
        self.words: Tensor | None = None
        if trained.layout.bpe:
            self.captions = list(wanted)
            self.words = caption_tokens(trained, self.captions, bpe)
        self.wanted = [] if trained.layout.bpe else [label_number(trained, name) for name in wanted]
        self._known: dict[Request, Any] = {}
        self._kept: tuple[dict[int, Steps], dict[int, Steps]] = ({}, {})  # of the first and the second transformer
        self.network = nn.ModuleList([trained.model, *([between.model] if between else [])])

    def batch(self, request: Request) -> int:
        return request.batch

    def names(self, request: Request) -> list[str]:
        return self._names(range(request.count), request.seed)

    def notes(self, request: Request) -> dict[str, Any]:
        kept = {name: getattr(request, name) for name in ("count", "batch", "seed", "frames", "format", "fps")}
        # what films do not depend on, or what may be moved, is left out
        left = ("between", "chunk", "bpe", "sound_vae", *(() if self.tiles else ("overlap",)))
        options = {name: x for name, x in asdict(self.options).items() if name not in left}
        heard = [zlib.crc32(sound.numpy().tobytes()) for sound in self.sounds]
        kept |= {f"tokens.{name}": x for name, x in options.items()}
        return kept | ({"sounds": heard} if heard else {})

    def _labels(self, numbers: Sequence[int], seed: int) -> Tensor | None:
        if self.words is not None:
            return self.words[[number % len(self.words) for number in numbers]]
        choices = 0 if self.sounds else self.trained.layout.conditions
        return labels_of(numbers, self.wanted, choices, seed) if choices else None

    def _names(self, numbers: Sequence[int], seed: int) -> list[str]:
        if self.sounds:
            return [f"sound {number % len(self.sounds)}" for number in numbers]
        if self.captions:
            return [self.captions[number % len(self.captions)] for number in numbers]
        labels = self._labels(numbers, seed)
        if labels is None:
            return [f"sample {number}" for number in numbers]
        return [self.trained.classes[label] for label in labels.tolist()]

    def frames(self, request: Request) -> int:
        """Returns the number of latent frames of a film."""
        layout = self.trained.layout
        if request.frames is None:
            return (layout.frames - 1) * layout.every + 1
        if request.frames % layout.frame_factor:
            rule = f"a multiple of the VQGAN's {layout.frame_factor}"
            raise ValueError(f"sample: frames must be {rule}, got {request.frames}")
        return request.frames // layout.frame_factor

    def schedule(self, request: Request) -> tuple[list[Span], list[Span]]:
        """Returns the spans that the first transformer draws, in frames that it sees, and the gaps of the second."""
        layout, frames = self.trained.layout, self.frames(request)
        between = gaps(frames, layout.every, layout.frame_factor) if layout.every > 1 else []
        seen = len(between) + 1 if between else frames
        return windows(seen, layout.frames, self.options.context, self.options.stride), between

    def steps(self, request: Request) -> int:
        """Returns the number of steps that the films of a batch take: tokens one after the other."""
        spans, between = self.schedule(request)
        size = self.trained.layout.per_frame
        if self.tiles:
            ranges = [to_draw(tile, span.stop - span.start) for span in spans for tile in self.tiles]
            return sum(last - first for first, last in ranges)
        groups = -(-len(between) * request.batch // self.options.gaps)
        return spans[-1].stop * size + groups * (self.trained.layout.every - 1) * size

    @torch.no_grad()
    def tokens(self, request: Request, numbers: Sequence[int], tick: Tick, keep: Path | None = None) -> Tensor:
        """Draws the tokens of samples `numbers`, (B, t, h, w); the file `keep` holds them while they are drawn."""
        layout, labels = self.trained.layout, self._labels(numbers, request.seed)
        spans, between = self.schedule(request)
        films = Films(torch.zeros(len(numbers), self.frames(request), layout.film_side**2, dtype=torch.int64))
        films.tokens = films.tokens.to(self.trained.model.pos_emb.device)
        given = (labels, numbers, request.seed, self.drawing, tick)
        sounds = [self.sounds[number % len(self.sounds)] for number in numbers] if self.sounds else ()
        first = Drawer(self.trained, *given, self._kept[0], sounds, self.options.overlap)
        parts: list[Part] = list(first.spans(films.tokens[:, :: layout.every], spans))
        if self.between is not None:
            fill = Drawer(self.between, *given, self._kept[1])
            parts += fill.gaps(films.tokens, between, self.options.gaps, self.options.reading)
        mark = mark_of(self._contents(request), numbers) if keep else ""
        draw(films, parts, keep, mark, tick)
        return films.tokens.unflatten(2, (layout.film_side, layout.film_side))

    def _contents(self, request: Request) -> Any:
        """Returns what a request's files are known by; the digest of all weights is taken once."""
        from latte_fast.sampling.files import contents

        if request not in self._known:
            self._known = {request: contents(self, request)}
        return self._known[request]

    def draw(self, request: Request, numbers: Sequence[int], tick: Tick = lambda *n: None) -> tuple[Tensor, list[str]]:
        """Draws samples `numbers` as uint8 (B, F, H, W, 3), and their names."""
        tokens = self.tokens(request, numbers, tick)
        videos = [torch.cat(list(self.decoded(film))) for film in tokens]
        return torch.stack(videos), self._names(numbers, request.seed)

    @contextmanager
    def films(
        self, request: Request, numbers: Sequence[int], out: Path, tick: Tick
    ) -> Iterator[tuple[list[Iterator[Tensor]], list[str]]]:
        """Draws the tokens of samples and yields each film, decoded a part at a time as it is read, and their names.

        While the context lasts, and after a stop, the tokens lie in `out`, from which the same request goes on.
        """
        keep = out / f".tokens-{numbers[0]:06d}.safetensors"
        tokens = self.tokens(request, numbers, tick, keep)
        yield [self.decoded(film) for film in tokens], self._names(numbers, request.seed)
        keep.unlink(missing_ok=True)

    @torch.no_grad()
    def decoded(self, film: Tensor) -> Iterator[Tensor]:
        """Yields the frames of a film's tokens (t, h, w), uint8 (n, H, W, 3)."""
        network = self.codec.network
        if network.config.norm == "batch":
            for part in decode_in_chunks(network, film[None], self.options.chunk):
                yield to_pixels(part[0].movedim(0, 1).float()).cpu()
        else:
            yield to_pixels(network.decode(film[None].to(network.device))[0].movedim(0, 1).float()).cpu()


def check_models(trained: TrainedTokens, codec: VQGANCodec, between: TrainedTokens | None) -> None:
    """Refuses models and a VQGAN that do not belong together."""
    layout = trained.layout
    if layout.gap:
        rule = "a model that draws films, and one that fills gaps belongs to --tokens.between"
        raise ValueError(f"sample: path must be {rule}, got {trained.config.out}")
    if codec.fingerprint != layout.fingerprint:
        rule = f"the one whose tokens the model knows, with fingerprint {layout.fingerprint}"
        raise ValueError(f"sample: vae must be {rule}, got {codec.name} with {codec.fingerprint}")
    if (layout.every > 1) != (between is not None):
        if between is None:
            rule = f"the run of a model that fills gaps, as the model draws every {layout.every}th latent frame"
            raise ValueError(f"sample: tokens.between must be {rule}, got none")
        raise ValueError("sample: tokens.between must be left out for a model that draws every latent frame, got a run")
    if between is None:
        return
    other = between.layout
    rules = (
        ("a model that fills gaps (--tokens.gap in training)", other.gap, "one that draws films"),
        (f"of {layout.every - 1} latent frames a gap", other.frames == layout.every + 1, f"{other.frames - 2}"),
        ("of the same VQGAN's tokens", other.fingerprint == layout.fingerprint, f"those of {other.fingerprint}"),
        (f"of latent frames of {layout.side} codes a side", other.side == layout.side, f"{other.side}"),
        ("without captions or sounds, which a model of gaps does not know", not layout.words, "one with"),
        ("of the same classes", between.classes == trained.classes, f"{len(between.classes)} classes"),
    )
    for rule, ok, got in rules:
        if not ok:
            raise ValueError(f"sample: tokens.between must be {rule}, got {got}")


def check_sounds(layout: TokenLayout, sounds: Sequence[Tensor]) -> None:
    """Refuses sounds for a model that hears none, a model that hears without any, and tokens of another kind."""
    if bool(layout.sound) != bool(sounds):
        rule, got = ("at least one sound", "none") if layout.sound else ("left out for this model", f"{len(sounds)}")
        raise ValueError(f"sample: audio must be {rule}, got {got}")
    for sound in sounds:
        if sound.dim() != 2 or sound.shape[1] != layout.sound_per_frame or not len(sound):
            shape = tuple(sound.shape)
            raise ValueError(f"sample: a sound's tokens must be (t, {layout.sound_per_frame}), got {shape}")


def caption_tokens(trained: TrainedTokens, captions: Sequence[str], bpe: ClipBPE | None) -> Tensor:
    """Returns the tokens of captions, (n, words), for a model that was trained with them."""
    layout = trained.layout
    if not captions:
        raise ValueError("sample: prompt must say what to show, for a model trained with captions, got none")
    if bpe is None or bpe.digest != layout.bpe:
        got = "none" if bpe is None else f"{bpe.path} with {bpe.digest}"
        raise ValueError(f"sample: tokens.bpe must be the training's vocabulary, with digits {layout.bpe}, got {got}")
    return bpe.tokens(captions, layout.words)


def label_number(trained: TrainedTokens, name: str) -> int:
    """Returns the number of a class that is given by name or number."""
    known = trained.classes
    if not known:
        raise ValueError(f"sample: classes must be left out for a model without, got {name!r}")
    if name in known:
        return known.index(name)
    if name.isdecimal() and int(name) < len(known):
        return int(name)
    some = ", ".join(known[:20]) + ", ..." * (len(known) > 20)
    raise ValueError(f"sample: classes must be below {len(known)} or one of {some}, got {name!r}")
