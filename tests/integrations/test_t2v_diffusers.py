"""LatteT2V and patch beside the installed diffusers: same numbers, same files, whole pipelines."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from latte_fast import LatteT2V, patch, testing, unpatch
from latte_fast.modules import recompute
from tests.helpers.pipelines import PUBLISHED, SMALL, diffusers, pipeline, transformer, video
from tests.helpers.t2v import CASES, assert_gradients, gradients, inputs


def per_frame(mask: torch.Tensor, frames: int) -> torch.Tensor:
    """The bias that diffusers adds as it is: one row a frame, 0 where a token counts."""
    return ((1 - mask.float()) * -10000.0)[:, None].repeat_interleave(frames, 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("frames", "height", "width", "over_time"), CASES)
def test_equals_diffusers(frames: int, height: int, width: int, over_time: bool, masked: bool) -> None:
    theirs = transformer()
    ours = LatteT2V(**SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    x, t, text, mask = inputs(frames, height, width)
    bias = per_frame(mask, frames) if masked else None
    want = theirs(x, t, text, bias, enable_temporal_attentions=over_time).sample
    got = ours(x, t, text, mask if masked else None, enable_temporal_attentions=over_time).sample
    assert testing.relative_error(got, want) <= 3e-6
    assert_gradients(gradients(theirs, want), gradients(ours, got), 3e-6)
    theirs.load_state_dict(ours.state_dict())
    patch(theirs)
    again = theirs(x, t, text, mask if masked else None, enable_temporal_attentions=over_time).sample
    assert torch.equal(again, got)


@pytest.mark.parametrize("sample_size", [32, 128, 200])
def test_positions_of_other_sizes_equal_diffusers(sample_size: int) -> None:
    """From 128 on the grid is compressed by the multiple of 64 that it holds; the blocks' norms have an eps."""
    theirs = transformer(sample_size=sample_size, norm_eps=0.2)
    ours = LatteT2V(**SMALL | {"sample_size": sample_size, "norm_eps": 0.2}).eval()
    ours.load_state_dict(theirs.state_dict())
    x, t, text, _ = inputs(3, 8, 12)
    with torch.no_grad():
        assert testing.relative_error(ours(x, t, text).sample, theirs(x, t, text).sample) <= 3e-6


def test_files_load_both_ways(tmp_path: Any) -> None:
    theirs = transformer()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = LatteT2V.from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    ours.save_pretrained(tmp_path / "ours")
    back = diffusers.LatteTransformer3DModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in back.state_dict().items())
    report = patch(back)
    assert not report.kept
    back.save_pretrained(tmp_path / "patched")
    again = LatteT2V.from_pretrained(tmp_path / "patched")
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("prompt", ["a dog runs", ["a dog runs", "rain"]], ids=["one", "two"])
def test_pipeline_gives_the_same_video(prompt: Any) -> None:
    pipe = pipeline()
    before = video(pipe, prompt)
    assert before.std() > 0.01
    kind, report = type(pipe.transformer), patch(pipe)
    assert not report.kept and "transformer.transformer_blocks.1" in report.swapped
    assert isinstance(pipe.transformer, kind)
    assert (video(pipe, prompt) - before).abs().max() <= 1e-4
    assert (video(pipe, prompt, enable_temporal_attentions=False) - before).abs().max() > 1e-3
    unpatch(pipe)
    assert type(pipe.transformer) is kind
    assert torch.equal(video(pipe, prompt), before)


def test_our_model_stands_in_the_pipeline() -> None:
    pipe = pipeline()
    before = video(pipe)
    ours = LatteT2V(**SMALL).eval()
    ours.load_state_dict(pipe.transformer.state_dict())
    pipe.transformer = ours
    assert (video(pipe) - before).abs().max() <= 1e-4


