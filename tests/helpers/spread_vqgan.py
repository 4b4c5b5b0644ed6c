"""Makes the same run of a 3D-VQGAN on one and two ranks, in float64.

As a process: python -m tests.helpers.spread_vqgan FOLDER NORM SEED [DEFECT]. In float64 no two codes are as near to a
latent as each other within rounding, so that each draw has the same codes on any number of ranks. In fp32 some draws
have such a latent, and their trainings part there.
"""

import json
import shutil
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import torch

from latte_fast.models.tats import codebook
from latte_fast.models.tats import norm as norms
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import Trainer
from latte_fast.training.loader import Batch
from tests.helpers.forks import on_ranks
from tests.helpers.tiny_vqgan import MODEL, RUN, tiny_vqgan_run

FOLDER, SEED = Path(sys.argv[1]), int(sys.argv[3])
MODELS = {"batch": MODEL, "group": replace(MODEL, n_hiddens=16, norm="group", downsample=(2, 2, 2))}


class WideTrainer(Trainer):
    """A trainer whose clips are float64, as the weights are."""

    def batches(self) -> Generator[Batch, None, None]:
        for batch in super().batches():
            yield {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


def own_statistics() -> None:
    """Gives each rank its own batch statistics: what a rank has counts for both."""
    norms.all_reduce = lambda x: 2 * x  # type: ignore[assignment]


def own_codes() -> None:
    """Gives each rank counts and sums of its own latents; codes that start or restart are still drawn from both."""
    update, summed = codebook.Codebook.update, codebook.summed

    def alone(book: codebook.Codebook) -> None:
        left = ["counts", "sums"]
        codebook.summed = lambda x: x if left and left.pop() else summed(x)
        update(book)

    codebook.Codebook.update = alone  # type: ignore[method-assign]


def own_draws() -> None:
    """Lets each rank take itself for the first one: a code that is drawn is the sum of two latents."""
    world = codebook.world
    codebook.world = lambda: (world()[0], 0)


DEFECTS: dict[str, Callable[[], None]] = {"statistics": own_statistics, "codes": own_codes, "draws": own_draws}


def train(name: str, count: int, norm: str, resume: bool = False) -> None:
    config = tiny_vqgan_run(FOLDER / name, vqgan=replace(RUN, model=MODELS[norm]), steps=4, save_every=3, seed=SEED)
    on_ranks(count, lambda ranks: WideTrainer(config, ranks, resume, say=lambda text: None).run())


def main(norm: str, defect: str | None = None) -> None:
    torch.set_default_dtype(torch.float64)
    # makes torch import its lazy modules before the forks; trains no step, which would start threads
    Trainer(tiny_vqgan_run(FOLDER / "unused"))
    train("one", 1, norm)
    if defect is not None:
        DEFECTS[defect]()
    train("two", 2, norm)
    if defect is None:
        shutil.copytree(FOLDER / "two", FOLDER / "moved")
        shutil.rmtree(FOLDER / "moved" / "checkpoints" / "step-0000004")
        train("moved", 1, norm, resume=True)
    print(json.dumps({p.name: read_log(p / LOG) for p in sorted(FOLDER.iterdir()) if (p / LOG).exists()}))


if __name__ == "__main__":
    main(sys.argv[2], *sys.argv[4:])
