"""Files of VQGANs: the authors' .ckpt read without running anything, safetensors, refusals, the fingerprint."""

import argparse
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast import VQGAN, reference
from latte_fast.models.checkpoint import CheckpointError
from latte_fast.models.tats.files import fingerprint, load_vqgan, read_vqgan, save_vqgan
from tests.helpers.tiny_vqgan import TINY, clip, pair


def lightning(path: Path, oracle: Any, **options: Any) -> Path:
    """Writes what the authors' training writes: more networks, an optimizer, and options as a namespace."""
    extra = {f"image_discriminator.{k}": v for k, v in reference.vqgan.Discriminator(2, 4).state_dict().items()}
    extra["perceptual_model.net.slice1.0.weight"] = torch.zeros(3)
    args = argparse.Namespace(n_hiddens=4, downsample=[2, 4, 4], norm_type="batch", padding_type="replicate", **options)
    content = {"state_dict": {**oracle.state_dict(), **extra}, "hyper_parameters": {"args": args}, "epoch": 3}
    torch.save(content | {"optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}]}, path)
    return path


def test_ckpt_is_loaded_strictly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, oracle = pair()
    path = lightning(tmp_path / "a.ckpt", oracle.float())
    with caplog.at_level(logging.INFO, "latte_fast.models"):
        model = load_vqgan(path)
    assert "image_discriminator (25 tensors), perceptual_model (1 tensors)" in caplog.text
    assert model.codebook.initialised and not model.training
    want = oracle.state_dict()
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())
    with pytest.raises(Exception, match="Namespace"):  # allowed inside the call alone
        torch.load(path, weights_only=True)
    for suffix in (".safetensors", ".ckpt"):
        again = tmp_path / f"b{suffix}"
        save_vqgan(model, again)
        assert asdict(read_vqgan(again).config) == TINY | {"norm": "batch", "padding": "replicate", "channels": 3}
        assert fingerprint(load_vqgan(again)) == fingerprint(model)
    theirs = torch.load(tmp_path / "b.ckpt", weights_only=False)
    oracle.load_state_dict(theirs["state_dict"], strict=True)
    assert theirs["hyper_parameters"]["args"].norm_type == "batch"


def test_one_channel_goes_through_files(tmp_path: Path) -> None:
    """The channels are read from the tensors, and their number is in what the authors' scripts read."""
    model = pair(channels=1)[0]
    for suffix in (".safetensors", ".ckpt"):
        save_vqgan(model, tmp_path / f"a{suffix}")
        again = load_vqgan(tmp_path / f"a{suffix}")
        assert again.config == model.config and fingerprint(again) == fingerprint(model)
    assert torch.load(tmp_path / "a.ckpt", weights_only=False)["hyper_parameters"]["args"].image_channels == 1


def test_fingerprint_is_of_tokens_and_pixels() -> None:
    ours, _ = pair()
    before = fingerprint(ours)
    ours.codebook.N += 1
    assert fingerprint(ours) == before
    ours.codebook.embeddings[3, 2] += 1e-6
    assert fingerprint(ours) != before
    other = VQGAN(**TINY | {"downsample": (4, 2, 4)})
    other.load_state_dict(ours.state_dict())
    assert fingerprint(other) != fingerprint(ours)


def test_fingerprint_stays_that_of_earlier_versions() -> None:
    """Which knew no channels: folders of tokens and runs of theirs still find their VQGAN."""
    model = VQGAN(n_hiddens=1, downsample=(1, 2, 2), embedding_dim=1, n_codes=2)
    with torch.no_grad():
        for x in model.state_dict().values():
            x.fill_(1)
    assert fingerprint(model) == "98aa6db402988da6"


class Harm:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours, oracle = pair()
    torch.save({"state_dict": ours.state_dict(), "x": Harm()}, tmp_path / "harm.ckpt")
    torch.save(ours.state_dict(), tmp_path / "flat.ckpt")
    torch.save({"state_dict": {"transformer.head.weight": torch.zeros(2)}}, tmp_path / "gpt.ckpt")
    lightning(tmp_path / "short.ckpt", oracle.float())
    short = torch.load(tmp_path / "short.ckpt", weights_only=False)
    short["state_dict"].pop("decoder.conv_last.conv.bias")
    torch.save(short, tmp_path / "short.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "flat.ckpt").read_bytes()[:1000])
    for name, message in {
        "harm.ckpt": "holds more than tensors, or is damaged, and was not unpickled",
        "flat.ckpt": "must name the downsampling",
        "gpt.ckpt": "must hold encoder.conv_first.conv.weight, as every 3D-VQGAN does, got transformer",
        "short.ckpt": r"decoder.conv_last.conv.bias must have shape \(3,\), found none",
        "cut.ckpt": "truncated or not a checkpoint",
        "none.ckpt": "no such file",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_vqgan(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


def test_resuming_keeps_the_codebook() -> None:
    """The authors' code draws it anew after a restart; here its counts tell that it has begun."""
    ours, _ = pair()
    fresh = VQGAN(**TINY)
    assert not fresh.codebook.initialised
    fresh.load_state_dict(ours.state_dict())
    assert fresh.codebook.initialised
    fresh.train()(clip())
    change = (fresh.codebook.embeddings - ours.codebook.embeddings).norm() / ours.codebook.embeddings.norm()
    assert change < 0.1
