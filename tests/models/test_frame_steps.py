"""A time step a frame: t (B, F) in every family, against its oracle and against t (B,)."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast import Replay, reference, testing
from latte_fast.models.flexdit import FlexLatteT2V
from latte_fast.models.latte.modulation import tabulate as tabulate_latte
from latte_fast.models.latte_t2v.modulation import tabulate as tabulate_text
from tests.helpers import t2v
from tests.helpers.counting import Count, require_kernels
from tests.helpers.flex import flex_pair
from tests.helpers.pairs import assert_gradients, build_inputs, build_pair
from tests.helpers.played import Played
from tests.models import test_counts

Call = Callable[[nn.Module, Tensor], Tensor]
# (oracle, fast, call of a model at steps, number of frames and images, number of images)
Case = tuple[nn.Module, nn.Module, Call, int, int]


def of_pair(oracle: nn.Module, fast: nn.Module, images: int = 0) -> Case:
    (x, _), kwargs = build_inputs(oracle, images=images)

    def call(model: nn.Module, t: Tensor) -> Tensor:
        given = {k: v.to(model.pos_embed.dtype) if k == "text_embedding" else v for k, v in kwargs.items()}
        return model(x.to(model.pos_embed.dtype), t, **given)

    return oracle.eval(), fast.eval(), call, x.shape[1], images


def latte(images: int = 0, **kwargs: Any) -> Callable[[torch.dtype], Case]:
    return lambda dtype: of_pair(*build_pair(bool(images), dtype, **({"extras": 2} | kwargs)), images)


def flex(images: int = 0, **kwargs: Any) -> Callable[[torch.dtype], Case]:
    return lambda dtype: of_pair(*flex_pair(bool(images), dtype, **({"extras": 2} | kwargs)), images)


def text(images: int = 0, flexible: bool = False) -> Callable[[torch.dtype], Case]:
    def make(dtype: torch.dtype) -> Case:
        if flexible:
            sizes = t2v.SMALL | {"num_layers": 5, "layout": "PDGRD", "sides": (2,)}
            torch.manual_seed(0)
            oracle: nn.Module = reference.flex_t2v.FlexLatteT2V(**sizes)
            fast: nn.Module = FlexLatteT2V(**sizes)
            fast.load_state_dict(oracle.state_dict())
        else:
            oracle, fast = t2v.pair()
        x, _, words, mask = t2v.inputs(3, 8, 8, images)
        more = {"use_image_num": images} if images else {}

        def call(model: nn.Module, t: Tensor) -> Tensor:
            own = model.proj_out.weight.dtype
            out = model(x.to(own), t, words.to(own), mask, **more)
            return getattr(out, "sample", out)

        return oracle.to(dtype), fast.to(dtype), call, 3 + images, images

    return make


CASES: dict[str, Callable[[torch.dtype], Case]] = {
    "classes": latte(depth=4),
    "unconditional": latte(extras=1),
    "text-embedding": latte(extras=78),
    "joint": latte(2, depth=4),
    "joint-unconditional": latte(2, extras=1),
    "rope": latte(time_pos="rope"),
    "variant-2": latte(variant=2),
    "variant-3": latte(variant=3),
    "variant-4-joint": latte(2, variant=4),
    "tokens": latte(2, conditioning="tokens"),
    "flex": flex(),
    "flex-joint": flex(1),
    "text": text(),
    "text-joint": text(2),
    "flex-text": text(flexible=True),
}
QUICK = ("classes", "joint", "text-embedding", "flex", "text-joint")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]


def gradients(model: nn.Module, out: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out.dtype))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def steps(frames: int) -> Tensor:
    return torch.randint(0, 1000, (2, frames), generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 3e-6)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", ALL)
def test_different_steps_equal_the_oracle(name: str, dtype: torch.dtype, limit: float) -> None:
    oracle, fast, call, frames, _ = CASES[name](dtype)
    t = steps(frames)
    own = gradients(oracle, call(oracle, t))
    got, want = call(fast, t), call(oracle.double(), t)
    assert want.abs().max() > 0 and testing.relative_error(got.detach(), want.detach()) <= limit
    # and they are not those of one step
    assert testing.relative_error(call(fast, t[:, :1].expand_as(t)).detach(), want.detach()) > 1e-3
    exact = gradients(oracle, want)
    # torch's own are 4e-6 off with text embeddings, with one step a clip as well
    assert_gradients(gradients(fast, got), exact, max(limit, 2 * error(own, exact)))


def error(got: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Returns the largest relative error of the gradients that are not zero in exact arithmetic."""
    floor = 1e-6 * max(g.abs().max().item() for g in exact.values())
    return max(testing.relative_error(got[k], g) for k, g in exact.items() if g.abs().max() > floor)


