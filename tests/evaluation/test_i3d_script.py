"""I3D's plain module against a TorchScript file of a second implementation, by the command that compares two files."""

from pathlib import Path

import pytest
import torch
from torch import nn

from latte_fast.cli.evaluate import evaluate
from latte_fast.cli.main import run
from latte_fast.evaluation.i3d import I3D
from tests.helpers.detectors import saved
from tests.helpers.folded_i3d import FoldedI3D


def drawn(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights whose signal neither vanishes nor explodes, with norms that do something."""
    rng = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, x in state.items():
        last = name.split(".")[-1]
        if x.dim() == 5:
            x.copy_(torch.randn(x.shape, generator=rng) * (2 / x[0].numel()) ** 0.5)
        elif last in ("running_var", "weight"):
            x.copy_(0.5 + torch.rand(x.shape, generator=rng))
        elif x.dim():
            x.copy_(0.1 * torch.randn(x.shape, generator=rng))
    return state


def compare(*files: Path) -> None:
    run(evaluate, "latte-fast evaluate", ["--check-detector", *map(str, files), "--device", "cpu"])


@pytest.mark.slow
def test_i3d_is_what_a_second_implementation_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = drawn(I3D())
    torch.save(state, tmp_path / "i3d.pt")
    compare(saved(FoldedI3D(state).eval(), tmp_path / "script.pt"), tmp_path / "i3d.pt")
    said = capsys.readouterr().out
    assert said.rstrip().endswith("the same network") and "not the same" not in said
    print(said)
    # odd borders on the other side, as other frameworks put them
    with pytest.raises(SystemExit):
        compare(saved(FoldedI3D(state, early=True).eval(), tmp_path / "early.pt"), tmp_path / "i3d.pt")
    assert "not the same network" in capsys.readouterr().out
