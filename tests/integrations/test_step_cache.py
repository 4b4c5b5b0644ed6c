"""A plan under other loops: enable_cache on our models and on patched ones, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import latte_fast
from latte_fast import Latte, LatteT2V, Replay, StepCache, testing
from latte_fast.diffusion.solvers import Sum, solve
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.plan import Plan, weights_digest
from latte_fast.sampling.planned import Denoiser, plain_plan, run_plan, whole_process

SMALL: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_frames": 2, "extras": 1}
PROCESS = whole_process(DiffusionConfig(prediction="start_x"), False)


def plan(marks: str, **made_for: Any) -> Plan:
    """Returns a plan of C for computed steps, and the order of reuse for others."""
    whole = plain_plan(PROCESS, "ddim", len(marks), 1.0, **made_for)
    pairs = zip(whole.rows, marks, strict=True)
    rows = (row if m == "C" else replace(row, compute=False, order=int(m)) for row, m in pairs)
    return replace(whole, rows=tuple(rows))


@pytest.fixture
def model() -> Latte:
    return testing.refill(Latte(**SMALL, learn_sigma=False)).eval()  # type: ignore[return-value]


def blocks_run(model: Any) -> list[int]:
    ran: list[int] = []
    model.blocks[0].register_forward_hook(lambda *args: ran.append(1))
    return ran


def test_the_same_as_the_planned_loop(model: Latte) -> None:
    """A loop of somebody else, twice in a row, gives what the plan's own loop gives, and leaves the blocks out."""
    followed = plan("CC01CC1C")
    noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ran = blocks_run(model)
    want = run_plan(followed, model, Denoiser(model, PROCESS, {}, {}, 1.0, StackReuse()), noise)
    ran.clear()
    times = [row.time for row in followed.rows]

    def draw() -> Tensor:
        with torch.no_grad():
            return solve(followed.solver_rows(), noise, lambda x, i: model(x, torch.full((2,), times[i])))

    whole = draw()
    assert len(ran) == 8
    model.enable_cache(StepCache(followed))
    assert model.is_cache_enabled
    for _ in range(2):
        ran.clear()
        assert torch.equal(draw(), want)
        assert len(ran) == followed.computed == 5
    assert testing.relative_error(whole, want) > 1e-3
    model.disable_cache()
    model.disable_cache()
    assert not model.is_cache_enabled and torch.equal(draw(), whole)


def test_contexts_have_steps_of_their_own(model: Latte) -> None:
    followed = plan("CC1C")
    times = [row.time for row in followed.rows]
    clips = dict(zip(("cond", "uncond"), torch.randn(2, 4, 1, 2, 4, 8, 8), strict=True))

    def outputs(names: Any) -> dict[str, list[Tensor]]:
        out: dict[str, list[Tensor]] = {name: [] for name in clips}
        with torch.no_grad():
            for i, time in enumerate(times):
                for name in names:
                    with model.cache_context(name):
                        out[name].append(model(clips[name][i], torch.tensor([time])))
        return out

    model.enable_cache(StepCache(followed))
    both = outputs(clips)
    for name in clips:
        assert all(torch.equal(a, b) for a, b in zip(both[name], outputs([name])[name], strict=True))


def test_a_run_that_was_not_finished_is_forgotten(model: Latte) -> None:
    followed = plan("CC1C")
    ran = blocks_run(model)
    x = torch.randn(1, 2, 4, 8, 8)
    model.enable_cache(StepCache(followed))
    with torch.no_grad():
        for times in ((999, 666), (999, 666, 333, 0)):
            for time in times:
                model(x, torch.tensor([time]))
        assert len(ran) == 5
        model(x, torch.tensor([999]))
        model._reset_stateful_cache()
        with pytest.raises(ValueError, match="must be about 999 at step 0 of the plan's 4, got 333"):
            model(x, torch.tensor([333]))


