"""Films of the same names compared frame by frame, and the sets that cannot be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latte_fast.evaluation import Evaluation, evaluate
from latte_fast.evaluation.pixels import flicker, psnr, ssim
from latte_fast.media.write import write_mp4
from tests.helpers.detectors import saved, write_arrays
from tests.helpers.films import moving


class Apart(nn.Module):
    """Mean absolute difference of each pair of frames, as (F, 1, 1, 1)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert x.min() >= -1 and x.max() <= 1 and x.is_floating_point()
        return (x - y).abs().mean([1, 2, 3], keepdim=True)


@pytest.fixture
def config(tmp_path: Path) -> Evaluation:
    exact = [moving(6, seed=i) for i in range(4)]
    draw = np.random.default_rng(0)
    noise = [draw.integers(-9 * i, 9 * i + 1, x.shape) for i, x in enumerate(exact)]
    near = [np.clip(x + e, 0, 255).astype(np.uint8) for x, e in zip(exact, noise, strict=True)]
    write_arrays(tmp_path / "exact", exact)
    return Evaluation(write_arrays(tmp_path / "near", near), "", "psnr", tmp_path / "exact", frames=6)


def read(folder: Path, number: int) -> Tensor:
    return torch.from_numpy(np.load(folder / f"{number:06d}.npz")["video"]).permute(0, 3, 1, 2).float() / 255


def test_pairs_are_measured_frame_by_frame(config: Evaluation, tmp_path: Path) -> None:
    pairs = [[read(tmp_path / name, i) for name in ("near", "exact")] for i in range(4)]
    for metric, of in (("psnr", psnr), ("ssim", ssim)):
        result = evaluate(replace(config, metric=metric, bootstrap=20))
        expected = [float(of(*pair).mean()) for pair in pairs]
        assert result.value == pytest.approx(np.mean(expected), rel=1e-9)
        assert result.spread == pytest.approx(np.std(expected), rel=1e-9)
        assert result.score.interval is not None and result.warnings == []
        # the first pair is of equal films
        assert expected[0] == pytest.approx(100 if metric == "psnr" else 1) and expected == sorted(expected)[::-1]
    said = f"  of 4 samples and the films of their names in {tmp_path / 'exact'}, 6 frames each, at their own size"
    assert result.lines()[1] == said
    alone = evaluate(Evaluation(config.samples, metric="flicker", frames=6))
    assert alone.value == pytest.approx(np.mean([float(flicker(near).mean()) for near, _ in pairs]), rel=1e-9)
    assert "flicker" in alone.lines()[0] and alone.real == {}


def test_lpips_takes_the_users_network(config: Evaluation, tmp_path: Path) -> None:
    result = evaluate(replace(config, metric="lpips", detector=saved(Apart(), tmp_path / "apart.pt")))
    expected = [2 * (read(tmp_path / "near", i) - read(tmp_path / "exact", i)).abs().mean().item() for i in range(4)]
    assert result.value == pytest.approx(np.mean(expected), rel=1e-5) and len(result.detector) == 64
    with pytest.raises(ValueError, match=r"detector must be a TorchScript file, got none; .* an LPIPS"):
        evaluate(replace(config, metric="lpips"))


def test_endings_do_not_matter(config: Evaluation, tmp_path: Path) -> None:
    for i in range(4):
        write_mp4(tmp_path / "films" / f"{i:06d}.mp4", moving(6, seed=i))
    assert 25 < evaluate(replace(config, samples=tmp_path / "films")).value < 60


def test_a_broken_film_costs_its_pair_alone(config: Evaluation, tmp_path: Path) -> None:
    file = tmp_path / "exact" / "000002.npz"
    np.savez(file, video=moving(6, seed=2))
    file.write_bytes(bytes(b ^ (255 if 400 < i < 500 else 0) for i, b in enumerate(file.read_bytes())))
    result = evaluate(config)
    assert result.samples["count"] == 3 and result.samples["broken"] == ["000002.npz"]
    assert "1 samples do not decode and were left out, 000002.npz first" in result.warnings


def test_sets_that_do_not_match(config: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "exact" / "000003.npz").unlink()
    with pytest.raises(ValueError, match=r"films of the same names, got 4 and 3 films; 000003 is in .*near alone"):
        evaluate(config)
    write_arrays(tmp_path / "exact", [moving(6, seed=i) for i in range(3)] + [moving(5)])
    with pytest.raises(ValueError, match=r"real must have at least 6 frames in each film, as samples have, got 5 in"):
        evaluate(config)
    write_arrays(tmp_path / "exact", [moving(6, seed=i) for i in range(3)] + [moving(6, 32, 50)])
    with pytest.raises(ValueError, match=r"as large as those of their names, got 32x48 and 32x50 for 000003"):
        evaluate(config)
    assert evaluate(replace(config, size=32)).value > 0
    with pytest.raises(ValueError, match="real must be the folder of the films to compare with, got none"):
        replace(config, real="")
    with pytest.raises(ValueError, match="detector must be left out for psnr, which measures pixels, got d"):
        replace(config, detector="d")
