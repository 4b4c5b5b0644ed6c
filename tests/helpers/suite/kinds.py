"""The three kinds of a text-to-video model that checks run on: diffusers' own, ours of its class, and a patched one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from latte_fast import patch
from tests.helpers.pipelines import PUBLISHED, SMALL, diffusers, pipeline, transformer

KINDS = ("theirs", "ours", "patched")
CHECKS: dict[str, "Check"] = {}


class Missing(Exception):
    """The installed diffusers, or this machine, does not have what a check is about."""


@dataclass(frozen=True)
class Check:
    """One feature: its row in the docs' table, and what must hold.

    Args:
        title: row of the table.
        run: function that raises unless a kind of model has the feature.
        shared: whether diffusers' own class has the feature too.
    """

    title: str
    run: Callable[["Kind"], None]
    shared: bool


def check(title: str, shared: bool = True) -> Callable[[Callable[["Kind"], None]], Callable[["Kind"], None]]:
    def add(run: Callable[["Kind"], None]) -> Callable[["Kind"], None]:
        CHECKS[run.__name__] = Check(title, run, shared)
        return run

    return add


@dataclass(frozen=True)
class Kind:
    name: str

    @property
    def cls(self) -> Any:
        if self.name != "ours":
            return diffusers.LatteTransformer3DModel
        from latte_fast.integrations.diffusers import LatteTransformer3DModel

        return LatteTransformer3DModel

    def finish(self, model: Any) -> Any:
        """Makes a model that diffusers' class has made this kind."""
        if self.name == "patched":
            assert patch(model).swapped
        return model

    def model(self, **changes: Any) -> Any:
        """Returns a model in eval mode; all kinds have the same weights."""
        torch.manual_seed(0)
        return self.finish(self.cls(**SMALL | PUBLISHED | changes).eval())

    def load(self, folder: Any, **options: Any) -> Any:
        return self.finish(self.cls.from_pretrained(folder, **options).eval())

    def pipeline(self, **changes: Any) -> Any:
        pipe = pipeline(**changes)
        if self.name == "ours":
            pipe.register_modules(transformer=self.model(**changes))
        return self.finish(pipe)


def reference(**changes: Any) -> Any:
    """Returns diffusers' model with the same weights as every kind's."""
    return transformer(**changes)


def need(owner: Any, name: str) -> Any:
    """Returns an attribute of diffusers; an installed release without it misses the feature."""
    found = getattr(owner, name, None)
    if found is None:
        raise Missing(f"diffusers {diffusers.__version__} has no {name}")
    return found


def installed(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise Missing(f"{name} is not installed") from None


def call(model: Any, seed: int = 0, **more: Any) -> torch.Tensor:
    """Calls a model on random inputs, by keyword as the pipeline does -> (2, 8, 3, 8, 8)."""
    noise = torch.Generator().manual_seed(seed)
    kind = next(p for p in model.parameters() if p.is_floating_point() and p.element_size() > 1).dtype
    x = torch.randn(2, 4, 3, 8, 8, generator=noise).to(kind)
    text = torch.randn(2, 7, 40, generator=noise).to(kind)
    given = {"hidden_states": x, "timestep": torch.tensor([3, 900]), "encoder_hidden_states": text}
    return model(**given, **more, return_dict=False)[0]


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 3e-6) -> None:
    """Asserts that two outputs differ by at most `limit` of the second one's largest value."""
    assert a.isfinite().all(), "output must be finite"
    error, size = (a.float() - b.float()).abs().max().item(), b.float().abs().max().item()
    assert error <= limit * size, f"error {error:.2e} of {size:.2e}, more than {limit:.0e}"
