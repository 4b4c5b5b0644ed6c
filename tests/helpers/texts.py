"""Captions for tests, and a text encoder that needs no downloads."""

import gzip
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from latte_fast.data.encode_text import encode_text
from latte_fast.data.shapes import CLASSES

SHAPES = {name: f"a {name.split()[0]} that goes {name.split()[1]}" for name in CLASSES}


class Letters:
    """Stands in for T5: a random row for each word and position, padding too."""

    name, channels, tokens = "letters", 12, 6

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        texts, masks = [], []
        for caption in captions:
            words = [*caption.split(), "</s>"][: self.tokens]
            padded = words + ["<pad>"] * (self.tokens - len(words))
            rows = [self._row(f"{place} {word}") for place, word in enumerate(padded)]
            texts.append(torch.stack(rows))
            masks.append(torch.arange(self.tokens) < len(words))
        return torch.stack(texts), torch.stack(masks)

    def surplus(self, caption: str) -> int:
        return max(0, len(caption.split()) + 1 - self.tokens)

    def _row(self, what: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:6], "big")
        return torch.randn(self.channels, generator=torch.Generator().manual_seed(seed))


def shapes_texts(folder: Path) -> Path:
    """Writes the embedded captions of the moving shapes."""
    encode_text(SHAPES, folder, Letters(), dtype="float32")
    return folder


def captions_file(path: Path, clips: dict[str, str]) -> Path:
    path.write_text(json.dumps(clips))
    return path


def write_bpe(path: Path) -> Path:
    """Writes a vocabulary of the form of CLIP's, of eight merges."""
    merges = ["m o", "v e</w>", "mo ve</w>", "mo v", "r e", "re d</w>", "s q", "o r"]
    path.write_bytes(gzip.compress("\n".join(["#version: small", *merges, ""]).encode()))
    return path
