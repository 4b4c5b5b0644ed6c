"""Films of a token transformer by the command line, from films on disk to a hierarchy's long ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import latte_fast
from latte_fast.cli.quantize import quantize
from latte_fast.cli.sample import sample
from latte_fast.models.tats.files import save_vqgan
from latte_fast.models.tats.transformer_files import load_transformer
from latte_fast.modules.linear_int8 import LinearInt8
from latte_fast.runs.tokens import load_tokens
from latte_fast.token_films.sample import open_tokens
from latte_fast.token_films.source import TokenOptions
from tests.cli.test_train import run
from tests.helpers.films import decode, encode, moving
from tests.helpers.sounds import tone, write_wav
from tests.helpers.texts import write_bpe
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
    (folder / "captions.json").write_text(json.dumps({"a": "it moves left", "b": "it does not move"}))
    text = ("--tokens.captions", str(folder / "captions.json"), "--tokens.bpe", str(write_bpe(folder / "bpe.txt.gz")))
    run("train", *data, "--out", str(folder / "text"), "--frames", "8", *text, "--tokens.words", "20")
    return folder


def test_films_of_prompts(home: Path, tmp_path: Path) -> None:
    """Captions are given as tokens before the codes, in the first window and in each later one."""
    args = (str(home / "text"), "--vae", str(home / "vqgan.safetensors"), "--frames", "12", "--batch", "1")
    run("sample", *args, "--prompt", "it moves", "move!", "--samples", "2", "--out", str(tmp_path / "s"))
    names = json.loads((tmp_path / "s" / "samples.json").read_text())["names"]
    assert names == ["it moves", "move!"] and decode(tmp_path / "s" / "000001.mp4").shape == (12, 8, 8, 3)
    said = run("sample", *args, "--out", str(tmp_path / "t"), ok=False)
    assert "prompt must say what to show, for a model trained with captions, got none" in said
    (tmp_path / "other.txt").write_text("#\na b\n")
    wrong = ("--prompt", "x", "--tokens.bpe", str(tmp_path / "other.txt"))
    assert "tokens.bpe must be the training's vocabulary" in run("sample", *args, *wrong, "--out", "t", ok=False)
    long = ("--prompt", 20 * "it ")
    assert "captions must be at most 20 tokens long, got 4" in run("sample", *args, *long, "--out", "t", ok=False)


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


def test_films_in_python(home: Path, tmp_path: Path) -> None:
    """latte_fast.sample takes an opened run; the files are those of the command."""
    with pytest.raises(ValueError, match=r"model must be opened by latte_fast\.token_films\.sample\.open_tokens"):
        latte_fast.sample(home / "all")
    vae = str(home / "vqgan.safetensors")
    source = open_tokens(home / "all", vae=vae)
    found = latte_fast.sample(source, samples=3, batch=2, frames=12, progress=False)
    assert found.videos.shape == (3, 12, 8, 8, 3) and len(found.names) == 3
    assert latte_fast.sample(source, samples=1, batch=1, frames=12, out=tmp_path / "p", progress=False) is None
    args = ("--frames", "12", "--samples", "1", "--batch", "1", "--vae", vae)
    run("sample", str(home / "all"), *args, "--out", str(tmp_path / "c"))
    for name in ("000000.mp4", "samples.json"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    with pytest.raises(ValueError, match="guidance must be left out for films of tokens, got 2"):
        latte_fast.sample(source, guidance=2.0)


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_convert(home: Path, tmp_path: Path, name: str) -> None:
    run("convert", str(home / "gaps"), str(tmp_path / name))
    want, got = load_tokens(home / "gaps").model, load_transformer(tmp_path / name)
    assert got.config == want.config and got.config.n_unmasked
    assert all(torch.equal(x, want.state_dict()[key]) for key, x in got.state_dict().items())
    if name.endswith("safetensors"):
        run("convert", str(tmp_path / name), str(tmp_path / "b.ckpt"), "--dtype", "bfloat16")
        half = load_transformer(tmp_path / "b.ckpt").state_dict()
        state = torch.load(tmp_path / "b.ckpt", weights_only=False)["state_dict"]
        assert {x.dtype for x in state.values()} == {torch.bfloat16} and set(half) == set(want.state_dict())
    said = run("convert", str(home / "gaps"), str(tmp_path / "c.pt"), ok=False)
    assert "out must end in .safetensors or .ckpt for a token transformer, got c.pt" in said


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


def test_int8_weights(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounded when a run is loaded, or in a file; the command says what has changed; the films are the same ones."""
    vae = str(home / "vqgan.safetensors")
    quantize(str(home / "all"), tmp_path / "eight.safetensors", samples=2, device="cpu")
    said = capsys.readouterr().out
    assert "7 layers in 8 bits, 0 in 16" in said and "head: 1 layers, error of the weights" in said
    assert "logits: signal-to-noise ratio" in said and "of 16 tokens" in said
    given = {"vae": vae, "samples": 2, "batch": 2, "format": "npz"}
    sample(str(home / "all"), out=str(tmp_path / "a"), precision="int8", dtype="bf16", **given)  # type: ignore[arg-type]
    assert "weights in int8" in capsys.readouterr().out
    sample(str(tmp_path / "eight.safetensors"), out=str(tmp_path / "b"), dtype="bf16", **given)  # type: ignore[arg-type]
    films = [np.load(tmp_path / name / "000000.npz")["video"] for name in "ab"]
    assert np.array_equal(*films)
    # of both transformers of a hierarchy
    between = TokenOptions(between=str(home / "gaps"))
    source = open_tokens(home / "keys", vae=vae, options=between, precision="int8")
    assert sum(type(layer) is LinearInt8 for layer in source.network.modules()) == 14
    for flags, match in (({"precision": "fp8"}, "precision must be left out for a token tr"),
                         ({"precise_steps": ("last",)}, "precise-steps must be left out for a token tr")):  # fmt: skip
        with pytest.raises(SystemExit, match=match):
            sample(str(home / "all"), out=str(tmp_path / "c"), **flags)  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="guidance and vae must be left out for a token transformer, got guidance 2"):
        quantize(str(home / "all"), tmp_path / "other.safetensors", guidance=2.0)


