"""Reuse of what a model's stack of blocks adds to its tokens, from earlier steps of the same sampling run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from latte_fast.modules.residual import Pending, resolve

Run = Callable[..., tuple[Tensor, Pending | None]]
HIGHEST_ORDER = 2


class StackReuse:
    """Keeps the stack's sums of the latest computed steps; a reused step adds their extrapolation instead.

    A batch that was computed with two halves (with and without the condition) may be reused with its first half alone.
    """

    static = False  # whether a CUDA graph may read the sums

    def __init__(self, keep: int = HIGHEST_ORDER + 1):
        self.keep = keep
        self.kept: list[tuple[float, Tensor]] = []  # (position, sum), the newest first
        self.weights: tuple[float, ...] = ()

    @property
    def skips(self) -> bool:
        """Whether the blocks are left out of the forward that follows."""
        return bool(self.weights)

    def begin(self, time: Tensor) -> None:
        """Is told the time steps (B,) of every forward, before anything is computed."""

    def compute(self, position: float) -> None:
        """Announces a step whose blocks are run; positions are in any unit of the steps' spacing."""
        self.weights, self.position = (), position

    def reuse(self, position: float, order: int, weights: Sequence[float] = ()) -> None:
        """Announces a step whose blocks are left out; `order` earlier sums beside the newest are extrapolated.

        Weights, where they are given, take the place of Lagrange's.
        """
        if len(self.kept) <= order:
            raise ValueError(f"StackReuse: order must be below the {len(self.kept)} computed steps, got {order}")
        self.weights = tuple(weights) or extrapolation([p for p, _ in self.kept[: order + 1]], position)

    def stored(self, tokens: Tensor, x: Tensor, pending: Pending | None) -> Tensor:
        """Keeps what a computed stack added to its tokens; returns its output."""
        x = resolve(x, pending)
        self.kept = [(self.position, (x - tokens).detach()), *self.kept][: self.keep]
        return x

    def extrapolated(self, tokens: Tensor) -> Tensor:
        for weight, (_, stack) in zip(self.weights, self.kept, strict=False):
            if stack.shape[0] < tokens.shape[0]:
                rule = f"at most that of the computed step, {stack.shape[0]}"
                raise ValueError(f"StackReuse: batch must be {rule}, got {tokens.shape[0]}")
            tokens = tokens.add(stack[: tokens.shape[0]], alpha=weight)
        return tokens

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Lets the model's forwards in this context read and fill the store."""
        owner: Any = model
        if not hasattr(owner, "stack_reuse"):
            raise ValueError(f"StackReuse: model must offer the sum of its blocks, {type(model).__name__} does not")
        if owner.stack_reuse is not None:
            raise ValueError("StackReuse: model must not be in another run with reuse at the same time")
        owner.stack_reuse = self
        try:
            yield
        finally:
            del owner.stack_reuse  # the class's None again


def with_reuse(reuse: StackReuse | None, run: Run) -> Run:
    """Returns the function that runs a model's stack of blocks on its tokens, or reuses what it added before."""
    if reuse is None:
        return run

    def around(tokens: Tensor, *rest: Any) -> tuple[Tensor, Pending | None]:
        if reuse.skips:
            return reuse.extrapolated(tokens), None
        return reuse.stored(tokens, *run(tokens, *rest)), None

    return around


def extrapolation(positions: Sequence[float], target: float) -> tuple[float, ...]:
    """Returns Lagrange's weights of values at `positions` for the polynomial's value at `target`."""
    out = []
    for i, own in enumerate(positions):
        weight = 1.0
        for j, other in enumerate(positions):
            if i != j:
                weight *= (target - other) / (own - other)
        out.append(weight)
    return tuple(out)
