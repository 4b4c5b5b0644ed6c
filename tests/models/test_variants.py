"""The paper's design space, cell by cell: variants x patch embedding x conditioning x temporal embedding."""

import itertools
from typing import Any

import pytest
import torch

from latte_fast import Latte, LatteIMG, testing
from latte_fast.config import LatteConfig
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.pairs import assert_gradients

CELLS = [
    {"variant": v, "patch_frames": s, "conditioning": c, "time_pos": p}
    for v, s, c, p in itertools.product((1, 2, 3, 4), (1, 2), ("adaln", "tokens"), ("absolute", "rope"))
]


cells = pytest.mark.parametrize("cell", CELLS, ids=cell_id)


def keywords(cell: dict, **kwargs: Any) -> dict:
    depth = 3 if cell["variant"] > 2 else 4
    return {"num_frames": 4, "depth": depth, "extras": 2, "num_heads": 4, "hidden_size": 32} | cell | kwargs


@cells
def test_float64_equals_oracle(cell: dict, pair: Any, inputs: Any, run: Any) -> None:
    oracle, fast = pair(False, torch.float64, **keywords(cell))
    args, kwargs = inputs(oracle)
    dout = torch.randn(2, 4, 8, 8, 8, dtype=torch.float64)
    exact, exact_grads = run(oracle, args, kwargs, dout)
    out, grads = run(fast, args, kwargs, dout)
    assert out.shape == (2, 4, 8, 8, 8)
    assert exact.abs().max() > 0
    assert testing.relative_error(out, exact) <= 1e-11
    assert_gradients(grads, exact_grads, 1e-11)


@cells
def test_float32_and_bfloat16(cell: dict, pair: Any, inputs: Any) -> None:
    oracle, fast = pair(False, **keywords(cell, hidden_size=64))
    args, kwargs = inputs(oracle)
    with torch.no_grad():
        exact = oracle.double().eval()(args[0].double(), args[1], **kwargs)
        assert testing.relative_error(fast.eval()(*args, **kwargs), exact) <= 3e-6
        half = (args[0].bfloat16(), args[1])
        wide = oracle.float()(half[0].float(), half[1], **kwargs)
        same, got = oracle.bfloat16()(*half, **kwargs), fast.bfloat16()(*half, **kwargs)
    assert testing.max_error(got, wide) <= 2 * testing.max_error(same, wide) + testing.ulp(
        wide.abs().max().item(), got.dtype
    )


