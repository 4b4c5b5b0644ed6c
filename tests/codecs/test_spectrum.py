"""Pictures of sound against torch's own transform, and what they show of tones."""

import pytest
import torch

from latte_fast.codecs import spectrum
from tests.helpers.sounds import tone


def test_pictures_equal_torch_stft() -> None:
    """At 16,000 samples and 25 frames a second a moment has 40 samples, so that torch has the same windows."""
    torch.manual_seed(0)
    sound = 0.3 * torch.randn(16000 // 5).clamp(-1, 1)
    found = spectrum.pictures(sound, 16000, 25.0, 5)
    assert found.shape == (5, 1, 64, 16)
    # window i has its centre at sample 20 + 40 i
    padded = torch.nn.functional.pad(sound, (256 - 20, 512))
    window = torch.hann_window(512)
    power = torch.stft(padded, 512, 40, window=window, center=False, return_complex=True).abs().square()
    power = power[:256, :80] * (2 / window.sum()) ** 2
    want = 1 + 10 * power.unflatten(0, (64, 4)).sum(1).clamp(1e-8, 1).log10() / 40  # (64, 80)
    got = found[:, 0].movedim(0, 1).flatten(1)
    assert got.std() > 0.05
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("rate", "fps"), [(16000, 25.0), (44100, 29.97), (8000, 7.5)])
def test_a_tone_is_loudest_in_its_band(rate: int, fps: float) -> None:
    """1,062 Hz lie in band 8; a tone of half the amplitude has -6 dB, and silence follows the sound's end."""
    sound = tone(1062, 1.0, rate)
    count = spectrum.count_of(len(sound), rate, fps)
    found = spectrum.pictures(sound, rate, fps, count + 4)[:, 0]
    middle = found[count // 2]
    assert middle.mean(1).argmax() == 8
    torch.testing.assert_close(middle[8], torch.full((16,), 1 - 2 * 6.02 / 80 + 2 * 1.76 / 80), rtol=0, atol=0.01)
    assert (middle[14:] < -0.5).all() and (found[count + 1 :] == -1).all()


def test_count_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are counted up to a multiple, and transformed some at a time without a difference."""
    assert [spectrum.count_of(n, 16000, 25.0) for n in (1, 640, 641, 16000)] == [1, 1, 2, 25]
    assert spectrum.count_of(16000, 16000, 25.0, 4) == 28
    sound = tone(500, 0.5)
    whole = spectrum.pictures(sound, 16000, 25.0, 12)
    monkeypatch.setattr(spectrum, "_AT_ONCE", 5)
    assert torch.equal(spectrum.pictures(sound, 16000, 25.0, 12), whole)
    with pytest.raises(ValueError, match=r"pictures: fps must be in \(0, 1000\]"):
        spectrum.pictures(sound, 16000, 0.0, 1)
    with pytest.raises(ValueError, match=r"pictures: sound must be \(n,\)"):
        spectrum.pictures(sound[None], 16000, 25.0, 1)
