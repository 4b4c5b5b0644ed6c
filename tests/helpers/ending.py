"""A run on ranks that torchrun started, which prints what still holds the process group as it goes.

torchrun --nproc-per-node 2 -m tests.helpers.ending FOLDER ddp|fsdp [error]
"""

import gc
import sys
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from latte_fast.training import Trainer, start
from tests.helpers.tiny_run import tiny

HOLDERS = (DistributedDataParallel, FSDPModule, DTensor)


def as_the_group_goes(report: Callable[[list[str]], None]) -> None:
    """Calls `report` with the kinds of what holds the process group, before it is destroyed."""
    destroy = dist.destroy_process_group

    def watched() -> None:
        report(sorted({type(x).__name__ for x in gc.get_objects() if isinstance(x, HOLDERS)}))
        destroy()

    dist.destroy_process_group = watched


def main(folder: str, parallel: str, error: bool) -> None:
    as_the_group_goes(lambda alive: print(f"alive: {alive}", flush=True))
    with start() as ranks:
        trainer = Trainer(tiny(f"{folder}/{parallel}", parallel=parallel, steps=2), ranks, say=lambda text: None)
        trainer.run()
        if error:
            raise RuntimeError("planted")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "error" in sys.argv)
