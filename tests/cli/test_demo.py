"""The demo at a small size: what it writes, prints, and ends with."""

import contextlib
import importlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latte_fast.cli.compare import Comparison, compare, table
from latte_fast.cli.main import run as run_command
from latte_fast.sampling.request import Request

# the package holds the function under this name
demo_module = importlib.import_module("latte_fast.cli.demo")
GREEN = Comparison(
    {"oracle": 0.2, "fast": 0.1}, {"oracle": 0.6, "fast": 0.3}, {"oracle": 9, "fast": 5}, {"oracle": 1e-2, "fast": 1e-2}
)


def run(out: Path, **changes: int) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        demo_module.demo(str(out), per_class=1, classifier=3, repeats=1, **changes)
    return said.getvalue()


def test_demo_writes_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "compare", lambda *args: GREEN)
    monkeypatch.setattr(demo_module, "Request", lambda **given: Request(**given | {"steps": 4}))
    out = run(tmp_path, steps=40)
    for word in ("oracle", "fast is 2.00x", "max error", "loss 0.", "recognises", "of 8 samples"):
        assert word in out
    assert {"report.html", "samples.mp4", "samples.png", "loss.png", "run"} == {p.name for p in tmp_path.iterdir()}
    assert "warning" not in out


def test_demo_fails_on_a_wrong_result_and_only_warns_of_a_slow_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("samples", "judge"):
        monkeypatch.setattr(demo_module, name, lambda *args: (None, None))
    monkeypatch.setattr(demo_module, "train", lambda *args: True)
    slow = replace(GREEN, step={"oracle": 0.3, "fast": 0.6})
    monkeypatch.setattr(demo_module, "compare", lambda *args: slow)
    assert "warning: the fast model's step takes 2.00x the oracle's time" in run(tmp_path)
    wrong = replace(slow, error={"oracle": 1e-3, "fast": 3e-3})
    monkeypatch.setattr(demo_module, "compare", lambda *args: wrong)
    monkeypatch.setattr(demo_module, "train", lambda *args: False)
    with pytest.raises(SystemExit, match=r"demo: the fast model's error 3\.00e-03 .*; the loss did not fall to half"):
        run(tmp_path)


@pytest.mark.parametrize("flag", ["--guidance", "--scale"])
def test_guidance_goes_by_both_names(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(demo_module, "compare", lambda *args: GREEN)
    monkeypatch.setattr(demo_module, "train", lambda *args: True)
    monkeypatch.setattr(demo_module, "samples", lambda folder, per_class, scale, device: (given.append(scale), None))
    monkeypatch.setattr(demo_module, "judge", lambda *args: None)
    run_command(demo_module.demo, "latte-fast demo", ["--out", str(tmp_path), flag, "2.5"])
    assert given == [2.5]


def test_slow_and_wrong() -> None:
    assert GREEN.slow == [] and GREEN.wrong is None
    assert "forward takes 1.00x" in str(replace(GREEN, forward={"oracle": 1.0, "fast": 1.0}).slow)
    assert "error" in str(replace(GREEN, error={"oracle": 1e-3, "fast": 3e-3}).wrong)
    assert "error" in str(replace(GREEN, error={"oracle": 1e-3, "fast": float("nan")}).wrong)


def test_compare_measures_both(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[bool] = []
    convolve = torch.nn.Conv2d.forward

    def seen(conv: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        rounds.append(torch.backends.cudnn.allow_tf32)
        return convolve(conv, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", seen)
    before = torch.backends.cudnn.allow_tf32
    result = compare("Latte-S/8", torch.float32, 1, torch.device("cpu"))
    # what both are judged by is fp32; the oracle that is measured is as a user has it
    assert rounds[0] is False and rounds[1:] == [before] * len(rounds[1:]) != []
    assert max(result.error.values()) <= 3e-6
    assert result.kept["fast"] < result.kept["oracle"] and result.step["fast"] > result.forward["fast"] > 0
    assert table(result).count("\n") == 3
