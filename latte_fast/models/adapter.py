"""The protocol by which training and sampling use a family of models; each family implements it in its adapter.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from latte_fast.models.config import ModelConfig
from latte_fast.modules.modulation import ModulationTable

Conditions = dict[str, Tensor]


class Condition(NamedTuple):
    """The model's keywords for samples with their condition and with the null condition, and a name for each sample."""

    given: Conditions
    null: Conditions
    names: list[str]


class Captions(Protocol):
    """Captions with their embeddings; see data.text.Texts."""

    captions: list[str]
    channels: int

    @property
    def null(self) -> Tensor: ...

    def embeddings(self, numbers: Sequence[int], dropped: Sequence[bool] | Tensor = ()) -> tuple[Tensor, Tensor]: ...


class DataSizes(NamedTuple):
    """Sizes of the clips that a model is built for: latent channels, latent side, frames."""

    channels: int
    side: int
    frames: int


class Adapter(Protocol):
    """Builds the models of a family, makes their conditions, and calls them on (B, F, C, h, w).

    Args:
        config: the model's constructor keywords as a dataclass.
        classes: names of the model's classes, saved with the weights.
        captions: captions with their embeddings, which conditions are made from; None for a model that needs none.
    """

    name: str  # the family's name, saved in checkpoints
    labels: str  # what labels stand for: "classes" or "captions"
    config_type: type[Any]
    starts_from: str  # what `--pretrained` may name
    in_pipelines: bool  # whether the model can serve in a text-to-video pipeline
    config: Any
    classes: list[str]
    choices: int  # number of labels; 0 for an unconditional model

    def __init__(self, config: Any, classes: Sequence[str] = (), captions: Captions | None = None): ...

    @classmethod
    def fit(
        cls, model: ModelConfig, sizes: DataSizes, classes: list[str], captions: Captions | None, start: str | None
    ) -> "Adapter":
        """Returns the adapter of a model sized for the data; `start` is the path of its initial weights, if any."""
        ...

    @classmethod
    def can_start(cls, path: Path) -> bool: ...

    @classmethod
    def check_export(cls, out: Path) -> None:
        """Raises ValueError unless `out` can be the name of this family's exported weights."""
        ...

    @classmethod
    def export(
        cls, model: nn.Module, out: Path, dtype: torch.dtype | None, about: dict[str, Any] | None = None
    ) -> None:
        """Writes a model's weights in the layout of the original code, and what is known of them, plain values."""
        ...

    def build(self, images: int = 0, recompute: str = "none") -> nn.Module:
        """Returns a new model, its weights drawn from torch's global generator."""
        ...

    def start(self, model: nn.Module, path: str) -> str:
        """Loads the initial weights at `path` into the model; returns a report of what was loaded."""
        ...

    def read(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns tensors to add to a loaded data item, which has a `label`, and may have `image_labels` and `drop`."""
        ...

    def conditions(self, batch: Mapping[str, Any], images: int = 0) -> dict[str, Any]:
        """Returns the model's conditioning keywords for a training batch."""
        ...

    def condition_for(self, labels: Sequence[int], guidable: bool) -> Condition:
        """Returns the condition of samples with these labels; its null condition is empty unless `guidable`."""
        ...

    def label_names(self) -> Sequence[str]: ...

    def sample_shape(self, size: int, factor: int) -> tuple[int, int, int, int]:
        """Returns a sample's (F, C, h, w), by the config or from `size` in pixels and the codec's spatial `factor`."""
        ...

    def step_keywords(self, steps: int) -> Sequence[Mapping[str, Any]]:
        """Returns the keywords of the model's call at each of `steps` steps, from noise to sample; () for none.

        The process of training is `steps` of its own: it takes time step t at place steps - 1 - t. All values are
        numbers of the host, so that no step waits for the device.
        """
        ...

    def learns_sigma(self) -> bool: ...

    def guidable(self, dropout: float) -> bool:
        """Returns whether the model was trained with label dropout; `dropout` is the probability its run used."""
        ...

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """Calls the model on x (B, F, C, h, w) at t (B,) or (B, F) -> (B, F, C or 2C, h, w)."""
        ...

    def tabulate(self, model: nn.Module, times: Tensor, **conditions: Any) -> ModulationTable:
        """Returns the model's modulations at time steps (S,), or (S, B, F), for a batch with these conditions."""
        ...
