"""CLIP's byte pairs: words as numbers of a vocabulary that the user brings, as TATS conditions on text."""

import gzip
import hashlib
import html
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

# merges of the published vocabulary that count, by which it has 49,408 tokens
_MERGES = 49152 - 256 - 2
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


class ClipBPE:
    """Turns captions into tokens: two for each byte (inside of a word, at its end), one a merge, a start and an end.

    Text is lowered, HTML entities are resolved and spaces joined. Text that is no valid Unicode is not repaired.

    Args:
        path: OpenAI's bpe_simple_vocab_16e6.txt or .txt.gz: a first line that is skipped, then two parts a line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        merges = _read(self.path)
        letters = _letters()
        names = [*letters.values(), *(letter + "</w>" for letter in letters.values()), *map("".join, merges)]
        self._ranks = {pair: i for i, pair in enumerate(merges)}
        self._numbers = {name: i for i, name in enumerate(names)}
        self._letters = letters
        self.start, self.end, self.size = len(names), len(names) + 1, len(names) + 2
        self.digest = hashlib.sha256("\n".join(map(" ".join, merges)).encode()).hexdigest()[:16]
        self._merged = lru_cache(1 << 16)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without start and end."""
        text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
        text = " ".join(text.split()).lower()
        return [number for word in words_of(text) for number in self._merged(word)]

    def tokens(self, texts: Sequence[str], length: int) -> Tensor:
        """Returns (B, length) int64: start, text, end, then zeros, as the authors pad."""
        table = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in zip(table, texts, strict=True):
            held = [self.start, *self.encode(text), self.end]
            if len(held) > length:
                raise ValueError(
                    f"text: captions must be at most {length} tokens long, got {len(held)} of {text!r:.60}"
                )
            row[: len(held)] = torch.tensor(held)
        return table

    def _merge(self, word: str) -> tuple[int, ...]:
        parts = [self._letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            first = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if first not in self._ranks:
                break
            joined, at = [], 0
            while at < len(parts):
                both = tuple(parts[at : at + 2]) == first
                joined.append("".join(first) if both else parts[at])
                at += 1 + both
            parts = joined
        return tuple(self._numbers[part] for part in parts)


def words_of(text: str) -> Iterator[str]:
    """Splits a lowered text: English endings, runs of letters, single digits, runs of other signs."""
    at = 0
    while at < len(text):
        ending = next((e for e in _ENDINGS if text.startswith(e, at)), "")
        kind = _kind(text[at])
        stop = at + 1
        if ending:
            stop = at + len(ending)
        elif kind in "L*":
            while stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
        if kind != " ":
            yield text[at:stop]
        at = stop


def _kind(letter: str) -> str:
    if letter.isspace():
        return " "
    kind = unicodedata.category(letter)[0]
    return kind if kind in "LN" else "*"


def _letters() -> dict[int, str]:
    """Returns a printable letter for each byte: its own where it has one, else one from 256 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _read(path: Path) -> list[tuple[str, str]]:
    rule = "CLIP's bpe_simple_vocab_16e6.txt.gz, or a file of its form: a first line, then two parts a line"
    if not path.is_file():
        raise ValueError(f"text: bpe must be {rule}, got {path}, which is no file")
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().split("\n")[1 : _MERGES + 1]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"text: bpe must be {rule}, got {path}: {error}") from error
    pairs = [tuple(line.split()) for line in lines if line.strip()]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None or not pairs:
        raise ValueError(f"text: bpe must be {rule}, got {' '.join(wrong or ()) or 'none'} in {path}")
    return [(pair[0], pair[1]) for pair in pairs]