@cells
def test_trains_and_round_trips(cell: dict, inputs: Any) -> None:
    from tests.helpers.pairs import SMALL

    torch.manual_seed(0)
    model = Latte(**SMALL | keywords(cell))
    args, kwargs = inputs(model)
    target = torch.randn(2, 4, 8, 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = (model(*args, **kwargs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = Latte(**SMALL | keywords(cell))
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again.eval()(*args, **kwargs), model.eval()(*args, **kwargs))


PAIRS = pairwise({k: sorted({c[k] for c in CELLS}, key=str) for k in CELLS[0]})
REST = [pytest.param(c, marks=pytest.mark.slow, id=cell_id(c)) for c in CELLS if c not in PAIRS[::2]]


@pytest.mark.parametrize("cell", [*(pytest.param(c, id=cell_id(c)) for c in PAIRS[::2]), *REST])
def test_compiles_whole(cell: dict, pair: Any, inputs: Any) -> None:
    _, fast = pair(False, **keywords(cell, depth=2, hidden_size=32))
    fast.eval()
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    args, kwargs = inputs(fast)
    out = compiled(*args, **kwargs)
    assert testing.relative_error(out, fast(*args, **kwargs)) <= 3e-6
    out.square().mean().backward()


@pytest.mark.parametrize("recompute", ["elementwise", "mlp", "block"])
@pytest.mark.parametrize("variant", [2, 3, 4])
def test_recompute(variant: int, recompute: str, pair: Any, inputs: Any, run: Any) -> None:
    oracle, fast = pair(False, torch.float64, **keywords({"variant": variant}))
    args, kwargs = inputs(oracle)
    dout = torch.randn(2, 4, 8, 8, 8, dtype=torch.float64)
    fast.recompute = recompute
    assert_gradients(run(fast, args, kwargs, dout)[1], run(oracle, args, kwargs, dout)[1], 1e-11)


@pytest.mark.parametrize("conditioning", ["adaln", "tokens"])
@pytest.mark.parametrize("variant", [1, 2, 3, 4])
@pytest.mark.parametrize("time_pos", ["absolute", "rope"])
@pytest.mark.parametrize("extras", [1, 2])
def test_joint_images(
    variant: int, conditioning: str, time_pos: str, extras: int, pair: Any, inputs: Any, run: Any
) -> None:
    cell = {"variant": variant, "conditioning": conditioning, "time_pos": time_pos}
    oracle, fast = pair(True, torch.float64, **keywords(cell, extras=extras))
    args, kwargs = inputs(oracle, images=2)
    dout = torch.randn(2, 6, 8, 8, 8, dtype=torch.float64)
    exact, exact_grads = run(oracle, args, kwargs, dout)
    out, grads = run(fast, args, kwargs, dout)
    assert testing.relative_error(out, exact) <= 1e-11
    assert_gradients(grads, exact_grads, 1e-11)


def static(frames: int) -> torch.Tensor:
    return torch.randn(1, 1, 4, 8, 8).double().expand(1, frames, 4, 8, 8)


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
@pytest.mark.parametrize(("time_pos", "patch_frames"), [("absolute", 1), ("rope", 1), ("rope", 2)])
def test_a_static_clip(variant: int, time_pos: str, patch_frames: int, pair: Any) -> None:
    """Equal frames stay equal without an absolute embedding; with compression frames, those s apart."""
    cell = {"variant": variant, "time_pos": time_pos, "patch_frames": patch_frames}
    _, fast = pair(False, torch.float64, **keywords(cell, extras=1))
    with torch.no_grad():
        if patch_frames > 1:
            fast.upsample.weight.normal_()
        out = fast(static(4), torch.tensor([3]))
    apart = (out[:, patch_frames:] - out[:, :-patch_frames]).abs().max()
    assert (apart > 1e-3) if time_pos == "absolute" else (apart < 1e-12)
    if patch_frames > 1:
        assert (out[:, 0] - out[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_rotary_sees_order_and_any_length(variant: int, pair: Any) -> None:
    _, fast = pair(False, torch.float64, **keywords({"variant": variant, "time_pos": "rope"}, extras=1))
    x, t = torch.randn(1, 4, 4, 8, 8).double(), torch.tensor([3])
    order = [2, 1, 0, 3]
    with torch.no_grad():
        moved = (fast(x[:, order], t) - fast(x, t)[:, order]).abs().max()
        fast.config.__dict__["time_pos"] = "absolute"  # the same weights without any temporal embedding
        fast.temp_embed = torch.nn.Parameter(torch.zeros(1, 4, 32, dtype=torch.float64))
        unmoved = (fast(x[:, order], t) - fast(x, t)[:, order]).abs().max()
        fast.config.__dict__["time_pos"] = "rope"
        assert fast(torch.randn(1, 7, 4, 8, 8).double(), t).shape == (1, 7, 8, 8, 8)
    assert moved > 1e-4
    assert unmoved < 1e-12


@pytest.mark.parametrize(
    ("variant", "axes", "first"),
    [(1, "space time space time", 1), (2, "space space time time", 2), (3, "both " * 4, 0), (4, "both " * 4, 0)],
)
def test_order_of_space_and_time(variant: int, axes: str, first: int) -> None:
    """The paper's, which the oracle takes from the same place."""
    config = LatteConfig(depth=4, variant=variant, patch_frames=4)
    assert [config.axis(i) for i in range(4)] == axes.split() and config.first_time_block == first
    assert (config.heads_each, config.token_frames, config.grid) == (8 if variant == 4 else 16, 4, 16)
    assert LatteConfig(variant=4, full_attention=True).heads_each == 16
    tokens = {extras: LatteConfig(extras=extras, conditioning="tokens").extra_tokens for extras in (1, 2, 78)}
    assert tokens == {1: 1, 2: 2, 78: 2} and config.extra_tokens == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"variant": 5}, "variant must be 0, 1, 2, 3 or 4, got 5"),
        ({"variant": 2, "depth": 3}, "depth must be even for variants 1 and 2"),
        ({"variant": 4, "hidden_size": 96, "num_heads": 3}, "num_heads must be even for variant 4, got 3"),
        ({"patch_frames": 3}, "patch_frames must be a divisor of num_frames 16, got 3"),
        ({"conditioning": "film"}, "conditioning must be one of adaln, tokens"),
        ({"time_pos": "learned"}, "time_pos must be one of absolute, rope"),
        ({"full_attention": True}, "full_attention must be False but for variant 4"),
    ],
    ids=str,
)
def test_cells_that_cannot_be_combined(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatteConfig(**kwargs)


def test_joint_with_compression_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_frames must be 1, got 2: an image fills no patch of frames"):
        LatteIMG(patch_frames=2)


def test_frames_that_fill_no_patch_are_refused(pair: Any) -> None:
    _, fast = pair(False, **keywords({"variant": 1, "patch_frames": 2}, extras=1))
    with pytest.raises(ValueError, match="F a multiple of patch_frames 2, got 3"):
        fast(torch.zeros(1, 3, 4, 8, 8), torch.tensor([1]))
