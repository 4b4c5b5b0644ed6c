"""FlexDiT's forward at each side of its sparse grid against our dense forward, and the products of each alone.

The mean over a schedule of 50 steps is that of the sides' medians, each as often as the schedule has it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bytes import peak_bytes
from benchmarks.contenders import FRAMES, PRESETS, SIDE, device, no_grad, titled
from benchmarks.race import Lap
from latte_fast import FlexLatte, Latte, reference, testing
from latte_fast.config import LatteConfig
from latte_fast.flex_config import SIDES, FlexLatteConfig, density_schedule, sparse_grid
from latte_fast.flex_cost import flex_cost

ON_GPU, TINY = torch.cuda.is_available(), SIDE == 8
STEPS = 50
# a CPU without products in 16 bits takes minutes for a lap of 16 frames at five sides
HALF = ON_GPU or torch.ops.mkldnn._is_mkldnn_bf16_supported()
FEW = {"num_frames": min(4, FRAMES), "sides": (4, 6, 8)}
WHOLE = {"num_frames": FRAMES, "sides": SIDES}
CASES = [
    pytest.param("Latte-B/2", FEW, marks=pytest.mark.quick),
    ("Latte-XL/2", FEW),
    pytest.param("Latte-XL/2", WHOLE, marks=() if ON_GPU else pytest.mark.full),
]


def config_of(name: str, sizes: dict[str, Any]) -> FlexLatteConfig:
    given = PRESETS[name] | {"input_size": SIDE} | sizes
    if TINY:
        given |= {"depth": 6, "layout": "PD GSRD", "sides": (1, 2, 3)}
    return FlexLatteConfig(**given)


def products(config: FlexLatteConfig, side: int | None, dtype: torch.dtype) -> Callable[[], object]:
    """Returns a run of all blocks' linear layers, without bias, into reused buffers; of the dense model without a side.

    P, G and R have their layers on as many rows as our blocks give them.
    """
    d, dense = config.hidden_size, config.num_frames * config.grid**2
    rows, columns = sparse_grid(config.grid, config.grid, side or config.grid)
    sparse = config.num_frames * rows * columns
    shapes: list[tuple[int, int, int]] = []  # (rows, in, out)
    for i, kind in enumerate(config.kinds if side else "D" * config.depth):
        tokens = sparse if kind in "GS" else dense
        if kind in "SD":
            shapes += [(tokens, d, 3 * d), (tokens, d, d)]
        elif kind == "P":
            shapes += 2 * [(config.num_frames if config.axis(i) == "space" else config.grid**2, d, d)]
        else:
            keys = dense if kind == "G" else sparse
            shapes += [(tokens, d, d), (keys, d, 2 * d), (tokens, d, d)]
        if kind == "R":
            shapes += [(sparse, d, d), (dense, d, d)]
        shapes += [(tokens, d, 4 * d), (tokens, 4 * d, d)]
    made: dict[tuple[int, int], Tensor] = {}

    def matrix(n: int, width: int) -> Tensor:
        if (n, width) not in made:
            made[n, width] = torch.randn(n, width, device=device()).to(dtype) / width**0.5
        return made[n, width]

    calls = [(matrix(n, k), matrix(m, k), torch.empty(n, m, device=device(), dtype=dtype)) for n, k, m in set(shapes)]
    by_shape = dict(zip(set(shapes), calls, strict=True))

    def run() -> None:
        for shape in shapes:
            x, weight, out = by_shape[shape]
            torch.mm(x, weight.t(), out=out)

    return no_grad(run)


def build(config: FlexLatteConfig, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns (oracle, ours, dense), the dense one with weights of its own."""
    torch.manual_seed(0)
    oracle = testing.refill(reference.flex_latte.FlexLatte(**vars(config)))
    ours = FlexLatte(**vars(config))
    ours.load_state_dict(oracle.state_dict())
    plain = {name: getattr(config, name) for name in LatteConfig.__dataclass_fields__}
    dense = testing.refill(Latte(**plain))
    oracle, ours, dense = (model.to(device(), dtype).eval() for model in (oracle, ours, dense))
    return oracle, ours, dense


def mean(laps: dict[str, Lap], name: str, schedule: tuple[int, ...]) -> float:
    return sum(laps[f"{name}, side {side}"].median for side in schedule) / len(schedule)


@pytest.mark.parametrize(("name", "sizes"), CASES, ids=str)
def test_forward(name: str, sizes: dict[str, Any], compare: Any, record: Any) -> None:
    dtype = torch.bfloat16 if HALF else torch.float32
    config = config_of(name, sizes)
    oracle, ours, dense = build(config, dtype)
    x = torch.randn(1, config.num_frames, 4, SIDE, SIDE, device=device()).to(dtype)
    t = torch.tensor([500], device=device())

    @torch.no_grad()
    def check() -> None:
        side = config.sides[0]
        got, same = ours(x, t, side=side), oracle(x, t, side=side)
        if not HALF:
            assert testing.relative_error(got, same) <= 6e-6  # each is within 3e-6 of float64
            return
        exact = oracle.float()(x.float(), t, side=side)
        testing.assert_no_worse_than_torch("output", got, same, exact)

    def at(side: int) -> Callable[[], object]:
        return no_grad(lambda: ours(x, t, side=side))

    contenders: dict[str, Any] = {"ours": no_grad(lambda: dense(x, t))}
    contenders |= {f"FlexLatte, side {side}": at(side) for side in config.sides}
    contenders["products alone"] = products(config, None, dtype)
    contenders |= {f"products alone, side {side}": products(config, side, dtype) for side in config.sides}
    measured = ["ours", *(f"FlexLatte, side {side}" for side in config.sides)]
    check()
    each = {n: {"peak_bytes": peak_bytes(contenders[n])} for n in measured}
    oracle.to("meta")
    title = f"{titled(name, PRESETS[name]['depth'], dtype)}, {config.num_frames} frames, "
    title += f"layout {config.layout}, sides {', '.join(map(str, config.sides))}, forward; ours is the dense model"
    laps = compare(title, contenders, lambda: None, seconds=10.0, rounds=(2, 20), each=each)
    schedule, cost = density_schedule(STEPS, config.sides), flex_cost(config, steps=STEPS)
    for kind, whole in (("FlexLatte", "ours"), ("products alone", "products alone")):
        over = mean(laps, kind, schedule)
        note = f"{laps[whole].median / over:.2f}x of the dense model's, {1 / cost.share:.2f}x by multiply-adds"
        record(title, f"{kind}, mean of {STEPS} steps", median=over, low=over, high=over, rounds=0, note=note)
