"""The call of each metric's detector, and detectors that are none."""

from pathlib import Path

import pytest
import torch

from latte_fast.evaluation.detector import Detector, digest_of, exact_convolutions
from tests.helpers.detectors import (
    Averaged,
    Classes,
    Colours,
    Flat,
    Infinite,
    Logits,
    Motion,
    Numbers,
    Reused,
    saved,
)

CLIPS = torch.randint(0, 256, (3, 4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_each_metric_calls_as_published(tmp_path: Path) -> None:
    """The networks themselves assert their flags, and uint8."""
    assert Detector("fvd", saved(Motion(), tmp_path / "a.pt"))(CLIPS.repeat(1, 4, 1, 2, 2)).shape == (3, 12)
    got = Detector("fvd", saved(Numbers(), tmp_path / "b.pt"))(CLIPS)
    # frames behind colours: (B, 3, F, H, W)
    assert torch.allclose(got, CLIPS[:, :, :2].float().mean((3, 4)).transpose(1, 2).flatten(1))
    assert torch.allclose(Detector("fid", saved(Colours(), tmp_path / "c.pt"))(CLIPS[0]), CLIPS[0].float().mean((2, 3)))
    assert torch.allclose(Detector("is", saved(Classes(), tmp_path / "d.pt"))(CLIPS).sum(1), torch.ones(3))


@pytest.mark.parametrize(
    ("metric", "network", "message"),
    [
        ("fvd", Flat(), r"detector must give \(B, D\) for 3 inputs, got \(3,\)"),
        ("fvd", Averaged(), r"detector must give \(B, D\) for 3 inputs, got \(1, 3\)"),
        ("fvd", Infinite(), "detector must give finite numbers, got others"),
        ("is", Logits(), "detector's: probabilities must be at least 0 and sum to 1 in each row"),
        ("fid", Colours(), r"detector must take uint8 \(3, 3, 4, 16, 16\), got from it: .*"),
    ],
    ids=["flat", "averaged", "infinite", "logits", "fails"],
)
def test_the_first_batch_shows_what_it_gives(
    tmp_path: Path, metric: str, network: torch.nn.Module, message: str
) -> None:
    detector = Detector(metric, saved(network, tmp_path / "a.pt"))
    with pytest.raises(ValueError, match=message):
        detector(CLIPS)


def test_what_it_gave_stays_as_it_was(tmp_path: Path) -> None:
    detector = Detector("fvd", saved(Reused(), tmp_path / "a.pt"))
    first, second = detector(CLIPS[:1]), detector(CLIPS[1:2])
    assert torch.allclose(torch.cat([first, second]), CLIPS[:2].float().mean((1, 3, 4)))


@pytest.mark.parametrize("device", ["gpu0", "cuda:99", "meta"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"^evaluate: device must be one that torch can use here, got {device} "):
        Detector("fvd", saved(Motion(), tmp_path / "a.pt"), device)


def test_files_that_are_no_detector(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"got .*none.pt, no file; published numbers are made with i3d_torchscript.pt "
    ):
        Detector("fvd", tmp_path / "none.pt")
    with pytest.raises(
        ValueError, match=r"inception-2015-12-05.pt .*detector\(x, return_features=True\) with x uint8 "
    ):
        Detector("fid", tmp_path / "none.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"must be a TorchScript file, got .*weights.pt .*c3d_ucf101.pt"):
        Detector("is", tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"rescale=True, resize=True, return_features=True\) .*, which takes x$"):
        Detector("fvd", saved(Classes(), tmp_path / "classes.pt"))


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_convolutions_are_exact_inside_alone() -> None:
    switch = torch.backends.cudnn
    before = switch.allow_tf32
    with pytest.raises(KeyError), exact_convolutions():
        apart = getattr(switch, "conv", None)
        assert switch.allow_tf32 is False if apart is None else apart.fp32_precision == "ieee"
        raise KeyError
    assert switch.allow_tf32 is before
