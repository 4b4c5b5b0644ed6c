"""Weights of the kept sums in a plan's rows: kept in its file, and followed by every loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latte_fast.modules.stack_reuse import StackReuse, extrapolation
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.plan import Plan, load_plan
from latte_fast.sampling.graphs import reuse_weights
from latte_fast.sampling.planned import plain_plan, whole_process


@pytest.fixture
def plan() -> Plan:
    plan = plain_plan(whole_process(DiffusionConfig(), True), "ddim", 8, 4.0)
    weights = {2: (1.5, -0.5), 3: (2.0, -0.9), 5: (1.25, 0.5, -0.75), 6: (1.0, 0.25, -0.125)}
    rows = (
        replace(row, compute=False, order=len(weights[i]) - 1, weights=weights[i]) if i in weights else row
        for i, row in enumerate(plan.rows)
    )
    return replace(plan, rows=tuple(rows))


def test_files_keep_weights(plan: Plan, tmp_path: Path) -> None:
    assert str(plan) == "ddim CCffCffC"
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan and "reused, order 2, fitted" in plan.table()
    for i, weights in ((2, (1.0,)), (5, (1.0, 2.0)), (1, (1.0,))):
        rows = list(plan.rows)
        rows[i] = replace(rows[i], weights=weights)
        with pytest.raises(ValueError, match=rf"weights of step {i} must be none for a computed step, else order \+ 1"):
            replace(plan, rows=tuple(rows))


def test_every_loop_follows_them(plan: Plan) -> None:
    """The store adds the sums by a row's weights, and a graph reads the same; without weights they are Lagrange's."""
    reuse = StackReuse()
    reuse.kept = [(4.0, torch.ones(1, 2)), (1.0, 10 * torch.ones(1, 2)), (0.0, 100 * torch.ones(1, 2))]
    row = plan.rows[5]
    reuse.reuse(5, row.order, row.weights)
    first, second, third = row.weights
    torch.testing.assert_close(
        reuse.extrapolated(torch.zeros(1, 2)), torch.full((1, 2), first + 10 * second + 100 * third)
    )
    assert reuse_weights(plan)[5] == row.weights and reuse_weights(plan)[1] == ()
    reuse.reuse(5, 2)
    assert reuse.weights == extrapolation([4.0, 1.0, 0.0], 5)
