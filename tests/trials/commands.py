"""Commands in forks of one process, which has imported what they import: cheap to run, to race and to kill."""

import gc
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from latte_fast.cli import main
from latte_fast.codecs import text_encoder
from latte_fast.data import encode_text, shapes  # noqa: F401  imported before the forks
from latte_fast.models.tats.files import save_vqgan
from tests.helpers import tiny_vqgan
from tests.helpers.detectors import Colours, saved
from tests.helpers.films import layout
from tests.helpers.sounds import tone, write_sound_vqgan, write_wav
from tests.helpers.texts import Letters, captions_file

YAML = """
model: {patch_size: 4, hidden_size: 16, depth: 2, num_heads: 2}
data: {clips: 11}
frames: 2
size: 8
steps: 8
batch: 2
log_every: 1
save_every: 2
"""


class Ended(NamedTuple):
    """A command's exit code, or the negative number of the signal that ended it, and all that it printed."""

    code: int
    said: str

    @property
    def crashed(self) -> bool:
        return "Traceback" in self.said

    @property
    def last(self) -> str:
        """The last line that is no progress bar."""
        lines = [line for part in self.said.splitlines() for line in part.split("\r") if line.strip()]
        return next((line for line in reversed(lines) if "it/s" not in line and "%|" not in line), "")


class Running(NamedTuple):
    pid: int
    log: Path

    def wait(self) -> Ended:
        status = os.waitpid(self.pid, 0)[1]
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return Ended(code, self.log.read_text(errors="replace"))

    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait_at_most(self, seconds: float) -> Ended:
        """Waits so long at most, then kills the process and fails."""
        end = time.monotonic() + seconds
        while not self.has_ended():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still there after {seconds} s: {self.wait().said}")
            time.sleep(0.02)
        return self.wait()

    def kill(self, after: float, number: int = signal.SIGKILL) -> Ended:
        time.sleep(after)
        os.kill(self.pid, number)
        return self.wait()


_count = 0


def begin(folder: Path, *args: str, **env: str) -> Running:
    """Starts `latte-fast args` in a folder, with more variables in its environment."""
    global _count
    _count += 1
    log = folder.parent / f"log-{os.getpid()}-{_count}"
    gc.freeze()  # a child's collections would copy all that there is
    pid = os.fork()
    if pid:
        gc.unfreeze()
        return Running(pid, log)
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1), os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.chdir(folder)
        os.environ.update(env)
        sys.argv = ["latte-fast", *args]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        text_encoder.open_text_encoder = lambda *args: Letters()  # in the place of T5, in the fork alone
        code = _call()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _call() -> int:
    import traceback

    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(folder: Path, *args: str) -> Ended:
    return begin(folder, *args).wait()


def begin_ranks(folder: Path, count: int, *args: str) -> list[Running]:
    """Starts `latte-fast args` on so many ranks, with nobody who watches them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo"}
    return [begin(folder, *args, RANK=str(rank), LOCAL_RANK=str(rank), **env) for rank in range(count)]


def prepare(folder: Path) -> Path:
    """Makes a data set, captions, a trained run, samples and a detector, on which every command can run."""
    folder.mkdir(parents=True)
    torch.set_num_threads(1)  # forks inherit no threads
    layout("ffs", folder / "set")
    for i in range(3, 6):
        shutil.copy(
            next((folder / "set").rglob("id0.mp4")), next((folder / "set").rglob("id0.mp4")).with_name(f"id{i}.mp4")
        )
    captions_file(folder / "captions.json", {f"{i}": f"a caption of number {i}" for i in range(5)})
    (folder / "x.yaml").write_text(YAML)
    saved(Colours(), folder / "colours.pt")
    for args in (
        ("train", "--config", "x.yaml", "--out", "run"),
        ("encode", *ENCODE, "--out", "latents"),
        ("sample", "run", *SAMPLE, "--out", "samples"),
    ):
        ended = run(folder, *args)
        assert ended.code == 0, ended.said
    shapes.write_shapes(folder / "real", 2, 2, 8)
    return folder


ENCODE = ("--kind", "ffs", "--path", "set", "--vae", "identity", "--size", "16", "--workers", "0", "--device", "cpu")
SAMPLE = ("--samples", "6", "--batch", "2", "--steps", "2", "--format", "npz", "--weights", "model")
EVALUATE = ("samples", "--metric", "fid", "--real", "real", "--kind", "videos", "--detector", "colours.pt", "--size",
            "24", "--device", "cpu", "--workers", "0")  # fmt: skip
# name -> arguments that write to a folder or file
COMMANDS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "train": lambda out: ("train", "--config", "x.yaml", "--out", out),
    "train --resume": lambda out: ("train", "--config", "x.yaml", "--out", out, "--resume", "--steps", "12"),
    "encode": lambda out: ("encode", *ENCODE, "--out", out),
    "encode-text": lambda out: ("encode-text", "--captions", "captions.json", "--pretrained", "set", "--out", out,
                                "--device", "cpu"),
    "sample": lambda out: ("sample", "run", *SAMPLE, "--out", out),
    "convert": lambda out: ("convert", "run", f"{out}.safetensors"),
    "evaluate": lambda out: ("evaluate", *EVALUATE, "--out", f"{out}.json"),
    "plot": lambda out: ("plot", "run", "--out", f"{out}.png"),
}  # fmt: skip


# dearer to prepare
MORE: dict[str, Callable[[str], tuple[str, ...]]] = {
    "decode": lambda out: ("decode", "tokens", "--vqgan", "vq.safetensors", "--out", out, "--device", "cpu"),
    "quantize": lambda out: ("quantize", "run", "--samples", "0", "--weights", "model", "--device", "cpu", "--out",
                             f"{out}.safetensors"),
    "encode-audio": lambda out: ("encode-audio", "--path", "sounds", "--vae", "heard.safetensors", "--out", out,
                                 "--device", "cpu"),
    "calibrate": lambda out: ("calibrate", "run", "--steps", "8", "--samples", "1", "--weights", "model", "--device",
                              "cpu", "--out", out),
}  # fmt: skip


def prepare_more(folder: Path) -> Path:
    """Adds VQGANs of films and of sounds, the tokens of the data set, and sounds."""
    save_vqgan(tiny_vqgan.pair()[0], folder / "vq.safetensors")
    write_sound_vqgan(folder / "heard.safetensors")
    for i in range(4):
        write_wav(folder / "sounds" / f"{i}.wav", tone(300 + 200 * i, 0.5))
    args = ("encode", *ENCODE, "--vae", "vq.safetensors", "--tokens", "--out", "tokens")
    ended = run(folder, *args)
    assert ended.code == 0, ended.said
    return folder


def contents(path: Path) -> dict[str, bytes]:
    """Returns the files below a path by name, without those that tell the time."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
