"""Films to tokens and back by the command line, latents for a Latte, and tokens of another VQGAN."""

from pathlib import Path

import pytest
import torch

from latte_fast.data import DataConfig, open_dataset
from latte_fast.data.tokens import TokenFolder
from latte_fast.models.tats.chunks import encode_in_chunks
from latte_fast.models.tats.files import save_vqgan
from latte_fast.runs.codec import open_codec, open_vqgan
from latte_fast.training import Trainer, load_trained
from tests.cli.test_train import run
from tests.helpers.films import decode, encode, moving
from tests.helpers.tiny_run import MODEL, tiny
from tests.helpers.tiny_vqgan import pair, tiny_vqgan_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films, a VQGAN's file, and the films' tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    encode(folder / "films" / "a.mp4", moving(90, 24, 24))
    encode(folder / "films" / "b.mp4", moving(13, 24, 24, 1))
    save_vqgan(pair(n_codes=40)[0], folder / "vqgan.safetensors")
    films = ("--kind", "videos", "--path", str(folder / "films"), "--size", "16", "--workers", "0")
    vae = str(folder / "vqgan.safetensors")
    said = run("encode", *films, "--out", str(folder / "tokens"), "--vae", vae, "--tokens")
    assert "2 videos, 102 frames" in said  # 13 is odd, and a latent frame two frames
    run("encode", *films, "--out", str(folder / "latents"), "--vae", vae, "--dtype", "float32")
    return folder


def test_tokens_are_the_models(home: Path) -> None:
    folder = TokenFolder(home / "tokens")
    codec = open_vqgan(home / "vqgan.safetensors")
    assert folder.names == ["a.mp4", "b.mp4"] and folder.fingerprint == codec.fingerprint
    dataset = open_dataset(DataConfig(kind="videos", path=str(home / "films"), interval=1), 12, 16)
    video = torch.stack([dataset[(epoch, 1)]["video"] for epoch in range(20)])  # 12 of the 13 frames, from either start
    tokens = folder.read(1)
    assert tokens.shape == (6, 4, 4) and tokens.dtype == torch.int64
    assert any(torch.equal(tokens, codec.network.encode(x.movedim(0, 1)[None])[0]) for x in video)


def test_films_do_not_depend_on_the_chunk(home: Path, tmp_path: Path) -> None:
    vqgan = str(home / "vqgan.safetensors")
    for chunk in ("4", "7", "100"):
        args = ("--vqgan", vqgan, "--out", str(tmp_path / chunk), "--chunk", chunk, "--clips", "a.mp4")
        assert "1 films, 90 frames" in run("decode", str(home / "tokens"), *args)
    films = [(tmp_path / chunk / "a.mp4").read_bytes() for chunk in ("4", "7", "100")]
    assert films[0] == films[1] == films[2] and decode(tmp_path / "4" / "a.mp4").shape == (90, 16, 16, 3)


def test_refused(home: Path, tmp_path: Path) -> None:
    save_vqgan(pair(seed=5)[0], tmp_path / "other.safetensors")
    group = pair(n_hiddens=16, norm="group", n_codes=24)[0]
    save_vqgan(group, tmp_path / "group.safetensors")
    out = ("--out", str(tmp_path / "films"))
    said = run("decode", str(home / "tokens"), "--vqgan", str(tmp_path / "other.safetensors"), *out, ok=False)
    assert "vqgan must be the one that encoded" in said and open_vqgan(home / "vqgan.safetensors").fingerprint in said
    said = run("decode", str(home / "latents"), "--vqgan", str(home / "vqgan.safetensors"), *out, ok=False)
    assert "tokens must be true, got False" in said
    said = run("decode", str(tmp_path), "--vqgan", str(home / "vqgan.safetensors"), *out, ok=False)
    assert "path must be a folder that `latte-fast encode --tokens` wrote" in said
    args = ("--kind", "videos", "--path", str(home / "films"), "--size", "16", "--workers", "0", "--tokens")
    said = run("encode", *args, "--out", str(tmp_path / "t"), "--vae", "identity", ok=False)
    assert "vae must be a VQGAN to write tokens, got identity" in said
    said = run("encode", *args, "--out", str(tmp_path / "g"), "--vae", str(tmp_path / "group.safetensors"))
    args = ("--vqgan", str(tmp_path / "group.safetensors"), *out)
    assert "norm must be batch to go through a film" in run("decode", str(tmp_path / "g"), *args, ok=False)
    assert not (tmp_path / "films").exists()


