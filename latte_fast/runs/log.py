"""A run's log: a JSONL file, a progress bar, and optionally TensorBoard."""

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from latte_fast.files import atomic, naming

LOG = "log.jsonl"


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Returns the complete lines of a run's log; a line cut short by a kill is left out, as is a damaged one."""
    return list(_whole(Path(path)))


def _whole(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and all(isinstance(x, (int, float)) for x in found.values()) and "step" in found:
            yield found


def peak_memory(device: torch.device) -> int:
    """Returns peak memory in bytes: of torch's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class RunLog:
    """Writes the log of a run on rank 0, and nothing on other ranks.

    Args:
        folder: folder of the run.
        step: number of updates done; later lines, which a killed run wrote after its last checkpoint, are removed.
        steps: total number of updates.
        active: whether this is rank 0.
        tensorboard: whether to write TensorBoard files too.
        shown: name of the loss that the progress bar shows.
    """

    def __init__(
        self, folder: Path, step: int, steps: int, active: bool = True, tensorboard: bool = False, shown: str = "loss"
    ):
        self.active, self.shown = active, shown
        if not active:
            return
        path = self.path = folder / LOG
        kept = [line for line in _whole(path) if line["step"] <= step]
        with atomic(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        with naming(path):
            self.file = path.open("a")
        # a terminal gets a moving bar, a file one line a minute
        pace = 0.1 if sys.stderr.isatty() else 60.0
        self.bar = tqdm(total=steps, initial=step, unit="step", mininterval=pace, dynamic_ncols=True)
        self.board = summary_writer()(folder / "tensorboard", purge_step=step + 1) if tensorboard else None

    def step(self) -> None:
        if self.active:
            self.bar.update()

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line of numbers, whose "step" is the number of updates done."""
        if not self.active:
            return
        with naming(self.path):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        shown = {
            self.shown: f"{line[self.shown]:.4f}",
            "clips/s": f"{line['clips_per_s']:.3g}",
            "wait": f"{line['data_wait']:.0%}",
            "peak": f"{line['peak_bytes'] / 1e9:.2f} GB",
        }
        self.bar.set_postfix(shown, refresh=False)
        if self.board is not None:
            for name, value in line.items():
                if name != "step":
                    self.board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        if not self.active:
            return
        self.bar.close()
        with naming(self.path):
            self.file.close()
        if self.board is not None:
            self.board.close()


def summary_writer() -> Any:
    """Returns TensorBoard's writer class; raises an error that says how to install it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        message = "train: tensorboard must be installed for its files; pip install 'latte_fast[tensorboard]'"
        raise RuntimeError(message) from error
    return SummaryWriter
