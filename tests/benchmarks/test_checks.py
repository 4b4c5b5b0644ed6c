"""What a GPU day checks side by side before it times anything, and the contenders that are not the oracle as it is."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import contenders
from benchmarks.cuda import build, checks, families
from latte_fast import reference, testing

TINY: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "num_heads": 2, "depth": 2, "num_frames": 3}


def test_checks_run_side_by_side_and_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = {
        "good": (["-c", "print('3 passed')"], {}),
        "bad": (["-c", "import os; print('1 failed'); raise SystemExit(int(os.environ['CODE']))"], {"CODE": "4"}),
        "slow": (["-c", "import time; time.sleep(60)"], {}),
    }
    monkeypatch.setattr(checks, "commands", lambda tiny: runs)
    assert checks.main(tmp_path, 3.0, tiny=True) == 1
    said = capsys.readouterr().out
    assert "good: passed  3 passed" in said and "bad: FAILED (4)  1 failed" in said and "slow: cut" in said
    assert (tmp_path / "good.log").read_text() == "3 passed\n"
    del runs["bad"]
    assert checks.main(tmp_path, 1.0, tiny=True) == 0


def test_every_check_is_a_command_of_this_folder() -> None:
    names = checks.commands(tiny=False)
    assert set(names) == {"families", "tests", "warm-ops", "warm-model", "warm-whole-graph"}
    files = [part for command, _ in names.values() for part in command if part.endswith(".py")]
    assert files and all((Path(__file__).parents[2] / file).is_file() for file in files)


def test_an_extension_that_is_there_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(code: int) -> Any:
        def run(command: list[str], **kwargs: Any) -> SimpleNamespace:
            asked.append(command)
            return SimpleNamespace(returncode=code if command[1] == "-c" else 7)

        return run

    monkeypatch.setattr(subprocess, "run", answer(0))
    assert build.main() == 0 and len(asked) == 1
    monkeypatch.setattr(subprocess, "run", answer(1))
    assert build.main() == 7 and asked[-1] == [sys.executable, *build.INSTALL]


def test_families_see_a_planted_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "device", lambda: torch.device("cpu"))
    right = families.measure(families.transformer(True))
    assert "float32 output" in right and "bfloat16 output" in right
    oracle, ours, call = families.transformer(True)
    ours.blocks[0].ln1.eps = 1e-3
    with pytest.raises(AssertionError, match="float32 output"):
        families.measure((oracle, ours, call))


def test_compiled_blocks_share_the_weights_and_shipped_ones_do_not() -> None:
    model = testing.refill(reference.latte.Latte(**TINY)).eval()
    shared = contenders.sharing_weights(model)
    assert shared is not model and shared.blocks[0] is not model.blocks[0]
    assert all(p is q for p, q in zip(shared.parameters(), model.parameters(), strict=True))
    x, t = torch.randn(1, 3, 4, 8, 8), torch.tensor([3])
    run = contenders.as_shipped(model, (x.bfloat16(), t))
    with torch.no_grad():
        want = model(x.bfloat16().float(), t)
        model.blocks[0].mlp.fc1.weight.zero_()
    assert torch.equal(run(), want) and not torch.backends.cuda.matmul.allow_tf32
