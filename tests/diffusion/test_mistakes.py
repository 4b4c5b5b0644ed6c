"""The random codes that a token transformer sees in training."""

import pytest
import torch

from latte_fast.diffusion.noise import mistakes


def test_mistakes_by_seed_and_number() -> None:
    """Half of the samples have mistakes, in first frames or in both ends: any share up to the largest, of all codes."""
    shape, count = (5, 9, 9), 600
    drawn = [mistakes(3, number, shape, 7, 0.4) for number in range(count)]
    again, other = mistakes(3, 5, shape, 7, 0.4), [mistakes(4, number, shape, 7, 0.4)[1] for number in range(count)]
    assert torch.equal(again[0], drawn[5][0]) and again[1] == drawn[5][1] and other != [n for _, n in drawn]
    frames = torch.tensor([n for _, n in drawn])
    assert frames.bincount(minlength=5).sub(torch.tensor([300, 75, 75, 75, 75])).abs().max() < 40
    assert all(not (wrong[n:] >= 0).any() for wrong, n in drawn)
    shares = torch.tensor([(wrong[:n] >= 0).float().mean() for wrong, n in drawn if n])
    assert shares.max() < 0.5 and shares.mean().item() == pytest.approx(0.2, abs=0.02)
    assert torch.histc(shares, 3, 0, 0.4).min() > 70
    codes = torch.cat([wrong[wrong >= 0] for wrong, _ in drawn])
    counts = codes.bincount(minlength=7) / len(codes)
    assert len(counts) == 7 and (7 * counts - 1).abs().max() < 0.1
    for number in range(40):
        wrong, n = mistakes(3, number, shape, 7, 0.4, ends=True)
        assert not (wrong[1:-1] >= 0).any() and (n > 0 or not (wrong >= 0).any())
    ends = torch.stack([mistakes(3, number, shape, 7, 0.4, ends=True)[0] for number in range(40)])
    assert (ends[:, 0] >= 0).any() and (ends[:, -1] >= 0).any()
