"""compensated: a weight rounded for its inputs loses less on them; without such knowledge it is rounded to nearest."""

import pytest
import torch
from torch import Tensor, nn

from latte_fast.modules.linear8 import FP8, rows8
from latte_fast.quantization import rounding
from latte_fast.quantization.rounding import Inputs, compensated


def lost(weight: Tensor, values: Tensor, scale: Tensor, x: Tensor) -> float:
    return float((x @ (values.float() * scale - weight).t()).square().sum())


def correlated(rows: int, width: int) -> Tensor:
    """Inputs with a mean, and with channels that follow one another."""
    torch.manual_seed(1)
    return torch.randn(rows, width // 4) @ torch.randn(width // 4, width) + 0.1 * torch.randn(rows, width) + 1


def test_less_is_lost_on_inputs_like_those_seen() -> None:
    weight, x = torch.randn(48, 96), correlated(600, 96)
    seen, unseen = x[:400], x[400:]
    nearest, made = rows8(weight), compensated(weight, seen.t() @ seen)
    assert made[0].dtype == FP8 and torch.equal(made[1], nearest.scale) and made[0].float().isfinite().all()
    for inputs in (seen, unseen):
        assert lost(weight, *made, inputs) < 0.3 * lost(weight, nearest.values, nearest.scale, inputs)


@pytest.mark.parametrize("block", [1, 7, 128])
def test_columns_are_passed_on_alike_in_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(16, 48), correlated(200, 48)
    want = compensated(weight, x.t() @ x)
    monkeypatch.setattr(rounding, "BLOCK", block)
    assert torch.equal(compensated(weight, x.t() @ x)[0].float(), want[0].float())


def test_independent_inputs_round_to_nearest() -> None:
    weight = torch.randn(16, 64)
    values, scale = compensated(weight, torch.eye(64))
    assert torch.equal(values.float(), rows8(weight).values.float())
    # no inputs at all, and a weight of zeros
    values, _ = compensated(weight, torch.zeros(64, 64))
    assert torch.equal(values.float(), rows8(weight).values.float())
    values, scale = compensated(torch.zeros(4, 64), torch.eye(64))
    assert (values.float() == 0).all() and (scale > 0).all()


def test_inputs_sum_over_calls() -> None:
    inputs, layer = Inputs(), nn.Linear(8, 4)
    layer.register_forward_pre_hook(inputs)
    x = torch.randn(3, 5, 8)
    layer(x)
    layer(2 * x)
    rows = x.flatten(0, 1)
    torch.testing.assert_close(inputs.gram, 5 * rows.t() @ rows)
    assert sum(len(r) for r in inputs.rows) == 30
