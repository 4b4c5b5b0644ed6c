"""Makes the same run of a 3D-VQGAN on one and two ranks. As a process: python -m tests.helpers.spread_vqgan FOLDER."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from latte_fast.runs.log import LOG, read_log
from latte_fast.training import Trainer
from tests.helpers.forks import on_ranks
from tests.helpers.tiny_vqgan import MODEL, RUN, tiny_vqgan_run

FOLDER = Path(sys.argv[1])
GROUP = replace(RUN, model=replace(MODEL, n_hiddens=16, norm="group", downsample=(2, 2, 2)))


def train(name: str, count: int, resume: bool = False, **changes: object) -> None:
    given: dict[str, object] = {"steps": 4, "save_every": 3, "micro_batch": None}
    config = tiny_vqgan_run(FOLDER / name, **given | changes)
    on_ranks(count, lambda ranks: Trainer(config, ranks, resume, say=lambda text: None).run())


def main() -> None:
    # makes torch import its lazy modules before the forks; trains no step, which would start threads
    Trainer(tiny_vqgan_run(FOLDER / "unused"))
    train("one", 1)
    train("two", 2)
    shutil.copytree(FOLDER / "two", FOLDER / "moved")
    shutil.rmtree(FOLDER / "moved" / "checkpoints" / "step-0000004")
    train("moved", 1, resume=True)
    if sys.argv[2:] == ["group"]:
        train("group-one", 1, vqgan=GROUP)
        train("group-two", 2, vqgan=GROUP)
    print(json.dumps({p.name: read_log(p / LOG) for p in sorted(FOLDER.iterdir()) if (p / LOG).exists()}))


if __name__ == "__main__":
    main()
