"""The names by which diffusers' models take caches, on ours: enable_cache, disable_cache, cache_context."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from latte_fast.modules.stack_reuse import StackReuse


class Cached(StackReuse):
    """A StackReuse that counts the forwards of a loop that it does not see, for each context apart."""

    context: str | None = None  # diffusers' name for a denoising call, such as cond or uncond

    def reset(self) -> None:
        """Forgets all runs: the next forward of each context is a first step."""
        raise NotImplementedError


class Caching:
    """A model that takes a cache: an object whose `start_steps(model)` checks the model and returns a `Cached`."""

    stack_reuse: StackReuse | None

    @property
    def is_cache_enabled(self) -> bool:
        return isinstance(self.stack_reuse, Cached)

    def enable_cache(self, config: Any) -> None:
        """Leaves blocks out as a latte_fast.StepCache says, or refuses at once, with the reason."""
        if not hasattr(config, "start_steps"):
            raise ValueError(f"enable_cache: config must be a latte_fast.StepCache, got {type(config).__name__}")
        if self.is_cache_enabled:
            raise ValueError("enable_cache: the model must have no cache yet; disable_cache() takes the old one away")
        if self.stack_reuse is not None:
            raise ValueError("enable_cache: the model must not be in a sampling run")
        self.stack_reuse = config.start_steps(self)

    def disable_cache(self) -> None:
        """Takes the cache away; without one it does nothing."""
        if self.is_cache_enabled:
            del self.stack_reuse  # the class's None again

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        if isinstance(self.stack_reuse, Cached):
            self.stack_reuse.reset()

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Names the denoising call of the forwards inside: cond and uncond, called apart, keep steps of their own."""
        reuse = self.stack_reuse
        if not isinstance(reuse, Cached):
            yield
            return
        before, reuse.context = reuse.context, name
        try:
            yield
        finally:
            reuse.context = before


def noisiest_of(time: Tensor) -> float:
    """Returns a call's time step on the host, the noisiest frame's, which on a GPU waits for the device."""
    return float(time.max())
