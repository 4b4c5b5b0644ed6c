"""Checksums of the stored data of a run, compared once while it trains."""

import threading
from pathlib import Path

from latte_fast.data.config import DataConfig
from latte_fast.data.latents import LATENTS
from latte_fast.data.shards import Contents
from latte_fast.data.text import NULL, TEXT
from latte_fast.data.tokens import TOKENS
from latte_fast.files import sha256_of


class Verifier:
    """Reads every shard of latents, tokens and captions in a thread; `wrong` names the first that was changed.

    Hashing leaves Python's lock alone: training goes on meanwhile. Folders of version 1 have no checksums.

    Args:
        config: configuration of the data.
    """

    def __init__(self, config: DataConfig) -> None:
        self.wrong: str | None = None
        self._stopped = threading.Event()
        folders: list[tuple[Contents, str]] = [(LATENTS, config.path)] if config.kind == "latents" else []
        folders += [(TOKENS, config.path)] if config.kind == "tokens" else []
        folders += [(TEXT, config.text)] if config.text else []
        self._files = [row for contents, folder in folders for row in checksums(contents, Path(folder))]
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        if self._files:
            self._thread.start()

    def close(self) -> None:
        """Ends the thread, at the latest after the file that it reads."""
        self._stopped.set()

    def finish(self) -> None:
        """Waits until every file is compared."""
        if self._files:
            self._thread.join()

    def _read(self) -> None:
        for contents, path, digest in self._files:
            if self._stopped.is_set():
                return
            try:
                got = sha256_of(path)
            except OSError as error:
                self.wrong = f"{contents.name}: {path} can't be read: {error.strerror}"
                return
            if got != digest:
                again = f"`latte-fast {contents.command} --resume` makes it again"
                self.wrong = f"{contents.name}: {path} must be as it was written, got another checksum; {again}"
                return


def checksums(contents: Contents, folder: Path) -> list[tuple[Contents, Path, str]]:
    """Returns the files of a folder that have a checksum."""
    index = contents.load(folder)
    found = [(contents, folder / row[0], row[2]) for row in index["shards"] if len(row) > 2]
    return found + ([(contents, folder / NULL, index["null"])] if "null" in index else [])
