"""Fitted weights of the kept sums: how they are found, kept in a plan, and followed by every loop."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latte_fast.calibration.reuse_errors import FITTED, Trajectory, allowed, picked
from latte_fast.calibration.search import path_of, plan_of
from latte_fast.modules.stack_reuse import StackReuse, extrapolation
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.plan import Plan, load_plan
from latte_fast.sampling.graphs import reuse_weights
from latte_fast.sampling.planned import plain_plan, whole_process

PATH = [(0, 0), (1, FITTED), (4, FITTED), (7, 0)]


def kept_sums(stacks: list[torch.Tensor]) -> Any:
    """Returns what a trajectory fits weights with: the products of its sums."""
    flat = torch.stack([picked(stack) for stack in stacks]).double()
    own = SimpleNamespace(products=(flat @ flat.T).numpy())
    own.fitted = lambda earlier, step: Trajectory.fitted(own, earlier, step)
    return own


@pytest.fixture
def trajectory() -> Any:
    return kept_sums(list(torch.randn(8, 3, 40, generator=torch.Generator().manual_seed(0))))


@pytest.fixture
def plan(trajectory: Any) -> Plan:
    return plan_of(plain_plan(whole_process(DiffusionConfig(), True), "ddim", 8, 4.0), PATH, trajectory)


def test_a_known_sum_is_found() -> None:
    a, b, c = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(1))
    found = kept_sums([a, b, c, 0.5 * c - 2 * a]).fitted([2, 1, 0], 3)
    assert found == pytest.approx([0.5, 0.0, -2.0], abs=1e-6)


def test_paths_and_rows(plan: Plan) -> None:
    """A path with fitted stretches becomes rows with weights of all computed steps, three at most, and back."""
    assert str(plan) == "ddim CCffCffC" and path_of(plan) == PATH
    assert [len(row.weights) for row in plan.rows] == [0, 0, 2, 2, 0, 3, 3, 0]
    assert [row.order for row in plan.rows] == [0, 0, 1, 1, 0, 2, 2, 0]
    assert allowed(FITTED, 0) == 0 and allowed(FITTED, 1) == FITTED and allowed(2, 1) == 1


def test_files_keep_weights(plan: Plan, tmp_path: Path) -> None:
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
