"""What training and sampling ask of a family of models; each family's folder answers in its adapter.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from latte_fast.models.config import ModelConfig

Conditions = dict[str, Tensor]


class Condition(NamedTuple):
    """What samples are conditioned on: the model's keywords, the same for nothing, and a name for each sample."""

    given: Conditions
    null: Conditions
    names: list[str]


class Captions(Protocol):
    """Captions with their embeddings; see data.text.Texts."""

    captions: list[str]
    channels: int

    @property
    def null(self) -> Tensor: ...

    def told(self, numbers: Sequence[int], dropped: Sequence[bool] | Tensor = ()) -> tuple[Tensor, Tensor]: ...


class DataSizes(NamedTuple):
    """The clips that a model is made for: latent channels, latent side, frames."""

    channels: int
    side: int
    frames: int


class Adapter(Protocol):
    """How a model is built, conditioned, and called on (B, F, C, h, w).

    Args:
        config: the constructor's keywords as a dataclass.
        classes: names of the classes that it knows, kept with the weights.
        captions: what its conditions are read from; None for a model that is only built and called.
    """

    name: str  # of the family, kept in checkpoints
    labels: str  # what a label is: classes or captions
    config_type: type[Any]
    starts_from: str  # what --pretrained takes
    in_pipelines: bool  # whether it can stand in a text-to-video pipeline
    config: Any
    classes: list[str]
    choices: int  # labels that there are; 0 where nothing is asked for

    def __init__(self, config: Any, classes: Sequence[str] = (), captions: Captions | None = None): ...

    @classmethod
    def fit(
        cls, model: ModelConfig, sizes: DataSizes, classes: list[str], captions: Captions | None, start: str | None
    ) -> "Adapter":
        """The model for data of these sizes; `start` is what it will take its first weights from."""
        ...

    @classmethod
    def can_start(cls, path: Path) -> bool: ...

    @classmethod
    def check_export(cls, out: Path) -> None:
        """Raises ValueError where `out` is no name for this family's exported weights."""
        ...

    @classmethod
    def export(cls, model: nn.Module, out: Path, dtype: torch.dtype | None) -> None:
        """Writes a model's weights as others read them."""
        ...

    def build(self, images: int = 0, recompute: str = "none") -> nn.Module:
        """A new model, drawn by torch's generator."""
        ...

    def start(self, model: nn.Module, path: str) -> str:
        """Takes another model's weights; says which."""
        ...

    def read(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is added to an item of the data where it is read: `label`, `image_labels` and `drop` are in it."""
        ...

    def conditions(self, batch: Mapping[str, Any], images: int = 0) -> dict[str, Any]:
        """The model's keywords for a batch of items."""
        ...

    def condition_for(self, labels: Sequence[int], guidable: bool) -> Condition:
        """The same for samples of these labels, and for none where the model was trained to do without."""
        ...

    def label_names(self) -> Sequence[str]: ...

    def sample_shape(self, size: int, factor: int) -> tuple[int, int, int, int]:
        """(F, C, h, w) of a sample; `size` in pixels and the codec's `factor` where the config does not say."""
        ...

    def learns_sigma(self) -> bool: ...

    def guidable(self, dropout: float) -> bool:
        """Whether it was trained without condition now and then; `dropout` is how often its run left it out."""
        ...

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The model on x (B, F, C, h, w) -> (B, F, C or 2C, h, w)."""
        ...
