"""Which frames a FIFO queue holds, at which steps, and in which windows a model sees them; integers alone.

The queue holds as many frames as there are steps S. Frame i starts as noise in iteration i and takes a step in each
of S iterations, so that in iteration m it is at step S - 1 - (m - i), and the queue is a diagonal: its first frame is
nearly clean, its last one noise. The queue is cut into windows of the model's frames.
"""

from typing import NamedTuple


class Window(NamedTuple):
    """A call of the model on frames start, start + 1, ..., which moves frames first .. stop - 1 of them on."""

    start: int
    first: int
    stop: int


class Diagonal:
    """The iterations of a FIFO queue.

    At the film's beginning the queue fills up from its noisy end, and at its end it empties from there. A window that
    would leave the film is moved into it: it then sees frames that are still noise, or clean ones, beside its own. With
    lookahead, windows overlap by half, and each moves its noisier half.

    Args:
        frames: number of frames of the film.
        steps: number of sampling steps, which is the length of the queue.
        window: number of the model's frames, which divides it.
        lookahead: whether windows overlap by half.
    """

    def __init__(self, frames: int, steps: int, window: int, lookahead: bool):
        self.frames, self.steps, self.window = frames, steps, window
        self.moved = window // 2 if lookahead else window  # frames that a window moves on
        self.iterations = frames + steps - 1

    def level(self, frame: int, iteration: int) -> int:
        """Returns the step of a frame before an iteration: steps - 1 where it is noise, -1 where it is clean."""
        return min(max(self.steps - 1 - (iteration - frame), -1), self.steps - 1)

    def windows(self, iteration: int) -> list[Window]:
        """Returns the windows of an iteration, the least noisy first."""
        out = []
        head = iteration - self.steps + 1  # the frame at the queue's clean end, which may lie before the film
        for first in range(head, iteration + 1, self.moved):
            own = max(first, 0), min(first + self.moved, self.frames)
            if own[0] < own[1]:
                start = first + self.moved - self.window
                out.append(Window(min(max(start, 0), self.frames - self.window), *own))
        return out

    def span(self, iteration: int) -> tuple[int, int]:
        """Returns the first frame that an iteration needs, as later ones do not need those before, and the end."""
        starts = [window.start for window in self.windows(iteration)]
        return min(starts), max(starts) + self.window

    def finished(self, iteration: int) -> range:
        """Returns the frames that are clean after an iteration and were not before."""
        head = iteration - self.steps + 1
        return range(max(head, 0), max(head + 1, 0))
