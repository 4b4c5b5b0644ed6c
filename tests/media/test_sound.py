"""Sound of files: WAV of all widths, what PyAV decodes, and files without sound."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latte_fast.media.sound import SoundError, read_sound
from tests.helpers.films import encode, moving
from tests.helpers.sounds import tone, write_wav


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav(tmp_path: Path, width: int) -> None:
    """Two channels are averaged, and a sample is as exact as its bits."""
    channels = torch.stack([tone(440, 0.1), torch.linspace(-1, 1, 1600)])
    sound, rate = read_sound(write_wav(tmp_path / "a.WAV", channels, width=width))
    assert rate == 16000 and sound.dtype == torch.float32
    torch.testing.assert_close(sound, channels.mean(0), rtol=0, atol=1.5 / 2 ** (8 * width - 1) + 1e-7)


@pytest.mark.parametrize(("suffix", "codec", "kind"), [("flac", "flac", "s16"), ("wav", "pcm_f32le", "flt")])
def test_other_files(tmp_path: Path, suffix: str, codec: str, kind: str) -> None:
    """A lossless file and a WAV of floating-point numbers, which the standard library does not read."""
    path, want = tmp_path / f"a.{suffix}", torch.stack([tone(440, 0.25, 8000), tone(300, 0.25, 8000)])
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=8000, layout="stereo")
        values = want.t().reshape(1, -1).numpy()
        values = np.round(values * 32767).astype(np.int16) if kind == "s16" else values
        frame = av.AudioFrame.from_ndarray(values, format=kind, layout="stereo")
        frame.rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    sound, rate = read_sound(path)
    assert rate == 8000
    torch.testing.assert_close(sound, want.mean(0), rtol=0, atol=1e-4)


def test_no_sound(tmp_path: Path) -> None:
    encode(tmp_path / "film.mp4", moving(4, 16, 16))
    (tmp_path / "text.wav").write_text("no sound")
    write_wav(tmp_path / "empty.wav", torch.zeros(0))
    for name, why in (
        ("none.wav", "no such file"),
        ("film.mp4", "has no sound"),
        ("text.wav", "Invalid data"),
        ("empty.wav", "holds no sound"),
    ):
        with pytest.raises(SoundError, match=rf"{name}: .*{why}"):
            read_sound(tmp_path / name)
