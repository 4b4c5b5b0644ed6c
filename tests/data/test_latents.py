"""From each layout to latents on disk and back: the same clips, without the VAE; and what a stopped run leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from latte_fast.cli.encode import encode as command
from latte_fast.codecs.vae import Identity, open_vae
from latte_fast.data import DataConfig, encode, open_dataset
from latte_fast.data.shards import is_full
from latte_fast.media.video import VideoError
from tests.cli.test_cli import run
from tests.helpers.films import layout


@pytest.mark.parametrize("kind", ["ffs", "ucf101", "sky", "taichi"])
@pytest.mark.parametrize("flip", [False, True])
def test_latents_of_pixels_are_the_videos(tmp_path: Path, kind: str, flip: bool) -> None:
    """The identity VAE: the same crops and flips as from the videos themselves, bit for bit."""
    config = DataConfig(kind=kind, path=str(layout(kind, tmp_path / "set")), flip=flip, interval=2)
    encode.encode(config, tmp_path / "latents", Identity(), 16, dtype="float32")
    direct = open_dataset(config, 4, 16)
    stored = open_dataset(DataConfig(kind="latents", path=str(tmp_path / "latents"), flip=flip, interval=2), 4, 16, 2)
    assert len(stored) == 3 and stored.classes == direct.classes
    every = open_dataset(DataConfig(kind=kind, path=config.path, interval=1), 12, 16)
    whole = [torch.cat([every[i]["video"], every[i]["video"].flip(-1)]) for i in range(3)]
    for epoch in range(4):
        for i in range(3):
            a, b = direct[epoch, i], stored[epoch, i]
            assert torch.equal(a["video"], b["latent"][:4]) and b["latent"].shape == (6, 3, 16, 16)
            assert a.get("label") == b.get("label") and ("image_labels" in b) == bool(direct.classes)
            for image, label in zip(b["latent"][4:], b.get("image_labels", []), strict=bool(direct.classes)):
                assert (whole[label] == image).flatten(1).all(1).any()  # a class has one clip


def test_latents_are_draws_of_the_posterior(tmp_path: Path, vae_folder: Path) -> None:
    config = DataConfig(kind="ucf101", path=str(layout("ucf101", tmp_path / "set", 6)), flip=True)
    vae = open_vae(vae_folder)
    encode.encode(config, tmp_path / "latents", vae, 16, dtype="float32")
    stored = DataConfig(kind="latents", path=str(tmp_path / "latents"), interval=1)
    data = open_dataset(stored, 6, 16)
    assert (data.channels, data.factor, data.vae) == (4, 8, vae.name)
    pixels = open_dataset(DataConfig(kind="ucf101", path=config.path, interval=1), 6, 16)
    mean, std = vae.encode(pixels[1]["video"][None])
    draws = torch.stack([data[epoch, 1]["latent"] for epoch in range(400)])
    assert draws.shape[1:] == mean.shape[1:] == (6, 4, 2, 2)
    assert ((draws.mean(0) - mean[0]) / std[0]).abs().max() < 0.25  # 5 standard errors of the mean
    assert ((draws.std(0) / std[0]) - 1).abs().max() < 0.2
    assert torch.equal(data[7, 1]["latent"], open_dataset(stored, 6, 16)[7, 1]["latent"])
    loader = DataLoader(data, batch_size=3, num_workers=2)
    assert torch.equal(next(iter(loader))["latent"], torch.stack([data[i]["latent"] for i in range(3)]))


def test_half_precision_and_every_other_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PIECE", 4)  # of the 6 frames
    config = DataConfig(kind="taichi", path=str(layout("taichi", tmp_path / "set")), interval=4)
    index = encode.encode(config, tmp_path / "latents", Identity(), 16, every=2)
    assert [row[2] for row in index["clips"]] == [6, 6, 6]
    stored = open_dataset(DataConfig(kind="latents", path=str(tmp_path / "latents"), interval=4), 3, 16)
    whole = open_dataset(DataConfig(kind="taichi", path=config.path, interval=1), 12, 16)[0]["video"].half().float()
    starts = set()
    for epoch in range(20):
        latent = stored[epoch, 0]["latent"]
        starts |= {start for start in range(4) if torch.equal(latent, whole[start : start + 9 : 4])}
    assert starts == {0, 2}
    with pytest.raises(ValueError, match="interval must be a multiple of 2"):
        open_dataset(DataConfig(kind="latents", path=str(tmp_path / "latents"), interval=3), 3, 16)


class Stopped(Exception):
    pass


class StopsAfter(Identity):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def encode(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls -= 1
        if self.calls < 0:
            raise Stopped
        return super().encode(video)


class Elsewhere(Identity):
    """On a device of its own, from which only the results come back."""

    def __init__(self) -> None:
        super().__init__("meta")

    def encode(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert video.device.type == "meta"
        return torch.zeros(video.shape), torch.zeros(video.shape)


class Copies(TorchDispatchMode):
    """The dtypes of what is copied to the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_meta:
            self.kinds |= {x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.is_cpu}
        return out


