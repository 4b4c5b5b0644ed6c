"""The protocol of objectives: the trainer knows nothing else about what it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from latte_fast.training.learner import Learner
from latte_fast.training.loader import Batch


class OneLearner:
    """What an objective with one network answers; `Objective` explains the methods."""

    learner: Learner

    def trains(self, learner: str, step: int) -> bool:
        return True

    def gauges(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def loaded(self) -> None:
        self.learner.loaded()

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {"model": self.learner.weights.by_name, "ema": self.learner.ema.average}


class Objective(Protocol):
    """What a run learns: its data, networks and losses.

    A step takes the run's next batch through each learner in turn: losses, backward, update. Parts that
    update apart (a generator, its discriminator) are learners of their own.
    """

    learners: Mapping[str, Learner]  # by name, in the order in which a step trains them
    # losses in the log; the first is shown, and has to stay finite; `loss` is the first learner's
    columns: tuple[str, ...]
    length: int  # items in an epoch of the data
    dataset: Any  # the data by (index, sample number), without what an objective draws

    def about(self) -> str:
        """Returns the networks and the data in a line."""
        ...

    def items(self) -> Dataset:
        """Returns the data set that loader workers read: items by SampleKey, all randomness by its sample number."""
        ...

    def losses(self, learner: str, batch: Batch, step: int) -> dict[str, Tensor]:
        """Returns each loss term as (B,); the learner minimises `loss`."""
        ...

    def trains(self, learner: str, step: int) -> bool:
        """Returns whether a step trains this learner."""
        ...

    def gauges(self) -> dict[str, float]:
        """Returns further values for a log line, as they are after the last step."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns all tensors needed to resume, in nested dicts; they are loaded in place, then `loaded` is called."""
        ...

    def loaded(self) -> None: ...

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Returns the weights that a checkpoint exports: tensors under upstream's keys, by the stem of their file."""
        ...

    def meta(self) -> dict[str, Any]:
        """Returns plain values from which the model can be built again."""
        ...

    def preview(self, step: int, folder: Path) -> None:
        """Writes samples of the run so far; every rank calls this."""
        ...
