"""What whole models run, as exact numbers: a change that adds a launch, a product, a copy or a byte fails here.

A model of two pairs of blocks less one of one pair is what a pair costs; the rest is what the ends cost.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import Latte, LatteT2V, testing
from latte_fast.diffusion import create_diffusion, guided
from tests.helpers.counting import Count, require_kernels

WIDTH, HEADS, CLIPS, FRAMES, PATCHES = 64, 2, 2, 3, 16
ACTIVATION = CLIPS * FRAMES * PATCHES * WIDTH  # elements
CHANNELS = 40


def latte(pairs: int) -> tuple[Callable[..., Tensor], tuple, torch.nn.Module]:
    torch.manual_seed(0)
    sizes = {"input_size": 8, "hidden_size": WIDTH, "depth": 2 * pairs, "num_heads": HEADS, "num_frames": FRAMES}
    model = testing.refill(Latte(**sizes, num_classes=3, extras=2))
    x, t, y = torch.randn(CLIPS, FRAMES, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 3])
    return model.eval(), (x, t, y), model


def t2v(pairs: int) -> tuple[Callable[..., Tensor], tuple, torch.nn.Module]:
    torch.manual_seed(0)
    model = LatteT2V(num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, cross_attention_dim=WIDTH,
                     num_layers=pairs, sample_size=8, caption_channels=CHANNELS, video_length=FRAMES)  # fmt: skip
    args = (torch.randn(CLIPS, 4, FRAMES, 8, 8), torch.tensor([3, 900]), torch.randn(CLIPS, 7, CHANNELS))
    return lambda *a: model(*a).sample, args, model.eval()


def forward(build: Callable[[int], tuple], pairs: int) -> Count:
    """The second of two forwards of the same prompt: a step of sampling."""
    run, args, _ = build(pairs)
    with torch.no_grad():
        run(*args)
        with Count() as count:
            run(*args)
    return count


def step(build: Callable[[int], tuple], pairs: int) -> Count:
    """A training step: forward, backward, AdamW."""
    run, args, model = build(pairs)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    dout = torch.randn_like(run(*args))
    for _ in range(2):  # the first makes gradients and moments
        with Count() as count:
            optimizer.zero_grad()
            run(*args).backward(dout)
            optimizer.step()
    return count


def sampling(build: Callable[[int], tuple], steps: int) -> Count:
    """Guided DDIM of a model of one pair."""
    run, (x, _, y), _ = build(1)
    diffusion = create_diffusion(f"ddim{steps}")

    def model(x: Tensor, t: Tensor) -> Tensor:
        return run(x, t, y)

    with Count() as count:
        diffusion.ddim_sample_loop(guided(model, 4.0), x[:1].shape, x[:1], clip_denoised=False)
    return count


def pair(measure: Callable[..., Count], build: Callable[[int], tuple]) -> tuple[Count, int, int]:
    """What a pair of blocks runs; launches and products of the ends."""
    one, two = measure(build, 1), measure(build, 2)
    assert all(size < ACTIVATION for size in two.copies), f"an activation is copied: {two.copies}"
    two.ran.subtract(one.ran)
    two.bytes -= one.bytes
    two.ran = +two.ran
    one.ran.subtract(two.ran)
    return two, sum(n for name, n in one.ran.items() if "record_function" not in name), products(one)


def products(count: Count) -> int:
    return count.ran["mm"] + count.ran["addmm"]


# of a space and a time block; a clone is fc2's bias, for the block after
FORWARD = {"gate_residual_norm_modulate": 4, "axis_attention_qkv": 2, "bias_gelu": 2, "addmm": 4, "mm": 6, "clone": 2}
# the table added to the time step's rows, twice; the text's attention, whose keys are there already, in one block
TEXT = FORWARD | {"gate_residual": 1, "axis_attention": 1, "add": 2, "ones_like": 1}
BACKWARD = {"gate_residual_norm_modulate_backward": 4, "axis_attention_qkv_backward": 2, "bias_gelu_backward": 2}


def test_class_conditional_forward() -> None:
    require_kernels(WIDTH, HEADS)
    count, launches, ends = pair(forward, latte)
    assert count.ran == FORWARD
    assert (launches, ends) == (26, 5)
    assert count.bytes == 891_392


def test_text_to_video_forward() -> None:
    """Keys and values of the text are those of the step before: four products less."""
    require_kernels(WIDTH, HEADS)
    count, launches, ends = pair(forward, t2v)
    assert count.ran == TEXT
    assert (launches, ends) == (58, 5)
    assert count.bytes == 989_952


@pytest.mark.parametrize("build", [latte, t2v])
def test_on_a_gpu_products_add_their_biases(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    """Sampling there copies no bias for the next block; a training step leaves them to the passes all the same."""
    require_kernels(WIDTH, HEADS)
    run, args, _ = build(1)
    with torch.no_grad():
        want = run(*args)
    training = pair(step, build)[0].ran
    monkeypatch.setattr("latte_fast.modules.linear.on_cuda", lambda x: True)
    with torch.no_grad():
        assert testing.relative_error(run(*args), want) <= 1e-6
    before = FORWARD if build is latte else TEXT
    # the GELU's bias is in an epilogue as well, but of an operator that has another GELU on the CPU
    after = Counter(before) + Counter(addmm=4) - Counter(mm=4, clone=2)
    assert pair(forward, build)[0].ran == after
    assert pair(step, build)[0].ran == training


def test_class_conditional_training_step() -> None:
    """Three products a linear layer but for the first of the conditioning; its six gradients joined once a block."""
    require_kernels(WIDTH, HEADS)
    count, launches, ends = pair(step, latte)
    assert count.ran == FORWARD | BACKWARD | {"mm": 26, "sum": 2, "cat": 2, "add": 2}
    assert (launches, ends) == (48, 13)
    assert count.bytes == 2_389_504


def test_text_to_video_training_step() -> None:
    require_kernels(WIDTH, HEADS)
    count, launches, ends = pair(step, t2v)
    text = {"axis_attention_backward": 1, "gate_residual_backward": 1}
    assert count.ran == TEXT | BACKWARD | text | {"mm": 30, "addmm": 6, "add": 7, "sum": 6, "stack": 2}
    assert (launches, ends) == (89, 18)
    assert count.bytes == 2_514_944


def test_sampling_step() -> None:
    """One forward of the doubled batch, and small launches of the process."""
    require_kernels(WIDTH, HEADS)
    one, two = sampling(latte, 4), sampling(latte, 5)
    two.ran.subtract(one.ran)
    ran = +two.ran
    assert {name: ran[name] for name in FORWARD if name not in ("addmm", "clone")} == {
        name: FORWARD[name] for name in FORWARD if name not in ("addmm", "clone")
    }
    assert ran["mm"] + ran["addmm"] == 15
    assert (sum(ran.values()), two.bytes - one.bytes) == (98, 1_096_377)
    assert all(size < ACTIVATION for size in two.copies)
