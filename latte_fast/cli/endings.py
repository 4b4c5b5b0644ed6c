"""How a command ends: an error, a stop or a full disk in one line, under the command's own name."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

# what a command's user does after a stop
RESUMES = {
    "encode": "--resume goes on after the last whole file",
    "encode-text": "--resume goes on after the last whole file",
    "encode-audio": "--resume goes on after the last whole file",
    "train": "--resume goes on from the last checkpoint",
    "sample": "--resume goes on with the same options",
    "evaluate": "the same command goes on after the last whole part",
    "decode": "the same command goes on after the last whole film",
    "convert": "nothing was written",
}
# prefixes of messages that say which data or file is meant; any other word before a colon is the name of a function
_KEPT = (
    "data", "config", "latents", "tokens", "text", "videos", "ffs", "sky", "ucf101", "taichi", "frames", "sounds",
    "shapes",
)  # fmt: skip
_PREFIX = re.compile(r"([A-Za-z_]\w*): ")


class Terminated(BaseException):
    """Raised in the main thread on SIGTERM."""


@contextlib.contextmanager
def in_one_line(command: str) -> Iterator[None]:
    """Ends the process with one line and its exit code where a user stops the command or a disk refuses a file."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _stopped(command, 128 + signal.SIGINT)
    except Terminated as stopped:
        lost = _lost_rank(stopped)
        if lost is not None:
            raise SystemExit(sentence(lost, command)) from None
        _stopped(command, 128 + signal.SIGTERM)
    except OSError as error:
        raise SystemExit(sentence(error, command)) from error
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _lost_rank(stop: BaseException) -> ConnectionError | None:
    """Returns the error of a lost rank that a stop interrupted: torchrun stops the ranks that are left."""
    error = stop.__context__
    while error is not None and not isinstance(error, ConnectionError):
        error = error.__context__
    return error


def _stopped(command: str, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        more = f"; {RESUMES[command]}" if command in RESUMES else ""
        print(f"\n{command}: stopped{more}", file=sys.stderr, flush=True)
    raise SystemExit(code) from None


def sentence(error: BaseException, command: str) -> str:
    """Returns an error's message under the command's name, not under that of a function inside."""
    if isinstance(error, OSError) and error.strerror:
        return f"{command}: {f'{error.filename}: ' if error.filename else ''}{error.strerror}"
    text = str(error) or repr(error)
    if isinstance(error, ConnectionError) and command in RESUMES:  # to another rank
        return f"{command}: {text}; {RESUMES[command]}"
    if text.startswith(f"{command}: "):
        return text
    found = _PREFIX.match(text)
    if found is None:
        return f"{command}: {text}"
    return text if found[1] in _KEPT else f"{command}: {text[found.end() :]}"
