"""Loading what exists, refusing what is damaged, and leaving the model alone when refusing."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from latte_fast import Latte
from latte_fast.models.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    save_tensors,
)
from tests.helpers.tiny_latte import equal, fresh, refilled


@pytest.fixture
def model() -> Latte:
    return refilled()


@pytest.mark.parametrize("wrap", ["ema", "model", "flat", "both", "ema without model"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_upstream_layouts(wrap: str, prefix: str, model: Latte, tmp_path: Path) -> None:
    state = {prefix + k: v for k, v in model.state_dict().items()}
    other = {k: torch.zeros_like(v) for k, v in state.items()}
    content = {
        "ema": {"ema": state},
        "model": {"model": state},
        "flat": state,
        "both": {"model": other, "ema": state},
        "ema without model": {"ema": state, "step": 3},
    }[wrap]
    torch.save(content, tmp_path / "ffs.pt")
    target = fresh()
    load_checkpoint(target, tmp_path / "ffs.pt")
    assert equal(target, model)


def test_safetensors_round_trip(model: Latte, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "out.safetensors")
    target = fresh()
    load_checkpoint(target, tmp_path / "out.safetensors")
    assert equal(target, model)
    assert os.listdir(tmp_path) == ["out.safetensors"]


def test_bytes_follow_from_what_a_file_holds(tmp_path: Path) -> None:
    metadata = {f"{n}": f'{{"a": "\u00e9\n{n}"}}' for n in range(12)}
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file in files:
        save_tensors({"x": torch.arange(5.0)}, file, metadata)
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as opened:
        assert opened.metadata() == metadata and opened.get_tensor("x").tolist() == [0, 1, 2, 3, 4]


def test_failed_write_keeps_the_previous_file(model: Latte, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.safetensors"
    save_checkpoint(model, path)
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("latte_fast.models.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(fresh(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.safetensors"]


class Hostile:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch hostile-ran",))


BYTES = {
    "empty": b"",
    "text": b"hello, this is a text file\n",
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
}


def damaged(kind: str, model: Latte, path: Path) -> str:
    """Writes a damaged file; returns the pattern its error must show."""
    state = model.state_dict()
    if kind == "truncated pt":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-2000])
        return "truncated or not a checkpoint"
    if kind == "truncated safetensors":
        save_checkpoint(model, path)
        path.write_bytes(path.read_bytes()[:-2000])
        return "truncated or not a checkpoint"
    if kind == "garbage":
        path.write_bytes(b"not a checkpoint at all")
        return "holds more than tensors|truncated or not"
    if kind in BYTES:
        path.write_bytes(BYTES[kind])
        return "truncated or not a checkpoint: no tensors found$|was not unpickled$"
    if kind == "hostile":
        torch.save({"ema": Hostile()}, path)
        return r"was not unpickled: posix\.system$"
    if kind == "list":
        torch.save([1, 2], path)
        return "must hold a dict of tensors, got list"
    if kind == "no tensors":
        torch.save({"steps": 3}, path)
        return "other values at"
    if kind == "missing key":
        torch.save({k: v for k, v in state.items() if k != "blocks.1.mlp.fc1.weight"}, path)
        return r"blocks.1.mlp.fc1.weight must have shape \(256, 64\), found none"
    if kind == "unknown key":
        torch.save(state | {"extra.weight": torch.zeros(3)}, path)
        return r"extra.weight \(3,\) is unknown"
    if kind == "wrong shape":
        torch.save(state | {"blocks.0.attn.qkv.bias": torch.zeros(7)}, path)
        return r"blocks.0.attn.qkv.bias must have shape \(192,\), found \(7,\)"
    if kind == "other size":
        torch.save(state | {"pos_embed": torch.zeros(1, 64, 64)}, path)
        return r"pos_embed must have shape \(1, 16, 64\), found \(1, 64, 64\).*extend_space"
    return "no such file"


@pytest.mark.parametrize(
    "kind",
    [
        "truncated pt", "truncated safetensors", "garbage", *BYTES, "hostile", "list", "no tensors", "missing key",
        "unknown key", "wrong shape", "other size", "absent",
    ],
)  # fmt: skip
def test_damaged_files_are_refused_and_the_model_untouched(
    kind: str, model: Latte, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("f.safetensors" if kind == "truncated safetensors" else "f.pt")
    pattern = damaged(kind, model, path)
    target, before = fresh(), fresh()
    with pytest.raises(CheckpointError, match=pattern) as error:
        load_checkpoint(target, path)
    assert str(path) in str(error.value) and "weights_only" not in str(error.value)
    assert equal(target, before)
    assert not (tmp_path / "hostile-ran").exists()


def test_prefers_what_is_asked_for(model: Latte, tmp_path: Path) -> None:
    torch.save({"model": model.state_dict(), "ema": fresh().state_dict()}, tmp_path / "x.pt")
    assert torch.equal(read_checkpoint(tmp_path / "x.pt", "model")["temp_embed"], model.temp_embed)
    assert torch.equal(
        read_checkpoint(tmp_path / "x.pt", "model")["blocks.0.mlp.fc1.weight"], model.blocks[0].mlp.fc1.weight
    )
