"""Reading a training clip from a video file or from latents, and encoding without the VAE's own time; on one core."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latte_fast.codecs.vae import Identity
from latte_fast.data import DataConfig, encode, open_dataset
from latte_fast.data.seeding import draw_places, generator
from latte_fast.media.picture import fit
from latte_fast.media.pixels import normalise
from latte_fast.media.write import write_mp4

FRAMES, INTERVAL, SIZE, LENGTH = 16, 3, 256, 300


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def film(length: int = LENGTH) -> np.ndarray:
    """Draws uint8 (F, 256, 256, 3): a textured picture that pans all the time, under sensor noise; hard on a codec."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(1, 3, 64, 64)))
    wide = F.interpolate(coarse, size=(512, 512), mode="bicubic")[0].permute(1, 2, 0).numpy()
    wide = 128 + 50 * wide + 8 * rng.normal(size=wide.shape)
    out = np.empty((length, SIZE, SIZE, 3), np.uint8)
    for i in range(length):
        top, left = int(128 + 90 * np.cos(i / 55)), int(128 + 100 * np.sin(i / 40))
        noise = 3 * rng.normal(size=(SIZE, SIZE, 1))
        out[i] = np.clip(wide[top : top + SIZE, left : left + SIZE] + noise, 0, 255)
    return out


@pytest.mark.parametrize("gop", [250, 50], ids=lambda gop: f"keyframe-each-{gop}")
def test_clip_from_h264(compare: Callable[..., Any], tmp_path: Path, gop: int) -> None:
    """Races our reader against decoding the whole file and taking the frames from it, as upstream does."""
    path = tmp_path / "a.mp4"
    write_mp4(path, film(), fps=25, crf=23, gop=gop)
    data = open_dataset(DataConfig(kind="videos", path=str(tmp_path), interval=INTERVAL), FRAMES, SIZE)

    def whole(epoch: int) -> torch.Tensor:
        places = draw_places(generator(0, epoch, 0, 0), LENGTH, FRAMES, INTERVAL)
        with av.open(str(path)) as box:
            frames = [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]
        return normalise(fit(np.stack([frames[place] for place in places]), SIZE))

    def check() -> None:
        for epoch in range(3):
            assert torch.equal(data[epoch, 0]["video"], whole(epoch))

    ours, theirs = count(), count()
    contenders = {"ours": lambda: data[next(ours), 0], "decode all, then take": lambda: whole(next(theirs))}
    compare(
        f"{FRAMES} frames at interval {INTERVAL} of {LENGTH}, {SIZE}x{SIZE} H.264, keyframe each {gop}, one core",
        contenders,
        check,
        note=f"{path.stat().st_size / 1e3:.0f} KB",
        seconds=15,
    )


@pytest.mark.parametrize("kind", ["latents", "encode"])
def test_latents(compare: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    """Reads a clip of 4x32x32 latents; or runs 300 frames through `encode` without a VAE: decode, pass on, write."""
    write_mp4(tmp_path / "set" / "a.mp4", film(), fps=25, crf=23)
    config, numbers = DataConfig(kind="videos", path=str(tmp_path / "set")), count()

    class Mean8(Identity):
        """Stands in for a VAE, with the same shapes: 4 channels, an eighth of the side."""

        channels, factor, random = 4, 8, True

        def encode(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean = F.avg_pool2d(video[0], 8)
            mean = torch.cat([mean, mean[:, :1]], 1)[None]
            return mean, mean.abs()

    def written() -> Path:
        out = tmp_path / f"latents{next(numbers)}"
        encode.encode(config, out, Mean8(), SIZE)
        return out

    data = open_dataset(DataConfig(kind="latents", path=str(written())), FRAMES, SIZE)

    def check() -> None:
        assert data[0]["latent"].shape == (FRAMES, 4, 32, 32) and data[0]["latent"].isfinite().all()

    if kind == "latents":
        compare("16 frames of 4x32x32 latents, posterior drawn", {"ours": lambda: data[next(numbers), 0]}, check)
    else:
        compare("encode 300 frames 256x256, VAE not counted", {"ours": written}, check)
