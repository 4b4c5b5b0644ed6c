"""The precisions that the blocks of a quantised model can run in: 8 bits, or 16 where those weights were kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from latte_fast.modules.linear8 import Linear8

SIXTEEN = "16"


class Precisions:
    """What a model's linear layers can run in; the first of `known` is what they run in by themselves.

    `select` exchanges the layers: in 16 bits the model is the one that was quantised, bit for bit. The exchange is of a
    name a layer, and copies nothing. Layers that quantize left in 16 bits stay as they are.
    """

    def __init__(self, model: nn.Module | None):
        self.model: Any = model
        self.places: list[tuple[nn.Module, str, Linear8]] = []
        for owner in () if model is None else model.modules():
            places = [(owner, name, x) for name, x in owner._modules.items() if type(x) is Linear8]
            self.places += places
        before = [layer.before is not None for _, _, layer in self.places]
        own = self.places[0][2].precision if self.places else SIXTEEN
        self.known = (own, SIXTEEN) if before and all(before) else (own,)

    def select(self, precision: str) -> None:
        """Lets the model's next forwards run in a precision that it has."""
        if precision == self.model.precision:
            return
        for owner, name, layer in self.places:
            owner._modules[name] = layer.before if precision == SIXTEEN else layer
        self.model.precision = precision

    @contextmanager
    def attached(self) -> Iterator["Precisions"]:
        """Lets `select` exchange the layers in this context, after which they are what they were."""
        if "precision" in vars(self.model):
            raise ValueError("Precisions: model must not be in another run of two precisions at the same time")
        self.model.precision = self.known[0]
        try:
            yield self
        finally:
            self.select(self.known[0])
            del self.model.precision


def selected(model: nn.Module) -> str | None:
    """Returns the precision that a model's run has selected, None where no run selects any."""
    return vars(model).get("precision")
