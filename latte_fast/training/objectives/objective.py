"""What the trainer asks of an objective; it knows nothing else of what is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from latte_fast.training.learner import Learner
from latte_fast.training.loader import Batch


class Objective(Protocol):
    """A thing to learn.

    A step takes the run's next batch through each learner in turn: losses, backward, update. A learner with several
    parts that update apart (a generator, its discriminator) is several learners.
    """

    learners: Mapping[str, Learner]  # by name, in the order of a step
    columns: tuple[str, ...]  # losses in the log; the first is shown, and has to stay finite
    length: int  # items in an epoch of the data

    def items(self) -> Dataset:
        """What a loader's processes read: a sample by its SampleKey, everything drawn for it by its number."""
        ...

    def losses(self, learner: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """(B,) of each term; `loss` is what the learner minimises."""
        ...

    def state(self) -> dict[str, Any]:
        """Nested dicts of every tensor that the run goes on from; loaded in place, then `loaded` is called."""
        ...

    def loaded(self) -> None: ...

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """File stem to tensors under upstream's keys: what a checkpoint holds for others to read."""
        ...

    def meta(self) -> dict[str, Any]:
        """Plain values that a model is built from again."""
        ...

    def preview(self, step: int, folder: Path) -> None:
        """Writes what the run makes so far; every rank calls this."""
        ...
