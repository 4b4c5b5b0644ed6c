"""Caches, hooks and processors on a patched model and on ours: what they see, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from latte_fast import StepCache, patch, testing, unpatch
from latte_fast.integrations.caches import Pair, make_pairs
from latte_fast.models.latte_t2v.model import LatteT2V
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import plain_plan, whole_process
from tests.helpers.pipelines import SMALL, diffusers, pipeline, transformer, video
from tests.helpers.suite.caches import faster, first_block, mag, pab, run, taylor
from tests.helpers.suite.kinds import Kind, call
from tests.helpers.t2v import inputs

pytestmark = pytest.mark.skipif(not hasattr(diffusers, "hooks"), reason="this diffusers has no caches")


def plan() -> Plan:
    from dataclasses import replace

    process = whole_process(DiffusionConfig(), True)
    whole = plain_plan(process, "ddim", 4, 1.0)
    return replace(whole, rows=(*whole.rows[:2], replace(whole.rows[2], compute=False, order=1), whole.rows[3]))


@pytest.mark.parametrize("kind", ["ours", "patched"])
@torch.no_grad()
def test_attention_as_a_module_equals_fused(kind: str) -> None:
    """With masks and images of their own, every attention and MLP of the model called for a hook that does nothing."""
    fast = LatteT2V(**SMALL).eval()
    model = Kind(kind).model()
    fast.load_state_dict(model.state_dict())
    seen: list[tuple[int, ...]] = []
    x, t, text, mask = inputs(3, 8, 12, images=2)
    for images in (0, 2):
        given = (x, t, text, mask) if images else (x[:, :, :3], t, text[:, 0].contiguous(), mask[:, 0].contiguous())
        want = fast(*given, use_image_num=images).sample
        assert testing.relative_error(model(*given, use_image_num=images).sample, want) <= 3e-6
        handles = []
        for block in (*model.transformer_blocks, *model.temporal_transformer_blocks):
            for part in (block.attn1, block.attn2, block.ff):
                if part is not None:
                    handles.append(part.register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape))))
        seen.clear()
        assert testing.relative_error(model(*given, use_image_num=images).sample, want) <= 3e-6
        # two clips, 24 patches: frames are rows over space, patches are rows over time
        assert seen[:5] == [(2 * (3 + images), 24, 72)] * 3 + [(48, 3, 72)] * 2 and len(seen) == 10
        for handle in handles:
            handle.remove()
        seen.clear()
        model(*given, use_image_num=images)
        assert not seen


@torch.no_grad()
def test_the_report_says_what_is_called() -> None:
    theirs = transformer()
    theirs.transformer_blocks[0].attn1.set_processor(diffusers.models.attention_processor.AttnProcessor())
    theirs.transformer_blocks[1].attn2.processor = type(
        "Own", (type(theirs.transformer_blocks[1].attn2.processor),), {}
    )()
    theirs.temporal_transformer_blocks[1].ff.register_forward_hook(lambda *args: None)
    report = patch(theirs)
    assert report.kept == {
        "transformer_blocks.1.attn2": "it is called as a module, for its processor Own",
        "temporal_transformer_blocks.1.ff": "it is called as a module, for hooks",
    }


@pytest.mark.parametrize("make", [pab, faster, taylor], ids=lambda make: make.__name__)
@torch.no_grad()
def test_a_cache_from_before_patch_stays(make: Any) -> None:
    """And from before unpatch: attention caches hook modules that stay what they are."""
    ids = {"cache_identifiers": [r".*transformer_blocks\.\d+\.attn1"]} if make is taylor else {}
    before, theirs = transformer(), transformer()
    for model in (before, theirs):
        model.enable_cache(make(True, **ids))
    want = run(before, True)
    report = patch(theirs)
    assert report.swapped and any("for hooks" in why for why in report.kept.values())
    assert testing.relative_error(run(theirs, True), want) <= 1e-4
    unpatch(theirs)
    assert torch.equal(run(theirs, True), want)
    theirs.disable_cache()


@torch.no_grad()
def test_unpatch_takes_caches_of_residuals_away() -> None:
    theirs = transformer()
    want = call(theirs)
    patch(theirs)
    assert [type(pair) for pair in theirs.blocks] == [Pair, Pair] and "blocks" not in theirs._modules
    theirs.enable_cache(first_block(True))
    assert "blocks" in theirs._modules and not list(theirs.blocks.parameters())
    unpatch(theirs)
    assert not theirs.is_cache_enabled and not hasattr(theirs, "blocks")
    assert torch.equal(call(theirs), want)


@torch.no_grad()
def test_blocks_for_other_libraries() -> None:
    """A hook on one pair sees all residuals added; a list in the place of `blocks` is run, as cache-dit puts one."""
    model = Kind("ours").model()
    want = call(model)
    model.blocks = make_pairs(model)
    seen: list[tuple[Any, Any]] = []
    handle = model.blocks[1].register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    assert testing.relative_error(call(model), want) <= 3e-6
    handle.remove()
    assert len(seen) == 1 and all(x.shape == (2, 3, 16, 72) for x in seen[0])
    pairs = model.blocks

    class All(nn.Module):
        def forward(self, hidden_states: torch.Tensor, *args: Any) -> torch.Tensor:
            for i, pair in enumerate(pairs):
                hidden_states = pair(hidden_states, *args)
                if i == 0:
                    assert testing.relative_error(hidden_states, seen[0][0]) <= 3e-6
            return hidden_states

    model.blocks = nn.ModuleList([All()])
    assert testing.relative_error(call(model), want) <= 3e-6


def test_hooks_of_blocks_keep_a_model_as_it_is() -> None:
    theirs = transformer()
    theirs.enable_cache(first_block(True))
    report = patch(theirs)
    assert not report.swapped and "disable the cache, patch, and enable it again" in report.kept[""]


@pytest.mark.parametrize("kind", ["ours", "patched"])
@torch.no_grad()
def test_what_is_refused(kind: str) -> None:
    model = Kind(kind).model()
    want = call(model)
    with pytest.raises(ValueError, match="is not supported"):
        model.enable_cache({"threshold": 1})
    with pytest.raises(ValueError, match="tensor_format"):
        bad = faster(True)
        bad.tensor_format = "BFHWC"
        model.enable_cache(bad)
    model.enable_cache(StepCache(plan()))
    with pytest.raises(ValueError, match="already been enabled with StepC"):
        model.enable_cache(pab(True))
    model.disable_cache()
    model.enable_cache(mag(True))
    with pytest.raises(ValueError, match="already been enabled with MagCacheConfig"):
        model.enable_cache(StepCache(plan()))
    with pytest.raises(RuntimeError, match="gradients must be off"), torch.enable_grad():
        call(model)
    model.disable_cache()
    one = Kind(kind).model(num_layers=1)
    with pytest.raises(ValueError, match="num_layers of 2 or more"):
        one.enable_cache(first_block(True))
    assert not one.is_cache_enabled and "blocks" not in one._modules
    assert torch.equal(call(model), want)


@torch.no_grad()
def test_a_plan_of_ours_and_one_of_another_length() -> None:
    model = Kind("ours").model()
    rows = plan().rows
    x, _, text, _ = inputs(3, 8, 8)
    model.enable_cache(StepCache(plan()))
    calls: list[int] = []
    model.transformer_blocks[0].attn1.register_forward_hook(lambda *args: calls.append(1))
    with model.cache_context("cond"):
        for row in rows:
            model(x, row.time, text)
    assert len(calls) == 3
    with pytest.raises(ValueError, match="as many steps as the plan"), model.cache_context("cond"):
        for time in (rows[0].time, rows[3].time):
            model(x, time, text)


@torch.no_grad()
def test_contexts_keep_states_of_their_own() -> None:
    """A pipeline that calls cond and uncond apart gets what each would give alone."""
    model = Kind("patched").model()
    model.enable_cache(first_block(True))
    together: dict[str, list[torch.Tensor]] = {"cond": [], "uncond": []}
    for step in range(3):
        for i, name in enumerate(together):
            with model.cache_context(name):
                together[name].append(call(model, 10 * i + step))
    for i, name in enumerate(together):
        model._reset_stateful_cache()
        alone = [call(model, 10 * i + step) for step in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(alone, together[name], strict=True))


@pytest.mark.parametrize("kind", ["ours", "patched"])
def test_a_cache_of_residuals_in_the_pipeline(kind: str) -> None:
    """LattePipeline opens no context, and a second run begins anew."""
    pipe = Kind(kind).pipeline()
    plain = video(pipe)
    pipe.transformer.enable_cache(first_block(False))
    assert (video(pipe) - plain).abs().max() <= 1e-4
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(first_block(True))
    first = video(pipe)
    assert (first - plain).abs().max() > 1e-4 and torch.equal(video(pipe), first)
    pipe.transformer.disable_cache()
    assert torch.equal(video(pipe), plain)


def test_mag_cache_is_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = pipeline()
    patch(pipe)
    pipe.transformer.enable_cache(mag(False))
    video(pipe)
    printed = capsys.readouterr().out
    ratios = eval(printed.strip().splitlines()[-1])
    assert "Calibration Complete" in printed and len(ratios) == 4 and ratios[0] == 1.0