def test_codec_keeps_what_the_codes_keep(home: Path) -> None:
    """Scaled latents of about unit variance; decoded, they are the model's own reconstruction."""
    codec = open_codec(home / "vqgan.safetensors")
    x = torch.from_numpy(moving(12, 16, 16)).float().div(127.5).sub(1).movedim(-1, 1)[None]
    mean, std = codec.encode(x)
    assert mean.shape == (1, 6, 6, 4, 4) and not std.any() and 0.3 < mean.std() < 6
    made = codec.decode(mean)
    with torch.no_grad():
        want = codec.network(x.movedim(1, 2))[0].movedim(2, 1)  # type: ignore[attr-defined]
    torch.testing.assert_close(made, want)
    with pytest.raises(ValueError, match=r"video must be \(B, F, 3, H, W\) with F a multiple of 2, H and W of 4"):
        codec.encode(x[:, :5])
    network = codec.network  # type: ignore[attr-defined]
    tokens = codec.tokens(x)  # type: ignore[attr-defined]
    pieces = encode_in_chunks(network, lambda a, b: x.movedim(1, 2)[:, :, a:b], 6, 4)
    assert torch.equal(tokens, torch.cat(list(pieces), 1))


def test_latte_trains_on_latents_before_quantisation(home: Path, tmp_path: Path) -> None:
    """From shards and from films with the codec in the loop; samples are films again."""
    vae = str(home / "vqgan.safetensors")
    for name, data in {
        "latents": DataConfig(kind="latents", path=str(home / "latents"), interval=1),
        "videos": DataConfig(kind="videos", path=str(home / "films"), interval=1),
    }.items():
        out = tmp_path / name
        sample = tiny("").sample
        config = tiny(out, data=data, frames=8, size=16, vae=vae, steps=2, batch=2, sample=sample, model=MODEL)
        trainer = Trainer(config, say=lambda text: None)
        assert trainer.objective.latent == (4, 6, 4, 4) and trainer.run() == 2  # type: ignore[attr-defined]
        said = run("sample", str(out), "--out", str(out / "films"), "--samples", "1", "--steps", "2")
        assert decode(out / "films" / "000000.mp4").shape == (8, 16, 16, 3), said
    assert load_trained(tmp_path / "latents").config.vae == vae


def test_run_is_a_codec(tmp_path: Path) -> None:
    Trainer(tiny_vqgan_run(tmp_path / "run", steps=1), say=lambda text: None).run()
    codecs = [open_codec(tmp_path / "run"), open_codec(tmp_path / "run" / "checkpoints" / "step-0000001")]
    file = tmp_path / "run" / "checkpoints" / "step-0000001" / "ema.safetensors"
    prints = {codec.fingerprint for codec in [*codecs, open_codec(file)]}  # type: ignore[attr-defined]
    assert len(prints) == 1 and codecs[0].frame_factor == 2
    said = run("sample", str(tmp_path / "run"), "--out", str(tmp_path / "s"), ok=False)
    assert "take a VQGAN's run" in said
    for name in ("a.ckpt", "a.safetensors"):
        run("convert", str(tmp_path / "run"), str(tmp_path / name))
        assert open_codec(tmp_path / name).fingerprint in prints  # type: ignore[attr-defined]
    assert "dtype must be float32" in run(
        "convert", str(file), str(tmp_path / "b.ckpt"), "--dtype", "bfloat16", ok=False
    )