def counts(pipe: Any, steps: int) -> dict[str, int]:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        video(pipe, num_inference_steps=steps)
    tokens = max(e.input_shapes[0][1] for e in seen.events() if e.name == "aten::embedding")
    found = {"text": 0, "repeat": 0, "layout": 0}
    rows = 2 * 3 * 16  # (B, F, N) with the guidance's two halves
    for e in seen.events():
        shape = e.input_shapes[0] if e.input_shapes else []
        found["repeat"] += "repeat_interleave" in e.name
        # products over the text: caption, keys and values
        if e.name in ("aten::mm", "aten::addmm"):
            shapes = [s for s in e.input_shapes if len(s) == 2]
            found["text"] += any(s[0] in (2 * tokens, 2 * 4) and s[0] != rows for s in shapes[:2])
        whole = shape and shape[-1] == 72 and torch.Size(shape).numel() == rows * 72
        # a product on the CPU spreads its bias over its result before it adds to it: no activation is read
        spreads = e.cpu_parent is not None and e.cpu_parent.name == "aten::addmm"
        copies = e.name in ("aten::clone", "aten::contiguous", "aten::copy_") and not spreads
        found["layout"] += copies and bool(whole)
    return found


def test_text_once_per_prompt_and_no_copies() -> None:
    pipe = pipeline()
    eager = {steps: counts(pipe, steps) for steps in (2, 4)}
    assert eager[4]["repeat"] > eager[2]["repeat"] > 0 and eager[4]["layout"] > 0  # the count sees what it looks for
    patch(pipe)
    fast = {steps: counts(pipe, steps) for steps in (2, 4)}
    assert fast[2]["text"] == fast[4]["text"] > 0
    assert fast[4]["repeat"] == fast[4]["layout"] == 0


def test_gradient_checkpointing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = transformer().train()
    x, t, text, _ = inputs(3, 8, 8)
    want = gradients(theirs, theirs(x, t, text).sample)
    patch(theirs)
    calls: list[int] = []
    checkpoint = recompute.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(recompute, "checkpoint", counted)
    theirs(x, t, text)
    assert not calls
    theirs.enable_gradient_checkpointing()
    assert_gradients(want, gradients(theirs, theirs(x, t, text).sample), 3e-6)
    assert len(calls) == 2 * len(theirs.transformer_blocks)


def test_upstream_style_model_is_patched() -> None:
    """The oracle stands for upstream's class: its tree, its use_image_num."""
    from latte_fast import reference

    class Upstream(reference.latte_t2v.LatteT2V):
        pass

    torch.manual_seed(0)
    theirs = Upstream(**SMALL).eval()
    for block in (*theirs.transformer_blocks, *theirs.temporal_transformer_blocks):
        block.norm1 = nn.LayerNorm(72, eps=1e-6, elementwise_affine=False)
    theirs.pos_embed.base_size = 4
    x, t, text, mask = inputs(3, 8, 8, images=2)
    before = copy.deepcopy(theirs)(x, t, text, mask, use_image_num=2)
    report = patch(theirs)
    assert len(report.swapped) == 5, report
    got = theirs(x, timestep=t, encoder_hidden_states=text, encoder_attention_mask=mask, use_image_num=2)
    assert testing.relative_error(got.sample, before) <= 3e-6


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a module or a pipeline"):
        patch(object())
    assert PUBLISHED["norm_eps"] == 1e-6


def peak(model: nn.Module, *given: torch.Tensor) -> float:
    """Returns the most memory that a forward allocates at a time, in activations (B, F, N, D)."""
    model(*given)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model(*given)
    now = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    x, width = given[0], 72
    return most / (x.shape[0] * x.shape[2] * x.shape[3] * x.shape[4] // 4 * width * 4)


@pytest.mark.parametrize("kind", ["ours", "patched"])
@torch.no_grad()
def test_peak_memory(kind: str) -> None:
    """6.04 activations: no caller keeps the input of a block that is not its own."""
    from tests.helpers.suite.kinds import Kind

    model = Kind(kind).model(video_length=16)
    x, text = torch.randn(2, 4, 16, 32, 32), torch.randn(2, 7, 40)
    assert peak(model, x, torch.tensor([3, 900]), text) <= 6.5
    assert peak(transformer(video_length=16), x, torch.tensor([3, 900]), text) > 7