def test_frames_reach_the_device_as_bytes(tmp_path: Path) -> None:
    config = DataConfig(kind="ffs", path=str(layout("ffs", tmp_path / "set")), flip=True)
    with Copies() as seen:
        encode.encode(config, tmp_path / "latents", Elsewhere(), 16)
    assert seen.kinds == {torch.uint8}


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "is_full", lambda shard, limit: True)  # a shard a video
    config = DataConfig(kind="ffs", path=str(layout("ffs", tmp_path / "set")))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    encode.encode(config, whole, Identity(), 16)
    with pytest.raises(Stopped):
        encode.encode(config, parts, StopsAfter(calls), 16)
    if calls:
        with pytest.raises(ValueError, match=f"holds latents: {calls} of 3 videos; give resume"):
            encode.encode(config, parts, Identity(), 16)
        with pytest.raises(ValueError, match=f"must be complete, got {calls} of 3 videos"):
            open_dataset(DataConfig(kind="latents", path=str(parts)), 2, 16)
        for change, name, before in (
            ({"size": 32}, "size", "16, as before"),
            ({"every": 2}, "every", "1, as before"),
            ({"dtype": "float32"}, "dtype", "float16, as before"),
            ({"config": replace(config, flip=True)}, "flip", "False, as before"),
            ({"config": replace(config, path=str(layout("ffs", tmp_path / "longer", 7)))}, "digest", "the same videos"),
        ):
            with pytest.raises(ValueError, match=f"{name} must be {before}, to go on"):
                given = {"config": config, "out": parts, "vae": Identity(), "size": 16, "resume": True} | change
                encode.encode(**given)
    index = encode.encode(config, parts, StopsAfter(3 - calls), 16, resume=True)
    assert len(index["shards"]) == 3
    assert {p.name: p.read_bytes() for p in parts.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    assert encode.encode(config, parts, StopsAfter(0), 16, resume=True) == index
    with pytest.raises(ValueError, match="holds latents: whole"):
        encode.encode(config, parts, Identity(), 16)


def test_a_shard_is_full_by_its_bytes() -> None:
    shard = {"a": torch.zeros(100_000), "b": torch.zeros(300_000, dtype=torch.float16)}
    assert is_full(shard, 1) and not is_full(shard, 2)
    assert not is_full(shard | {"b": shard["b"][1:]}, 1)


def test_encode_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    config = DataConfig(kind="ffs", path=str(layout("ffs", tmp_path / "set")))
    with pytest.raises(ValueError, match="out must be a new or empty folder"):
        encode.encode(config, tmp_path / "set", Identity(), 16)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"encode: out must be a folder, got the file .*file"):
        encode.encode(config, tmp_path / "file", Identity(), 16)
    with pytest.raises(ValueError, match="size must be at least 1"):
        encode.encode(config, tmp_path / "out", Identity(), 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_encode_leaves_broken_videos_out(tmp_path: Path, workers: int) -> None:
    layout("taichi", tmp_path / "set")
    (tmp_path / "set" / "clip#1" / "0000005.png").write_bytes(b"\x89PNG")
    config = DataConfig(kind="taichi", path=str(tmp_path / "set"))
    index = encode.encode(config, tmp_path / "latents", Identity(), 16, workers=workers)
    assert index["broken"] == ["clip#1"] and [row[0] for row in index["clips"]] == ["clip#0", "clip#2"]
    data = open_dataset(DataConfig(kind="latents", path=str(tmp_path / "latents")), 2, 16)
    assert len(data) == 2 and data.broken == 1 and data[1]["latent"].shape == (2, 3, 16, 16)
    with pytest.raises(VideoError, match="clip#1"):
        encode.encode(DataConfig(kind="taichi", path=config.path, on_error="raise"), tmp_path / "o", Identity(), 16)


def test_only_broken_videos_at_the_end_cost_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "is_full", lambda shard, limit: True)  # a shard a video
    layout("taichi", tmp_path / "set")
    config = DataConfig(kind="taichi", path=str(tmp_path / "set"))
    for broken in (2, 1, 0):
        (tmp_path / "set" / f"clip#{broken}" / "0000005.png").write_bytes(b"\x89PNG")
        out = tmp_path / f"latents{broken}"
        if broken:
            index = encode.encode(config, out, Identity(), 16)
            assert len(index["clips"]) == len(index["shards"]) == broken and index["complete"]
            continue
        with pytest.raises(VideoError, match=r"encode: none of the 3 videos decodes; the last: .*clip#2"):
            encode.encode(config, out, Identity(), 16)
    with pytest.raises(ValueError, match="encode: dtype must be one of float16, float32, got bfloat16"):
        encode.encode(config, tmp_path / "other", Identity(), 16, dtype="bfloat16")