def test_films_of_sounds(home: Path, tmp_path: Path) -> None:
    """A VQGAN of sounds, the sounds' tokens, a transformer that hears them, and films of another sound."""
    for name, hertz in (("a", 300.0), ("b", 900.0)):
        write_wav(tmp_path / "sounds" / name / "0.wav", tone(hertz))
    sounds = ("--path", str(tmp_path / "sounds"))
    sizes = ("--vqgan.model.n-hiddens", "2", "--vqgan.model.downsample", "2", "8", "8", "--vqgan.width", "2")
    sizes = (*sizes, "--vqgan.model.embedding-dim", "4", "--vqgan.model.n-codes", "12", "--vqgan.model.channels", "1")
    data = ("--objective", "vqgan", "--data.kind", "sounds", "--data.path", str(tmp_path / "sounds"), *sizes)
    vqgan = str(tmp_path / "stft")
    shown = ("--sample.every", "2", "--sample.count", "2", "--vqgan.start", "1", "--vqgan.layers", "2")
    run("train", *data, *shown, "--size", "64", "--frames", "4", "--batch", "2", "--steps", "2", "--out", vqgan)
    assert list((tmp_path / "stft" / "samples").glob("*.png"))
    said = run("encode-audio", *sounds, "--out", str(tmp_path / "heard"), "--vae", vqgan)
    assert "2 sounds, 2 s, 26 latent frames" in said
    tokens = ("--objective", "tokens", "--data.kind", "tokens", "--data.path", str(home / "tokens"), *SIZES)
    tokens = (*tokens, "--data.interval", "1", "--steps", "1", "--frames", "8")
    tokens = (*tokens, "--tokens.sound", str(tmp_path / "heard"))
    run("train", *tokens, "--tokens.sound-vae", vqgan, "--out", str(tmp_path / "drums"))
    other = str(write_wav(tmp_path / "other.wav", tone(500.0, 0.3, 44100), 44100))
    args = (str(tmp_path / "drums"), "--vae", str(home / "vqgan.safetensors"), "--frames", "12")
    run("sample", *args, "--audio", other, "--out", str(tmp_path / "s"))
    assert decode(tmp_path / "s" / "000000.mp4").shape == (12, 8, 8, 3)
    said = run("sample", *args, "--out", str(tmp_path / "t"), ok=False)
    assert "audio must be at least one sound, got none" in said
    said = run("sample", *args, "--audio", str(tmp_path / "no.wav"), "--out", str(tmp_path / "t"), ok=False)
    assert "no.wav: no such file" in said
    wrong = ("--audio", other, "--tokens.sound-vae", str(home / "vqgan.safetensors"))
    assert "tokens.sound_vae must be the one of the" in run("sample", *args, *wrong, "--out", "t", ok=False)
    heard = run("decode", str(tmp_path / "heard"), "--vqgan", vqgan, "--out", str(tmp_path / "d"), ok=False)
    assert "must hold what `latte-fast encode --tokens` wrote, got those of sounds" in heard
    said = run("sample", str(home / "all"), "--audio", other, "--vae", args[2], "--out", "t", ok=False)
    assert "audio must be left out for this model, got 1" in said
