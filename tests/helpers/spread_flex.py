"""Makes the same run of a FlexLatte on one and two ranks. As a process: python -m tests.helpers.spread_flex FOLDER."""

import json
import shutil
import sys
from pathlib import Path

from latte_fast.runs.log import LOG, read_log
from latte_fast.training import Trainer
from tests.helpers.forks import on_ranks
from tests.helpers.tiny_run import tiny_flex

FOLDER = Path(sys.argv[1])


def train(name: str, count: int, resume: bool = False, **changes: object) -> None:
    config = tiny_flex(FOLDER / name, **{"batch": 8, "steps": 6, "save_every": 3} | changes)
    on_ranks(count, lambda ranks: Trainer(config, ranks, resume, say=lambda text: None).run())


def main() -> None:
    # makes torch import its lazy modules before the forks; trains no step, which would start threads
    Trainer(tiny_flex(FOLDER / "unused"))
    train("one", 1)
    train("two", 2)
    train("two-accumulated", 2, micro_batch=2)
    shutil.copytree(FOLDER / "two", FOLDER / "moved")
    shutil.rmtree(FOLDER / "moved" / "checkpoints" / "step-0000006")
    train("moved", 1, resume=True)
    if sys.argv[2:] == ["sharded"]:
        train("sharded", 2, parallel="fsdp")
    logs = {p.name: read_log(p / LOG) for p in sorted(FOLDER.iterdir()) if (p / LOG).exists()}
    print(json.dumps({name: [[line["loss"], line["grad_norm"]] for line in log] for name, log in logs.items()}))


if __name__ == "__main__":
    main()
