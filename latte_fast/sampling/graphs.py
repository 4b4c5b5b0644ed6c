"""Plans as CUDA graphs: for each shape one graph that computes the blocks and one that reuses them."""

import time
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.cuda_graphs.replay import Replay
from latte_fast.modules.modulation import ModulationTable
from latte_fast.modules.stack_reuse import extrapolation
from latte_fast.modules.static_reuse import StaticReuse, table_of
from latte_fast.runs.plan import Plan

# share of a call's time that the host needs for its launches, from which on graphs are worth their capture
HELD_BACK = 0.8


class PlanGraphs:
    """The graphs of a plan for one size of batch, and what they read: sums, their weights, and modulations.

    Args:
        net: model.
        call: function of the model and its arguments that returns a tensor.
        plan: plan whose steps are replayed.
        table: modulations of the plan's steps; those of other samples are put in their place.
        batch: number of samples.
    """

    def __init__(self, net: nn.Module, call: Callable[..., Tensor], plan: Plan, table: ModulationTable, batch: int):
        self.plan, self.table, self.batch = plan, table, batch
        self.reuse = StaticReuse(table_of(reuse_weights(plan)).to(table.current.device))
        forward: Any = MethodType(call, net)
        self.computed, self.reused = Replay(forward), Replay(forward)

    def fits(self, plan: Plan, table: ModulationTable, batch: int) -> bool:
        return self.plan == plan and self.batch == batch and self.table.takes(table)


def reuse_weights(plan: Plan) -> list[tuple[float, ...]]:
    """Returns the weights of the kept sums at each step of a plan, none at computed ones."""
    out: list[tuple[float, ...]] = []
    places: list[float] = []
    for i, row in enumerate(plan.rows):
        out.append(() if row.compute else row.weights or extrapolation(places[: row.order + 1], i))
        places = [i, *places] if row.compute else places
    return out


def held_back(call: Callable[[], object], device: torch.device) -> bool:
    """Returns whether the GPU waits for the host's launches in a call, measured by the second of two."""
    if device.type != "cuda":
        return False
    call()
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    launched = time.perf_counter()
    torch.cuda.synchronize(device)
    return launched - begin >= HELD_BACK * (time.perf_counter() - begin)
