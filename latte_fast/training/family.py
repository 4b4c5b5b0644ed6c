"""What the trainer asks of a kind of model; one file a kind: of_classes.py, of_text.py."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from latte_fast.config import LatteConfig, LatteT2VConfig

Conditions = dict[str, Tensor]


class Asked(NamedTuple):
    """What samples are conditioned on: the model's keywords, the same for nothing, and a name for each sample."""

    condition: Conditions
    null: Conditions
    names: list[str]


class Family(Protocol):
    """How a model is built, told what to show, and called on (B, F, C, h, w)."""

    @property
    def config(self) -> LatteConfig | LatteT2VConfig: ...

    classes: list[str]  # kept with the weights
    choices: int  # labels there are; 0 where nothing is asked for

    def build(self, images: int, recompute: str) -> nn.Module:
        """A new model, by torch's generator."""
        ...

    def start(self, model: nn.Module, path: str) -> str:
        """Takes another model's weights; says which."""
        ...

    def drawn(self, item: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is added to an item of the data where it is read: `label`, `image_labels` and `drop` are in it."""
        ...

    def conditions(self, batch: dict[str, Tensor], images: int) -> dict[str, Any]:
        """The model's keywords for a batch of items."""
        ...

    def asked(self, labels: Sequence[int], guidable: bool) -> Asked:
        """The same for samples of these labels, and for none where the model was trained to do without."""
        ...

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The model on x (B, F, C, h, w) -> (B, F, C or 2C, h, w)."""
        ...