def test_refusals(model: Latte) -> None:
    whole = plan("CCCC")
    with pytest.raises(ValueError, match="plan must reuse a step, got 4 of 4 steps computed"):
        StepCache(whole)
    halves = replace(whole, rows=(*(replace(r, guidance="both") for r in whole.rows[:2]), *whole.rows[2:]))
    with pytest.raises(ValueError, match="guidance of the plan must be the same at every step"):
        StepCache(halves)
    sided = replace(whole, rows=tuple(replace(row, side=2) for row in whole.rows))
    with pytest.raises(ValueError, match="plan must be of a model with one density"):
        StepCache(sided)
    reused = plan("CC1C").rows
    for changed in ({"fitted_correct": Sum(1.0, (0.1,))}, {"fitted_predict": Sum(1.0, (0.1,))}, {"repeat": True}):
        row = replace(reused[2], **changed)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"solver must be the caller's, .* calibrate --loop any makes such plans"):
            StepCache(replace(whole, rows=(*reused[:2], row, reused[3])))
    with pytest.raises(ValueError, match=r"config must be a latte_fast\.StepCache, got dict"):
        model.enable_cache({})
    with pytest.raises(ValueError, match="weights must be those that the plan was made for"):
        model.enable_cache(StepCache(plan("CC1C", weights="00")))
    model.train()
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        model.enable_cache(StepCache(plan("CC1C")))
    model.eval()
    with torch.no_grad(), StackReuse().attached(model), pytest.raises(ValueError, match="not be in a sampling run"):
        model.enable_cache(StepCache(plan("CC1C")))
    model.enable_cache(StepCache(plan("CC1C", weights=weights_digest(model), shape=[2, 4, 8, 8])))
    with pytest.raises(ValueError, match="must have no cache yet"):
        model.enable_cache(StepCache(plan("CC1C")))
    x = torch.randn(1, 2, 4, 8, 8)
    with pytest.raises(RuntimeError, match="gradients must be off"):
        model(x, torch.tensor([999]))
    with torch.no_grad():
        assert torch.equal(Replay(model)(x, torch.tensor([999])), model(x, torch.tensor([999])))
    with pytest.raises(ValueError, match="another run"), StackReuse().attached(model):
        pass
    model.disable_cache()
    model.enable_cache(StepCache(plan("CC1C", shape=[3, 4, 8, 8])))
    with torch.no_grad(), pytest.raises(ValueError, match="clips must be of 3 frames of 16 tokens"):
        model(x, torch.tensor([999]))


def test_text_to_video_and_patched_diffusers() -> None:
    """The pipeline of diffusers, its transformer patched: the plan leaves blocks out, and other steps are refused."""
    from tests.helpers.pipelines import pipeline, video

    pipe = pipeline()
    before = video(pipe, num_inference_steps=6)
    latte_fast.patch(pipe)
    net = pipe.transformer
    ran: list[int] = []
    net.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda *args: ran.append(1))
    whole = video(pipe, num_inference_steps=6)
    assert len(ran) == 6 and (whole - before).abs().max() <= 1e-4
    net.enable_cache(StepCache(plan("CC1C0C")))
    assert net.is_cache_enabled
    ran.clear()
    cached = video(pipe, num_inference_steps=6)
    assert len(ran) == 4 and (cached - whole).abs().max() > 1e-4
    assert torch.equal(video(pipe, num_inference_steps=6), cached)
    with pytest.raises(ValueError, match="the scheduler must take as many steps as the plan"):
        video(pipe, num_inference_steps=3)
    latte_fast.unpatch(pipe)
    assert not net.is_cache_enabled
    assert torch.equal(video(pipe, num_inference_steps=6), before)
    ours = LatteT2V(**{k: v for k, v in dict(net.config).items() if k in vars(LatteT2V.config_type())})
    ours.load_state_dict({k: v for k, v in net.state_dict().items() if k in ours.state_dict()})
    pipe.transformer = ours.eval()
    ours.enable_cache(StepCache(plan("CC1C0C", weights=weights_digest(net))))
    assert (video(pipe, num_inference_steps=6) - cached).abs().max() <= 1e-4
