"""CLIP's byte pairs: the published algorithm on a small vocabulary, beside transformers' tokenizer, and refusals."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch

from latte_fast.codecs.clip_bpe import ClipBPE, words_of
from tests.helpers.texts import write_bpe

TEXTS = [
    "a red square moves left", "Don't stop; they've 12 balls &amp;amp; 3 cats!!", "  spaces \n and\ttabs ", "",
    "ünïcode çà", "café", "日本語 text 😀", "a1b2", "''s", "it's  its'", "x²½ ٣", "under_score-dash",
    "moves moves moves",
]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bpe(tmp_path_factory.mktemp("bpe") / "bpe.txt.gz")


def test_words_are_split_as_published() -> None:
    text = "don't stop, they've 12 balls!? 's''re _a-b x²"
    want = [
        "don",
        "'t",
        "stop",
        ",",
        "they",
        "'ve",
        "1",
        "2",
        "balls",
        "!?",
        "'s",
        "''",
        "re",
        "_",
        "a",
        "-",
        "b",
        "x",
        "²",
    ]
    assert list(words_of(text)) == want


def test_tokens_are_those_of_transformers(vocabulary: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bpe = ClipBPE(vocabulary)
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1:]]))
    names = dict(bpe._numbers) | {"<|startoftext|>": bpe.start, "<|endoftext|>": bpe.end}
    (tmp_path / "vocab.json").write_text(json.dumps(names))
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    source = random.Random(0)
    drawn = ["".join(source.choice("abcdemors t'!1é ") for _ in range(30)) for _ in range(40)]
    for text in [*TEXTS, *drawn]:
        if "&" in text:
            continue  # theirs leaves HTML entities
        want = theirs(text)["input_ids"]
        assert [bpe.start, *bpe.encode(text), bpe.end] == want, text


def test_a_byte_is_a_token_and_a_merge_another(vocabulary: Path) -> None:
    bpe = ClipBPE(vocabulary)
    assert bpe.size == 512 + 8 + 2 and (bpe.start, bpe.end) == (520, 521)
    assert len(bpe.encode("move")) == 1 and len(bpe.encode("moved")) == 3 and len(bpe.encode("é")) == 2
    assert bpe.encode("MOVE  move") == 2 * bpe.encode("move")
    assert bpe.encode("&amp;amp;") == bpe.encode("&")
    table = bpe.tokens(["move", "a b"], 6)
    assert table.dtype == torch.int64 and table[0].tolist() == [520, *bpe.encode("move"), 521, 0, 0, 0]
    with pytest.raises(ValueError, match=r"captions must be at most 3 tokens long, got 4 of 'a b'"):
        bpe.tokens(["a b"], 3)


def test_plain_and_zipped_files_and_their_digits(vocabulary: Path, tmp_path: Path) -> None:
    plain = tmp_path / "bpe.txt"
    plain.write_bytes(gzip.decompress(vocabulary.read_bytes()))
    assert ClipBPE(plain).digest == ClipBPE(vocabulary).digest
    (tmp_path / "other.txt").write_text("#version\na b\n")
    assert ClipBPE(tmp_path / "other.txt").digest != ClipBPE(vocabulary).digest
    for name, content in {"gone.txt": None, "a.txt": b"#v\nab\n", "b.txt": b"#v\n", "c.gz": b"xx"}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"text: bpe must be CLIP's .*got .*{name}"):
            ClipBPE(tmp_path / name)
