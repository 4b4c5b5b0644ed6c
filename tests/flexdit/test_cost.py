"""The cost of FlexDiT: against what runs, against the published figures, and over its schedule."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bytes import peak_bytes
from latte_fast import FlexLatte, Latte
from latte_fast.cli.cost import cost as command
from latte_fast.config import PRESETS, LatteConfig
from latte_fast.cost_model import cost
from latte_fast.cuda_graphs import replay
from latte_fast.flex_config import LAYOUTS, SIDES, FlexLatteConfig, density_schedule, sparse_grid
from latte_fast.flex_cost import flex_cost
from tests.helpers.flex import flex_pair
from tests.helpers.meta import on_meta
from tests.helpers.played import Played

XL = PRESETS["Latte-XL/2"]
CELLS: dict[str, dict[str, Any]] = {
    "XL/2": XL,
    "B/2": PRESETS["Latte-B/2"] | {"extras": 2},
    "24 blocks": {"depth": 24, "hidden_size": 64, "num_heads": 4, "input_size": 16, "layout": "auto"},
    "DiT": {"depth": 8, "variant": 0, "hidden_size": 64, "num_heads": 4, "layout": "PGGSRPDD", "num_frames": 2},
    "compression": {"depth": 16, "patch_frames": 2, "hidden_size": 64, "num_heads": 4},
}


@torch.no_grad()
@pytest.mark.parametrize("name", list(CELLS))
def test_counts_what_runs(name: str) -> None:
    """To the last multiply-add at every side, and every parameter."""
    with on_meta():
        model = FlexLatte(**{"sides": (4, 5, 8)} | CELLS[name]).eval()
    config = model.config
    result = flex_cost(config, batch=2)
    x = torch.empty(2, config.num_frames, 4, config.input_size, config.input_size, device="meta")
    t = torch.empty(2, dtype=torch.long, device="meta")
    y = {"y": t} if config.extras == 2 else {}
    for side in config.sides:
        with FlopCounterMode(display=False) as counter:
            model(x, t, **y, side=side)
        assert counter.get_total_flops() == 2 * result.by_side[side]
    assert result.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_latte_without_time_counts_what_runs() -> None:
    with on_meta():
        model = Latte(depth=3, variant=0, hidden_size=64, num_heads=4, extras=2, num_frames=3).eval()
    t = torch.empty(2, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, 3, 4, 32, 32, device="meta"), t, t)
    assert counter.get_total_flops() == 2 * cost(model.config, batch=2).macs_needed


def test_budget_of_the_largest() -> None:
    """Layout B of XL/2 averaged over its 50 steps; A, C and E beside it."""
    shares = {n: flex_cost(FlexLatteConfig(**XL, layout=n)).share for n in LAYOUTS[28]}
    assert shares["B"] <= 0.43
    assert {n: round(100 * (s - 1), 1) for n, s in shares.items()} == {"B": -57.6, "A": -51.1, "C": -64.0, "E": -60.0}
    small = {n: flex_cost(FlexLatteConfig(**PRESETS["Latte-B/2"], layout=n)).share for n in LAYOUTS[12]}
    assert {n: round(100 * (s - 1)) for n, s in small.items()} == {"B": -48, "A": -34}


@pytest.mark.parametrize(
    ("side", "dense", "late", "uniform"), [(32, 118.62, 66.80, 68.30), (64, 524.54, 228.10, 235.95)]
)
def test_published_budget_of_dit(side: int, dense: float, late: float, uniform: float) -> None:
    """In the authors' layout at 64 tokens: with W1 after the upsampling, and with their mean as an N x N product."""
    sizes = XL | {"variant": 0, "num_frames": 1, "input_size": side, "extras": 2}
    assert round(cost(LatteConfig(**sizes)).macs_needed / 1e9, 2) == dense
    ours = flex_cost(FlexLatteConfig(**sizes, layout="A", sides=(8,))).by_side[8]
    n, d = (side // 2) ** 2, 1152
    after = ours + 4 * (n - 64) * d * d
    assert round(after / 1e9, 2) == late
    assert round((after + 2 * (2 * (n - 1) * d * d + n * n * d)) / 1e9, 2) == uniform


def test_density_schedule() -> None:
    schedule = density_schedule(50, SIDES)
    assert len(schedule) == 50 and set(schedule) == set(SIDES) and list(schedule) == sorted(schedule)
    assert schedule[: 50 // 4 + 1] == (4,) * 13
    # linear in tokens: 16 for a quarter, then 16 to 64, 34 on average
    assert sum(s * s for s in schedule) / 50 == pytest.approx(34, abs=1)
    assert density_schedule(1, (2, 4)) == (4,) and density_schedule(3, (5,)) == (5, 5, 5)
    for bad, message in (((0, SIDES), "steps must be at least 1, got 0"), ((5, (4, 3)), "sides must grow")):
        with pytest.raises(ValueError, match=message):
            density_schedule(*bad)


def test_sparse_grid() -> None:
    assert [sparse_grid(*g, 4) for g in ((16, 16), (8, 16), (16, 8), (9, 13))] == [(4, 4), (4, 8), (8, 4), (4, 6)]


def test_command(capsys: pytest.CaptureFixture) -> None:
    command(flex="auto")
    said = capsys.readouterr().out
    assert "layout PP GSSSSSRD GSSSSSRD GSSSSSRD DD" in said and "790.13 G (-57.6%)" in said
    with pytest.raises(SystemExit, match="sides must be at most the 16 tokens along an edge, got 17"):
        command(flex="B", sides=(17,))


@torch.no_grad()
@pytest.mark.parametrize(("layout", "limit"), [("PP GSSSRD GSRD", 0.9), ("PP GSRD GSRD DD", 1.01)])
def test_peak_of_memory(layout: str, limit: float) -> None:
    """Below the dense model's; the same where a dense block over space is left, since R frees its module's input."""
    sizes = {"depth": 12, "hidden_size": 64, "num_heads": 1, "num_frames": 4}
    ours, dense = FlexLatte(**sizes, layout=layout).eval(), Latte(**sizes).eval()
    x, t = torch.randn(1, 4, 4, 32, 32), torch.tensor([500])
    whole = peak_bytes(lambda: dense(x, t))
    for side in (4, 8):
        assert 0 < peak_bytes(lambda side=side: ours(x, t, side=side)) <= limit * whole  # type: ignore[misc]


@torch.no_grad()
def test_replay_holds_a_graph_a_side(played: Played) -> None:
    model = flex_pair(extras=2)[1].eval()
    fast = replay.Replay(model)
    x, t, y = torch.randn(2, 3, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 5])
    for side in (2, 3, 2, 3):
        assert torch.equal(fast(x, t, y, side=side), model(x, t, y, side=side))
    assert (played.captures, played.replays) == (2, 4)
