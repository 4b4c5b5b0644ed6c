"""Captions and their embeddings, written once by `latte-fast encode-text` and read by memory map."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latte_fast.data.index_checks import TEXT_FIELDS, check_text
from latte_fast.data.item import DataError
from latte_fast.data.shards import INDEX, Contents
from latte_fast.media.formats import PICTURES, VIDEOS

NULL = "null.safetensors"
TEXT = Contents("text", "encode-text", "captions", check_text, TEXT_FIELDS)


def caption_of(name: str, clips: Mapping[str, Any]) -> Any:
    """Returns what `clips` has of a clip: by its name, its name without the suffix, or a folder above it; or None."""
    path = PurePosixPath(name)
    stem = name[: -len(path.suffix)] if path.suffix.lower() in VIDEOS + PICTURES else name
    keys = (name, stem, *(str(folder) for folder in path.parents))
    return next((clips[key] for key in keys if key in clips), None)


class Texts:
    """The captions of a data set by clip, and the embedding of each.

    Args:
        folder: folder that `latte-fast encode-text` wrote.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise ValueError(
                f"text: must be a folder that `latte-fast encode-text` wrote\n"
                f"  text/index.json\n  text/null.safetensors\n  text/00000.safetensors ...\n"
                f"got {self.folder}, which has no {INDEX}"
            )
        index = TEXT.finished(self.folder)
        self.captions: list[str] = index["captions"]
        self.channels, self.tokens = int(index["channels"]), int(index["tokens"])
        self._clips: dict[str, int] = index["clips"]
        self._firsts: list[int] = index["firsts"]
        self._shards = [self.folder / name for name, *_ in index["shards"]]
        self._open: dict[Path, Any] = {}
        self._check_null()
        self._check_shards()

    def __getstate__(self) -> dict[str, Any]:
        # memory maps can't be pickled; each process opens its own
        return self.__dict__ | {"_open": {}}

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Returns the number of each clip's caption: by its name, its name without the suffix, or a folder above it."""
        found = [self._number(name) for name in names]
        lacking = [name for name, number in zip(names, found, strict=True) if number is None]
        if lacking:
            some = ", ".join(self._clips) if len(self._clips) <= 3 else f"{next(iter(self._clips))}, ..."
            raise ValueError(
                f"text: {self.folder} must have a caption of every clip, got none of {lacking[0]} "
                f"({len(lacking)} of {len(names)} lack one; it has {some})"
            )
        return [number for number in found if number is not None]

    def _number(self, name: str) -> int | None:
        return caption_of(name, self._clips)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Returns float32 (tokens, channels), zero after the caption's end, and bool (tokens,), True for its tokens."""
        rows = self._read(self._shards[bisect_right(self._firsts, number) - 1], str(number))
        text = torch.zeros(self.tokens, self.channels)
        text[: len(rows)] = rows
        return text, torch.arange(self.tokens) < len(rows)

    @property
    def null(self) -> Tensor:
        """The empty caption and its padding, as the pipeline's negative prompt: float32 (tokens, channels)."""
        return self._read(self.folder / NULL, "null")

    def _check_null(self) -> None:
        rule = f"text: {self.folder / NULL} must hold the empty caption as {(self.tokens, self.channels)}"
        try:
            shape = tuple(self.null.shape)
        except DataError as error:
            raise ValueError(f"{rule}, got {error}") from error
        if shape != (self.tokens, self.channels):
            raise ValueError(f"{rule}, got {shape}")

    def _check_shards(self) -> None:
        """Reads the header of every shard, and checks that it holds the captions that the index names."""
        for path, first, end in zip(self._shards, self._firsts, [*self._firsts[1:], len(self.captions)], strict=True):
            try:
                with safe_open(path, "pt") as file:
                    held = {*file.keys()}
                    shapes = {key: file.get_slice(key).get_shape() for key in held}
            except (SafetensorError, OSError) as error:
                raise ValueError(f"text: {path} can't be read: {error}") from error
            for key in map(str, range(first, end)):
                shape = shapes.get(key, [])
                if len(shape) != 2 or shape[1] != self.channels or not 0 < shape[0] <= self.tokens:
                    rule = f"caption {key} as up to {self.tokens} rows of {self.channels}"
                    raise ValueError(f"text: {path} must hold {rule}, got {shape or 'none'}")

    def embeddings(self, numbers: Sequence[int], dropped: Sequence[bool] | Tensor = ()) -> tuple[Tensor, Tensor]:
        """Returns (n, tokens, channels) and masks (n, tokens); dropped captions are empty ones under their own mask."""
        found = [self[number] for number in numbers]
        drops = [bool(drop) for drop in dropped] or [False] * len(found)
        texts = [self.null if drop else text for (text, _), drop in zip(found, drops, strict=True)]
        return torch.stack(texts), torch.stack([mask for _, mask in found])

    def _read(self, path: Path, key: str) -> Tensor:
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, "pt")
            rows = self._open[path].get_tensor(key).float()
        except (SafetensorError, OSError) as error:
            raise DataError(f"text: {path}: {key} can't be read: {error}") from error
        if not rows.isfinite().all():
            raise DataError(f"text: {path}: caption {key} must be finite, got other values")
        return rows
