"""`latte-fast quantize` and `sample --precision`: from a run to films, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

import latte_fast
from latte_fast.cli.quantize import quantize
from latte_fast.cli.sample import sample
from latte_fast.modules.linear8 import Linear8
from latte_fast.training import Trainer
from tests.helpers.tiny_run import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    Trainer(tiny(folder, steps=2)).run()
    return folder


def test_a_run_becomes_an_8_bit_file_that_is_sampled(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, samples in (("calibrated", 2), ("nearest", 0)):
        quantize(str(run), tmp_path / f"{name}.safetensors", samples=samples, steps=2, device="cpu")
        said = capsys.readouterr().out
        assert "6 layers in 8 bits, 2 in 16" in said and ("signal-to-noise ratio" in said) == (samples > 0)
    models = [latte_fast.load(tmp_path / f"{name}.safetensors").model for name in ("calibrated", "nearest")]
    layers = [[layer.weight for layer in model.modules() if type(layer) is Linear8] for model in models]
    assert not any(torch.equal(a.float(), b.float()) for a, b in zip(*layers, strict=True))
    assert {p.dtype for p in models[0].parameters()} == {torch.bfloat16}
    sample(str(tmp_path / "calibrated.safetensors"), out=str(tmp_path / "a"), samples=2, steps=2, format="npz")
    quantize(str(run), tmp_path / "int8.safetensors", precision="int8", samples=0, device="cpu")
    assert "6 layers in 8 bits" in capsys.readouterr().out
    assert {
        x.precision for x in latte_fast.load(tmp_path / "int8.safetensors").model.modules() if type(x) is Linear8
    } == {"int8"}
    assert len(json.loads((tmp_path / "a/samples.json").read_text())["names"]) == 2


def test_a_run_is_sampled_in_8_bits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"samples": 2, "steps": 2, "format": "npz"}
    sample(str(run), out=str(tmp_path / "a"), **given)  # type: ignore[arg-type]
    sample(str(run), out=str(tmp_path / "b"), precision="fp8", **given)  # type: ignore[arg-type]
    assert "6 layers in fp8" in capsys.readouterr().out
    sample(str(run), out=str(tmp_path / "i"), precision="int8", **given)  # type: ignore[arg-type]
    assert "6 layers in int8" in capsys.readouterr().out
    # other weights: a request is not gone on with in another precision
    with pytest.raises(SystemExit, match="must have the same weights"):
        sample(str(run), out=str(tmp_path / "b"), resume=True, **given)  # type: ignore[arg-type]
    sample(str(run), out=str(tmp_path / "b"), precision="fp8", resume=True, **given)  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match=r"out must end in \.safetensors, got config\.yaml"):
        quantize(str(run), run / "config.yaml")
    capsys.readouterr()
    sample(str(run), out=str(tmp_path / "c"), precision="fp8", precise_steps=("last",), **given)  # type: ignore[arg-type]
    assert "6 layers in fp8, their weights take 0.0 MB beside the 0.0 MB of before" in capsys.readouterr().out
    refused = (({}, "without --precision"), ({"precision": "fp8", "long": "fifo"}, "with --long"))
    for flags, match in refused:
        with pytest.raises(SystemExit, match=f"precise-steps must be left out {match}"):
            sample(str(run), out=str(tmp_path / "d"), precise_steps=("last",), **given, **flags)  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="precise steps must be first, last, numbers below 2"):
        sample(str(run), out=str(tmp_path / "d"), precision="fp8", precise_steps=("2",), **given)  # type: ignore[arg-type]
