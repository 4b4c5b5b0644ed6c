"""Requests for long films: how a model of short clips draws them, checked before any file is opened."""

from dataclasses import dataclass
from typing import Literal, get_args

from latte_fast.diffusion import METHODS
from latte_fast.sampling.request import Request

Kind = Literal["fifo", "windows", "rollout"]
# options of each kind; those of another are refused
OPTIONS = {"fifo": ("lookahead",), "windows": ("stride", "weights"), "rollout": ("context", "insist")}
# those whose windows share forwards
SHARED = ("fifo", "windows")


@dataclass(frozen=True)
class LongOptions:
    """How long films are drawn.

    Args:
        lookahead: for fifo, whether windows overlap by half, of which the noisier half takes the step, at twice the
            forwards.
        stride: for windows, distance of neighbouring windows in frames; by default half of the model's frames.
        weights: for windows, weight of a frame in a window: pyramid rises from the ends to the middle, flat is 1; by
            default pyramid.
        context: for rollout, number of clean frames that a window begins with; by default half of the model's frames.
        insist: for rollout, draw from a model that was not trained with a step a frame.
        at_once: number of windows in a forward, which takes memory; another number may change last bits.
    """

    lookahead: bool = True
    stride: int | None = None
    weights: Literal["pyramid", "flat"] | None = None
    context: int | None = None
    insist: bool = False
    at_once: int = 4

    def __post_init__(self) -> None:
        for name in ("stride", "context", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sample: long_films.{name} must be at least 1, got {value}")
        if self.weights not in (None, "pyramid", "flat"):
            raise ValueError(f"sample: long_films.weights must be pyramid or flat, got {self.weights!r}")


@dataclass(frozen=True)
class LongRequest(Request):
    """A request for films of `frames` frames by one of the kinds; `forwards` is what a batch of them takes."""

    kind: Kind = "fifo"
    options: LongOptions = LongOptions()
    forwards: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in OPTIONS:
            raise ValueError(f"sample: long must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        for kind, names in OPTIONS.items():
            for name in names:
                value = getattr(self.options, name)
                if kind != self.kind and value != getattr(LongOptions, name):
                    raise ValueError(f"sample: long_films.{name} must be left out for {self.kind}, got {value!r}")
        if self.kind not in SHARED:
            return
        simple = [name for name in METHODS if name != "dpm++"]
        if self.method not in simple:
            rule = f"{' or '.join(simple)} for {self.kind}, whose steps look at no step before"
            raise ValueError(f"sample: method must be {rule}, got {self.method!r}")
        for name in ("plan", "lossless"):
            if getattr(self, name):
                rule = f"left out for {self.kind}, which rollout alone follows"
                raise ValueError(f"sample: {'quality' if name == 'lossless' else name} must be {rule}")

    @property
    def calls(self) -> int:
        """Number of the model's calls for a batch of films."""
        return self.forwards


def checked(request: LongRequest, frames: int, patch_frames: int, merged: int) -> LongRequest:
    """Returns a request with every option filled in, checked against a model.

    Args:
        request: request with defaults left open.
        frames: number of frames of the model's clips.
        patch_frames: number of frames that a patch spans.
        merged: number of frames that a latent frame of the codec stands for.
    """
    kind, options = request.kind, request.options
    if merged > 1:
        raise ValueError(f"sample: long must be left out with a codec that merges {merged} frames, got {kind}")
    if patch_frames > 1 and kind != "windows":
        rule = "windows for a model whose patches span frames, which share a step"
        raise ValueError(f"sample: long must be {rule}, got {kind}")
    if request.frames is None or request.frames < frames:
        got = "none" if request.frames is None else request.frames
        raise ValueError(f"sample: frames must be at least the model's {frames} for {kind}, got {got}")
    filled = {name: getattr(options, name) for name in ("lookahead", "stride", "weights", "context")}
    if kind == "fifo":
        check_fifo(request, frames)
    elif kind == "windows":
        filled |= {"stride": options.stride or max(1, frames // 2), "weights": options.weights or "pyramid"}
        if filled["stride"] > frames:
            raise ValueError(f"sample: long_films.stride must be at most the model's {frames}, got {filled['stride']}")
        if filled["stride"] % patch_frames or request.frames % patch_frames:
            rule = f"multiples of the {patch_frames} frames of a patch"
            raise ValueError(f"sample: frames and stride must be {rule}, got {request.frames}, {filled['stride']}")
    else:
        filled["context"] = options.context or max(1, frames // 2)
        if frames < 2:
            raise ValueError(f"sample: long must be fifo or windows for a model of {frames} frame, got rollout")
        if filled["context"] >= frames:
            rule = f"below the model's {frames} frames"
            raise ValueError(f"sample: long_films.context must be {rule}, got {filled['context']}")
    options = LongOptions(insist=options.insist, at_once=options.at_once, **filled)
    return LongRequest(**{**request.__dict__, "options": options})


def check_fifo(request: LongRequest, frames: int) -> None:
    """Refuses a queue that does not divide into the windows of a model of so many frames."""
    if request.steps % frames:
        below = request.steps - request.steps % frames
        near = " or ".join(str(n) for n in (below, below + frames) if n)
        rule = f"a multiple of the model's {frames} frames for fifo, whose queue divides into windows, such as {near}"
        raise ValueError(f"sample: steps must be {rule}, got {request.steps}")
    if request.options.lookahead and frames % 2:
        rule = f"off for a model of {frames} frames, as windows overlap by half"
        raise ValueError(f"sample: long_films.lookahead must be {rule}")


def default_steps(kind: Kind, frames: int, steps: int) -> int:
    """Returns the number of sampling steps by default: of fifo the next number that divides into windows."""
    return -(-steps // frames) * frames if kind == "fifo" else steps
