"""Sounds as training clips, their tokens on disk, and clips of tokens with the tokens of their sounds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latte_fast.codecs import spectrum
from latte_fast.data import DataConfig, open_dataset
from latte_fast.data.encode_sounds import encode_sounds
from latte_fast.data.layouts import LayoutError
from latte_fast.data.token_clips import TokenClips
from latte_fast.data.tokens import SOUND_TOKENS, TokenFolder
from latte_fast.media.sound import read_sound
from latte_fast.media.video import VideoError
from latte_fast.runs.codec import open_vqgan
from tests.helpers.sounds import tone, write_sound_vqgan, write_wav
from tests.helpers.tiny_tokens import write_tokens


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds named as the clips of `write_tokens`; number 3 ends before its clip, of 18 frames."""
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(11):
        write_wav(folder / f"{i}.wav", tone(200 + 300 * i, 0.2 if i == 3 else 0.75, 8000), 8000)
    return folder


def test_clips_of_sounds(sounds: Path) -> None:
    """A clip is a part of the sound's pictures by (seed, epoch, index), followed by silence where the sound ends."""
    config = DataConfig(kind="sounds", path=str(sounds))
    clips = open_dataset(config, 6, 64)
    whole = clips.files[1].pictures()  # type: ignore[union-attr]
    assert len(clips) == 11 and len(whole) == 19
    seen = {
        start
        for epoch in range(20)
        for start in range(14)
        if torch.equal(clips[epoch, 1]["video"], whole[start : start + 6])
    }
    assert len(seen) > 5 and torch.equal(clips[4, 1]["video"], clips[4, 1]["video"])
    short = clips[0, 4]["video"]  # of 3.wav, the fifth name
    assert short.shape == (6, 1, 64, 16) and (short[4] > -1).any() and (short[5] == -1).all()
    assert (open_dataset(config, 9, 64)[0, 4]["video"][5:] == -1).all()
    with pytest.raises(ValueError, match="size must be 64, the height of a sound's pictures, got 32"):
        open_dataset(config, 6, 32)
    with pytest.raises(LayoutError, match="path must be a folder of sounds or films"):
        open_dataset(replace(config, path=str(sounds / "none")), 6, 64)


def test_encode(sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are those of the pictures; a stopped run goes on, and a sound that does not decode is named."""
    codec = open_vqgan(write_sound_vqgan(tmp_path / "vqgan.safetensors"))
    (tmp_path / "in").mkdir()
    for path in sounds.glob("[1-3].wav"):
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "in" / "broken.wav").write_text("x")
    config = DataConfig(kind="sounds", path=str(tmp_path / "in"), fps=12.0)
    with pytest.raises(VideoError, match=r"broken\.wav"):
        encode_sounds(replace(config, on_error="raise"), tmp_path / "strict", codec)
    read, calls = read_sound, []

    def stopped(path: Path) -> object:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr("latte_fast.data.shards.MEGABYTE", 0)  # a shard for each sound
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("latte_fast.data.sounds.read_sound", stopped)
        encode_sounds(config, tmp_path / "out", codec, 1)
    index = encode_sounds(config, tmp_path / "out", codec, 1, resume=True)
    assert index["broken"] == ["broken.wav"] and [row[0] for row in index["clips"]] == ["1.wav", "2.wav", "3.wav"]
    folder = TokenFolder(tmp_path / "out", SOUND_TOKENS)
    assert (folder.fps, folder.n_codes, folder.fingerprint) == (12.0, 12, codec.fingerprint)
    sound, rate = read_sound(tmp_path / "in" / "2.wav")
    pictures = spectrum.pictures(sound, rate, 12.0, 10)  # 9 of 0.75 seconds, up to a whole latent frame
    assert torch.equal(folder.read(1), codec.tokens(pictures[None])[0]) and folder.read(1).shape == (5, 8, 2)
    with pytest.raises(ValueError, match=r"must hold what `latte-fast encode --tokens` wrote, got those of sounds"):
        TokenFolder(tmp_path / "out")
    with pytest.raises(ValueError, match=r"fps must be 12\.0, as before"):
        encode_sounds(replace(config, fps=24.0), tmp_path / "out", codec, 1, resume=True)


def test_clips_with_their_sounds(sounds: Path, tmp_path: Path) -> None:
    """An item has the sound's tokens of the same latent frames; where the sound has ended, its last ones again."""
    codec = open_vqgan(write_sound_vqgan(tmp_path / "vqgan.safetensors"))
    encode_sounds(DataConfig(kind="sounds", path=str(sounds), fps=24.0), tmp_path / "heard", codec)
    films = write_tokens(tmp_path / "films")
    clips = TokenClips(DataConfig(kind="tokens", path=str(films), interval=1), 8, 8)
    heard = TokenFolder(tmp_path / "heard", SOUND_TOKENS)
    clips.give_sounds(heard)
    for index in (0, 3):
        film, sound = clips.tokens.read(index), heard.read(heard.names.index(f"{index}.wav")).flatten(1)
        assert len(sound) == (9 if index == 0 else 3)
        for epoch in range(6):
            item = clips[epoch, index]
            start = next(s for s in range(6) if torch.equal(item["tokens"], film[s : s + 4]))
            want = torch.stack([sound[min(start + i, len(sound) - 1)] for i in range(4)])
            assert torch.equal(item["words"], want.flatten())
    other = TokenClips(DataConfig(kind="tokens", path=str(write_tokens(tmp_path / "more", clips=12)), interval=1), 8, 8)
    with pytest.raises(ValueError, match=r"sound must hold every clip, got none of 11\.mp4 \(1 of 12 lack one\)"):
        other.give_sounds(heard)
    with pytest.raises(ValueError, match="wrote, got those of films"):
        TokenFolder(films, SOUND_TOKENS)
