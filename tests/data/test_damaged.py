"""Shards that are missing or damaged: found, named, and made again by resuming; and entries that are no videos."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latte_fast.codecs.vae import Identity
from latte_fast.data import DataConfig, encode, open_dataset
from latte_fast.data.encode_text import encode_text
from latte_fast.data.item import DataError
from latte_fast.data.shards import digest_of
from latte_fast.data.text import Texts
from latte_fast.data.verify import Verifier
from tests.helpers.films import layout
from tests.helpers.texts import Letters


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DataConfig, Path]:
    monkeypatch.setattr(encode, "is_full", lambda shard, limit: True)  # a shard a video
    config = DataConfig(kind="ffs", path=str(layout("ffs", tmp_path / "set")))
    encode.encode(config, tmp_path / "latents", Identity(), 16)
    return config, tmp_path / "latents"


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("old", [False, True])
def test_resume_makes_shards_again(made: tuple[DataConfig, Path], old: bool) -> None:
    config, out = made
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    if old:  # version 1 has no checksums, so that a flipped bit is not found
        index = json.loads(before["index.json"])
        index |= {"version": 1, "shards": [row[:2] for row in index["shards"]]}
        del index["sha256"]
        (out / "index.json").write_text(json.dumps(index))
    (out / "00000.safetensors").unlink()
    (out / "00002.safetensors").write_bytes(b"cut") if old else flip(out / "00002.safetensors")
    (out / "00003.safetensors").write_bytes(b"of a stopped run")
    encode.encode(config, out, Identity(), 16, resume=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_resume_embeds_captions_again(tmp_path: Path) -> None:
    clips = {f"{i}": f"caption number {i}" for i in range(3)}
    encode_text(clips, tmp_path / "a", Letters())
    before = (tmp_path / "a" / "00000.safetensors").read_bytes()
    (tmp_path / "a" / "00000.safetensors").unlink()
    with pytest.raises(ValueError, match="no such file; `latte-fast encode-text --resume` makes it again"):
        Texts(tmp_path / "a")
    encode_text(clips, tmp_path / "a", Letters(), resume=True)
    assert (tmp_path / "a" / "00000.safetensors").read_bytes() == before


def test_a_run_finds_another_checksum(made: tuple[DataConfig, Path]) -> None:
    stored = DataConfig(kind="latents", path=str(made[1]))
    for wrong in (False, True):
        verifier = Verifier(stored)
        verifier.start()
        verifier.finish()
        said = verifier.wrong or ""
        assert ("00001.safetensors must be as it was written" in said) == wrong
        flip(made[1] / "00001.safetensors")


def test_nan_names_its_shard_and_clip(made: tuple[DataConfig, Path]) -> None:
    path = made[1] / "00001.safetensors"
    held = load_file(path)
    held["train/videos/id1.mp4/mean"][3] = float("nan")
    save_file(held, path)
    data = open_dataset(DataConfig(kind="latents", path=str(made[1]), interval=1), 12, 16)
    with pytest.raises(DataError, match=r"00001\.safetensors: train/videos/id1\.mp4 must be finite, got others in"):
        data[0, 1]


def test_encode_refuses_what_is_not_finite(tmp_path: Path) -> None:
    class Overflows(Identity):
        def encode(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, std = super().encode(video)
            return mean * 1e6, std

    config = DataConfig(kind="ffs", path=str(layout("ffs", tmp_path / "set")))
    with pytest.raises(ValueError, match=r"the latents of train/videos/id0\.mp4 must be finite in float16"):
        encode.encode(config, tmp_path / "latents", Overflows(), 16)


def test_an_index_that_was_edited_consistently(made: tuple[DataConfig, Path]) -> None:
    """Its checksum renewed too: the shards' headers still tell."""
    file = made[1] / "index.json"
    index = json.loads(file.read_text())
    index["clips"][1][2] = 13
    file.write_text(json.dumps(index | {"sha256": digest_of(index)}))
    with pytest.raises(ValueError, match=r"id1.mp4/mean must be F16 \[13, 3, 16, 16\], as .*index.json says, got F16"):
        open_dataset(DataConfig(kind="latents", path=str(made[1])), 2, 16)


def test_odd_entries_are_named_when_the_folder_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = layout("ffs", tmp_path / "set")
    os.mkfifo(root / "pipe.mp4")
    film = next(root.rglob("id0.mp4")).read_bytes()
    for i in range(6):
        with open(os.fsencode(root / f"odd{i}") + b"\xff.mp4", "wb") as file:
            file.write(film)
    began = time.monotonic()
    index = encode.encode(DataConfig(kind="ffs", path=str(root)), tmp_path / "latents", Identity(), 16)
    assert time.monotonic() - began < 60 and len(index["clips"]) == 3 and len(index["broken"]) == 7
    assert r"odd0\udcff.mp4" in caplog.text and "left out: 2 more" in caplog.text
    assert "pipe.mp4" in index["broken"]
    with pytest.raises(RuntimeError, match=r"name in UTF-8|no regular file"):
        encode.encode(DataConfig(kind="ffs", path=str(root), on_error="raise"), tmp_path / "o", Identity(), 16)
