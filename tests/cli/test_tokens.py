"""Films of a token transformer by the command line, from films on disk to a hierarchy's long ones."""

from pathlib import Path

import pytest

from latte_fast.models.tats.files import save_vqgan
from tests.cli.test_train import run
from tests.helpers.films import decode, encode, moving
from tests.helpers.tiny_vqgan import pair

SIZES = ("--tokens.n-layer", "1", "--tokens.n-head", "2", "--tokens.n-embd", "8", "--batch", "2", "--size", "8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films, a VQGAN's file, the films' tokens, and runs of three transformers."""
    folder = tmp_path_factory.mktemp("films")
    for name in ("a", "b"):
        encode(folder / "films" / name / "0.mp4", moving(24, 16, 16))
    save_vqgan(pair(n_codes=24)[0], folder / "vqgan.safetensors")
    films = ("--kind", "videos", "--path", str(folder / "films"), "--size", "8", "--workers", "0", "--tokens")
    run("encode", *films, "--out", str(folder / "tokens"), "--vae", str(folder / "vqgan.safetensors"))
    data = ("--objective", "tokens", "--data.kind", "tokens", "--data.path", str(folder / "tokens"))
    data = (*data, "--data.interval", "1", "--steps", "2", *SIZES)
    run("train", *data, "--out", str(folder / "all"), "--frames", "8")
    run("train", *data, "--out", str(folder / "keys"), "--frames", "18", "--tokens.every", "4")
    run("train", *data, "--out", str(folder / "gaps"), "--frames", "10", "--tokens.gap")
    return folder


def test_long_film(home: Path, tmp_path: Path) -> None:
    vae = ("--vae", str(home / "vqgan.safetensors"), "--batch", "1")
    said = run("sample", str(home / "all"), "--frames", "20", "--samples", "2", "--out", str(tmp_path / "s"), *vae)
    assert "2 samples" in said
    assert [decode(p).shape for p in sorted((tmp_path / "s").glob("*.mp4"))] == [(20, 8, 8, 3)] * 2
    args = ("--frames", "34", "--samples", "1", "--tokens.between", str(home / "gaps"), "--classes", "b", *vae)
    run("sample", str(home / "keys"), *args, "--out", str(tmp_path / "h"))
    assert decode(tmp_path / "h" / "000000.mp4").shape == (34, 8, 8, 3)
    assert '"b"' in (tmp_path / "h" / "samples.json").read_text()
    again = run("sample", str(home / "keys"), *args, "--out", str(tmp_path / "h"), ok=False)
    assert "out must not hold these samples yet" in again
    run("sample", str(home / "keys"), *args, "--out", str(tmp_path / "h"), "--resume")


def test_one_message_each(home: Path, tmp_path: Path) -> None:
    def said(*args: str) -> str:
        text = run("sample", *args, "--out", str(tmp_path / "s"), ok=False)
        assert not (tmp_path / "s").exists()
        return text

    vae = ("--vae", str(home / "vqgan.safetensors"))
    assert "vae must be the file or run of the VQGAN whose tokens" in said(str(home / "all"))
    assert "tokens.between must be the run of a model that fills gaps" in said(str(home / "keys"), *vae)
    hierarchy = (str(home / "keys"), *vae, "--tokens.between", str(home / "gaps"))
    assert "such as 26 or 34, got 28" in said(*hierarchy, "--frames", "28")
    assert "got a window of 4 + 1" in said(str(home / "all"), *vae, "--frames", "20", "--tokens.context", "4")
    assert "--guidance must be left out for a token transformer" in said(str(home / "all"), *vae, "--guidance", "2")
    save_vqgan(pair(seed=3, n_codes=24)[0], tmp_path / "other.safetensors")
    other = ("--vae", str(tmp_path / "other.safetensors"))
    assert "vae must be the one whose tokens the model knows" in said(str(home / "all"), *other)
