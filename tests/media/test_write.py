"""mp4, gif, png: read back, they hold what was written."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latte_fast.data import shapes
from latte_fast.media import write


def clip(frames: int = 6, size: int = 33) -> torch.Tensor:
    return shapes.clip(4, 0, frames, size).permute(0, 2, 3, 1)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as box:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)])


def test_mp4_holds_the_clip(tmp_path: Path) -> None:
    write.write_mp4(tmp_path / "a.mp4", clip(), fps=8)
    got = decoded(tmp_path / "a.mp4")
    assert got.shape == (6, 34, 34, 3)
    assert np.abs(got[:, :33, :33].astype(int) - clip().numpy()).mean() < 6
    with av.open(str(tmp_path / "a.mp4")) as box:
        assert box.streams.video[0].average_rate == 8


def test_gif_holds_the_clip(tmp_path: Path) -> None:
    write.write_gif(tmp_path / "a.gif", clip(), fps=10)
    got = decoded(tmp_path / "a.gif")
    assert got.shape == (6, 33, 33, 3)
    assert np.abs(got.astype(int) - clip().numpy()).mean() < 6


def test_sheet_shows_first_and_last_frame_of_each_clip_exactly(tmp_path: Path) -> None:
    clips = [clip(), clip(3)]
    write.write_sheet(tmp_path / "a.png", clips, ["square right", "b"], columns=4)
    (got,) = decoded(tmp_path / "a.png")
    label, gap = 16, write.GAP
    assert got.shape == (gap + 2 * (label + 33 + gap), gap + 4 * (33 + gap), 3)
    top = gap + label
    assert np.array_equal(got[top : top + 33, gap : gap + 33], clips[0][0])
    assert np.array_equal(got[top : top + 33, -gap - 33 : -gap], clips[0][-1])
    assert np.array_equal(got[-gap - 33 : -gap, -gap - 33 : -gap], clips[1][-1])
    assert (got[gap:top] == 0).any()


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"before")
    with pytest.raises(ValueError, match="video must be uint8"):
        write.write_mp4(tmp_path / "a.mp4", clip().float())
    with pytest.raises((av.FFmpegError, ValueError)):
        write.write_mp4(tmp_path / "a.mp4", clip(), fps=8, gop=10**12)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == b"before"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: write.write_mp4("a.avi", clip()), "path must end in .mp4, got a.avi"),
        (lambda: write.write_gif("a.gif", clip(), fps=0), "fps must be from 0.01 to 1000, got 0"),
        (lambda: write.write_gif("a.gif", clip(), fps=1e-9), "fps must be from 0.01 to 1000, got 1e-09"),
        (lambda: write.write_mp4("a.mp4", clip(), fps=float("inf")), "fps must be from 0.01 to 1000, got inf"),
        (lambda: write.write_sheet("a.png", []), "clips must have one height"),
        (lambda: write.write_sheet("a.png", [clip()], ["a", "b"]), "labels must be one a clip"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