@pytest.mark.parametrize("name", ALL)
def test_equal_steps_are_one_step(name: str) -> None:
    _, fast, call, frames, _ = CASES[name](torch.float32)
    t = torch.tensor([7, 601])
    one, many = call(fast, t), call(fast, t[:, None].expand(2, frames))
    assert testing.relative_error(many.detach(), one.detach()) <= 3e-6
    assert_gradients(gradients(fast, many), gradients(fast, one), 3e-6)


@pytest.mark.parametrize("name", ["joint", "text-joint"])
@torch.no_grad()
def test_a_step_moves_its_own_image_alone(name: str) -> None:
    _, fast, call, frames, _ = CASES[name](torch.float64)
    t = steps(frames)
    other = t.clone()
    other[:, -1] = 999 - other[:, -1]
    out = call(fast, t) - call(fast, other)
    by_frame = (out if name == "joint" else out.transpose(1, 2)).abs().flatten(2).amax((0, 2))
    assert by_frame[-1] > 1e-3 and not by_frame[:-1].any()


def by_frame(build: Callable[[int], tuple]) -> Callable[[int], tuple]:
    def with_steps(pairs: int) -> tuple:
        run, (x, _, *rest), model = build(pairs)
        return run, (x, steps(test_counts.FRAMES), *rest), model

    return with_steps


@pytest.mark.parametrize("build", [test_counts.latte, test_counts.t2v])
def test_blocks_launch_what_they_launch_with_one_step(build: Callable[[int], tuple]) -> None:
    """Forward and backward of a pair of blocks: the same launches, and no activation is copied."""
    require_kernels(test_counts.WIDTH, test_counts.HEADS)
    for measure in (test_counts.forward, test_counts.step):
        alike, launches, ends = test_counts.pair(measure, build)
        own, own_launches, own_ends = test_counts.pair(measure, by_frame(build))
        assert Counter(own.ran) == Counter(alike.ran) and own_ends == ends
        assert own_launches <= launches + 2  # the sum of step and class spreads the class over the frames


@pytest.mark.parametrize("name", ["classes", "text-embedding", "flex", "text"])
@torch.no_grad()
def test_tables_hold_a_row_a_frame(name: str) -> None:
    _, fast, call, frames, _ = CASES[name](torch.float32)
    times = torch.stack([steps(frames), steps(frames + 1)[:, :frames]])  # (S, B, F)
    if name == "text":
        table = tabulate_text(fast, times)
    else:
        _, kwargs = build_inputs(fast)
        table = tabulate_latte(fast, times, kwargs.get("y"), kwargs.get("text_embedding"))
    assert table.frames == frames
    for n, t in enumerate(times):
        want = call(fast, t)
        with table.attached(fast), Count() as count:
            table.select(n)
            assert testing.relative_error(call(fast, t), want) <= 3e-6
        assert count.ran["addmm"] + count.ran["mm"] > 0
        with table.attached(fast):
            table.select(1 - n)
            assert testing.relative_error(call(fast, t), want) > 1e-3
    with pytest.raises(ValueError, match="batch must be at most 2, got 3"):
        table.at(3)


def test_a_replayed_call_takes_steps_of_frames(played: Played) -> None:
    _, fast, _, frames, _ = CASES["classes"](torch.float32)
    (x, t), kwargs = build_inputs(fast)
    replayed = Replay(fast)
    with torch.no_grad():
        for given in (steps(frames), steps(frames).flip(0), t):
            assert torch.equal(replayed(x, given, **kwargs), fast(x, given, **kwargs))
    assert (played.captures, played.replays) == (2, 3)  # one for each shape of the steps


@pytest.mark.slow
@torch.no_grad()
def test_compiles_whole() -> None:
    _, fast, _, frames, _ = CASES["classes"](torch.float32)
    (x, _), kwargs = build_inputs(fast)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True)
    t = steps(frames) % 10  # inductor's exp differs by an ulp, which a large t turns into phase
    assert testing.relative_error(compiled(x, t, **kwargs), fast(x, t, **kwargs)) <= 3e-6


def test_wrong_steps_are_named() -> None:
    _, fast, call, _, _ = CASES["joint"](torch.float32)
    for shape in ((2, 3), (1, 5), (2, 5, 1), (3,)):
        with pytest.raises(ValueError, match=r"t must be \(B,\) with B = 2, or \(B, F\) with F = 5 frames and images"):
            call(fast, torch.zeros(shape, dtype=torch.int64))
    _, fast, call, _, _ = latte(patch_frames=3)(torch.float32)
    with pytest.raises(ValueError, match="where a patch spans frames, which share a step"):
        call(fast, steps(3))
    _, fast, call, _, _ = CASES["text"](torch.float32)
    for shape in ((2, 2), (3,), (3, 3)):
        with pytest.raises(ValueError, match=r"\(1,\), \(B,\) or \(B, F\) with B = 2 and F = 3"):
            call(fast, torch.zeros(shape, dtype=torch.int64))
