"""Which latent frames of a long film are drawn from which: sliding windows, and key frames with gaps between them."""

from typing import NamedTuple


class Span(NamedTuple):
    """Latent frames start .. stop - 1, drawn after those from `context` on."""

    context: int
    start: int
    stop: int


def windows(frames: int, fits: int, context: int, stride: int = 1) -> list[Span]:
    """Returns the spans of a film: the first of context + stride frames, then `stride` frames after the last `context`.

    Args:
        frames: number of latent frames of the film.
        fits: number that fit into the transformer's block.
        context: number that a window begins with.
        stride: number that a window adds.
    """
    if context < 1 or stride < 1:
        name, got = ("context", context) if context < 1 else ("stride", stride)
        raise ValueError(f"sample: tokens.{name} must be at least 1, got {got}")
    if frames <= fits:
        return [Span(0, 0, frames)]
    if context + stride > fits:
        rule = f"at most the {fits} latent frames of the model's block together"
        raise ValueError(
            f"sample: tokens.context and tokens.stride must be {rule}, got a window of {context} + {stride}"
        )
    spans = [Span(0, 0, context + stride)]
    while spans[-1].stop < frames:
        start = spans[-1].stop
        spans.append(Span(start - context, start, min(start + stride, frames)))
    return spans


def gaps(frames: int, every: int, frame_factor: int = 1) -> list[Span]:
    """Returns the gaps between key frames 0, every, 2 every, ..., of which the last is the film's last frame.

    Args:
        frames: number of latent frames of the film.
        every: distance of the key frames.
        frame_factor: frames a latent frame, for the message.
    """
    count, rest = divmod(frames - 1, every)
    if rest or count < 1:
        below = max(1, count) * every + 1
        near = sorted({below, below + every})
        numbers = " or ".join(str(n * frame_factor) for n in near)
        rule = f"reachable by key frames {every} latent frames apart, such as {numbers}"
        raise ValueError(f"sample: frames must be {rule}, got {frames * frame_factor}")
    return [Span(i * every, i * every + 1, (i + 1) * every) for i in range(count)]
