"""A step of any model on a GPU has nothing the host waits for: each would cost a step, and break a CUDA graph.

What is around the ops, that is: on the meta device the ops are the oracle's. The kernels' launchers read nothing
either, as they run on meta tensors where kernels are compiled ahead of time.
"""

from typing import Any

import pytest
import torch
from torch import nn

from latte_fast import Latte, LatteIMG, LatteT2V
from latte_fast.modules.recompute import POLICIES
from tests.helpers.waiting import GPU, no_waiting

CLIP: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_frames": 4}
TEXT: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 2,
                        "sample_size": 8, "caption_channels": 24, "video_length": 4}  # fmt: skip
LABELS = torch.zeros(2, dtype=torch.long, device=GPU)


def clips(axis: int, images: int = 0) -> torch.Tensor:
    shape = [2, 4, 8, 8]
    shape.insert(axis, 4 + images)
    return torch.randn(shape, device=GPU)


def run(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Forward and backward, then without gradients."""
    model.to(GPU).train()
    with no_waiting():
        out = model(*args, **kwargs)
        out = out if isinstance(out, torch.Tensor) else out.sample
        out.square().mean().backward()
        with torch.no_grad():
            model.eval()(*args, **kwargs)
            if type(model) is Latte:
                model.forward_with_cfg(*args, **kwargs)
    assert out.device == GPU and all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("recompute", POLICIES)
@pytest.mark.parametrize("form", ["clips", "images", "text"])
def test_every_policy(form: str, recompute: str) -> None:
    if form == "clips":
        run(Latte(**CLIP, extras=2, recompute=recompute), clips(1), LABELS, y=LABELS)
    elif form == "images":
        stills = LABELS[:, None].expand(2, 3)
        run(LatteIMG(**CLIP, recompute=recompute), clips(1, 3), LABELS, y=LABELS, y_image=stills, use_image_num=3)
    else:
        text, mask = torch.randn(2, 3, 7, 24, device=GPU), torch.ones(2, 3, 7, device=GPU, dtype=torch.bool)
        run(LatteT2V(**TEXT, recompute=recompute), clips(2, 2), LABELS, text, mask, use_image_num=2)


@pytest.mark.parametrize("time_pos", ["absolute", "rope"])
@pytest.mark.parametrize("conditioning", ["adaln", "tokens"])
@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_every_variant(variant: int, conditioning: str, time_pos: str) -> None:
    form = {"variant": variant, "conditioning": conditioning, "time_pos": time_pos}
    run(Latte(**CLIP, extras=2, **form), clips(1), LABELS, y=LABELS)


def test_frames_of_a_patch_and_other_sizes() -> None:
    run(Latte(**CLIP, patch_frames=2), clips(1), LABELS)
    wide = torch.randn(2, 6, 4, 8, 12, device=GPU)
    for rule in ("sincos", "interpolate"):
        run(Latte(**CLIP, extend_time=rule, extend_space=rule), wide, LABELS)


@pytest.mark.parametrize("time", [LABELS, LABELS[:1], 7, 7.5])
@pytest.mark.parametrize("kind", [torch.bool, torch.long, "bias"])
def test_text_of_every_form(time: Any, kind: Any) -> None:
    mask = torch.zeros(2, 1, 7, device=GPU) if kind == "bias" else torch.ones(2, 7, device=GPU, dtype=kind)
    run(LatteT2V(**TEXT), clips(2), time, torch.randn(2, 7, 24, device=GPU), mask)


def test_a_time_step_is_filled_in_as_given() -> None:
    """A number is the time step of every clip, with its fraction."""
    torch.manual_seed(0)
    model = LatteT2V(**TEXT).eval()
    x, text = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 7, 24)
    with torch.no_grad():
        for number in (7, 7.5):
            want = model(x, torch.tensor([number, number]), text).sample
            assert torch.equal(model(x, number, text).sample, want)
        assert not torch.equal(model(x, 7, text).sample, want)