def test_bad_folders_of_latents(tmp_path: Path) -> None:
    config = DataConfig(kind="ffs", path=str(layout("ffs", tmp_path / "set")))
    out = tmp_path / "latents"
    stored = DataConfig(kind="latents", path=str(out))
    with pytest.raises(ValueError, match=r"path must be a folder that `latte-fast encode` wrote\n  path/index.json"):
        open_dataset(stored, 2, 16)
    encode.encode(config, out, Identity(), 16)
    for bad, frames, size, message in (
        (stored, 2, 32, "size must be the 16 pixels"),
        (stored, 9, 16, "at least 25 frames"),
        (DataConfig(kind="latents", path=str(out), flip=True), 2, 16, "flip must be False"),
        (DataConfig(kind="latents", path=str(out), image_path="x"), 2, 16, "image_path must be empty"),
    ):
        with pytest.raises(ValueError, match=message):
            open_dataset(bad, frames, size)
    shard = out / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00000.safetensors must have \d+ bytes, got \d+ bytes"):
        open_dataset(stored, 2, 16)
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({name: index[name] for name in index if name != "every"}))
    with pytest.raises(ValueError, match=r"index\.json must hold every, got an index without"):
        open_dataset(stored, 2, 16)
    (out / "index.json").write_text(json.dumps(index | {"version": 9}))
    with pytest.raises(ValueError, match="must have version 2, got 9"):
        open_dataset(stored, 2, 16)


def test_vae_is_diffusers_own_in_chunks(vae_folder: Path) -> None:
    vae = open_vae(vae_folder.parent)
    assert (vae.channels, vae.factor, vae.scaling, vae.random) == (4, 8, 0.18215, True)
    video = torch.rand(2, 9, 3, 16, 24) * 2 - 1
    mean, std = vae.encode(video)
    with torch.no_grad():
        posterior = vae.network.encode(video.flatten(0, 1)).latent_dist
        pictures = vae.network.decode(posterior.mean).sample
    assert mean.shape == std.shape == (2, 9, 4, 2, 3) and not mean.requires_grad
    torch.testing.assert_close(mean.flatten(0, 1), posterior.mean * 0.18215)
    torch.testing.assert_close(std.flatten(0, 1), posterior.std * 0.18215)
    torch.testing.assert_close(vae.decode(mean).flatten(0, 1), pictures, atol=1e-4, rtol=1e-4)


def test_vae_bad_input(tmp_path: Path, vae_folder: Path) -> None:
    with pytest.raises(ValueError, match="open_vae: path must be identity or the folder of an AutoencoderKL"):
        open_vae(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="open_vae: path must hold an AutoencoderKL"):
        open_vae(tmp_path)
    with pytest.raises(ValueError, match=r"encode: video must be \(B, F, 3, H, W\) with H and W multiples of 8"):
        open_vae(vae_folder).encode(torch.zeros(1, 1, 3, 12, 16))
    with pytest.raises(ValueError, match=r"decode: latent must be \(B, F, 3, H, W\), got"):
        open_vae("identity").decode(torch.zeros(1, 4, 2, 2))


def test_encode_command(tmp_path: Path, vae_folder: Path) -> None:
    layout("ffs", tmp_path / "set", 6)
    paths = {"path": tmp_path / "set", "out": tmp_path / "out", "vae": str(vae_folder)}
    args = [arg for name, value in paths.items() for arg in (f"--{name}", str(value))]
    out = run("encode", "--kind", "ffs", *args, "--size", "16", "--workers", "0", "--device", "cpu")
    assert "3 videos, 18 frames" in out and "1 files" in out and "float32" not in out
    with pytest.raises(SystemExit, match="holds latents: whole"):
        command("ffs", **paths, size=16)
    paths["out"] = tmp_path / "none"
    with pytest.raises(SystemExit, match="multiple of the VAE's 8"):
        command("ffs", **paths, size=20)
    with pytest.raises(SystemExit, match="encode: workers must be at least 0, got -1"):
        command("ffs", **paths, size=16, workers=-1)
    assert not paths["out"].exists()


def test_encode_refuses_before_the_vae_is_read(tmp_path: Path) -> None:
    """Where there is none, the message is not about it."""
    with pytest.raises(SystemExit, match="encode: every must be at least 1, got 0"):
        command("ffs", path=tmp_path, out=tmp_path / "out", vae="none", every=0)


def test_encode_help_teaches(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(command, args=["--help"])
    page = capsys.readouterr().out
    assert "Example: latte-fast encode --kind ffs" in page and "mirrored" in page
