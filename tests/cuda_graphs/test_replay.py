"""Replay: what a graph stands for, and when it does not; without a GPU the captured call itself plays the graph."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from latte_fast import Latte, LatteIMG, LatteT2V, Replay, testing, use_backend
from latte_fast.diffusion import create_diffusion, guided
from latte_fast.models.latte.block import Mlp
from tests.helpers.pairs import SMALL
from tests.helpers.played import Played, clip


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_one_capture_serves_all_inputs_of_a_shape(mode: Any, model: Latte, played: Played) -> None:
    fast = Replay(model)
    with mode():
        outs = [fast(x, t, y=y) for x, t, y in (clip(seed=0), clip(seed=1), clip(seed=2))]
        for seed, out in enumerate(outs):  # none is written again by the calls after it
            x, t, y = clip(seed=seed)
            assert torch.equal(out, model(x, t, y=y))
    assert (played.captures, played.replays) == (1, 3)


def test_a_graph_outlives_the_mode_that_it_was_captured_in(model: Latte, played: Played) -> None:
    fast = Replay(model)
    x, t, y = clip()
    with torch.inference_mode():
        fast(x, t, y)
    with torch.no_grad():
        assert torch.equal(fast(x, t, y), model(x, t, y))
    assert played.captures == 1


def test_a_caller_may_write_to_inputs_and_output(model: Latte, played: Played) -> None:
    fast = Replay(model)
    x, t, y = clip()
    with torch.no_grad():
        want = model(x, t, y)
        first = fast(x, t, y)
        first.zero_()
        assert torch.equal(fast(x, t, y), want)
        x.zero_()
        assert torch.equal(fast(x, t, y), model(x, t, y)) and not torch.equal(fast(x, t, y), want)


def test_strided_inputs_share_the_graph_of_contiguous_ones(model: Latte, played: Played) -> None:
    fast = Replay(model)
    x, t, y = clip()
    other = x.transpose(3, 4)
    with torch.no_grad():
        fast(x, t, y)
        assert torch.equal(fast(other, t, y), model(other, t, y))
    assert played.captures == 1


def test_each_kind_of_call_has_its_own(model: Latte, played: Played) -> None:
    fast = Replay(model)
    with torch.no_grad():
        x, t, y = clip()
        for args, kwargs in [((x, t, y), {}), ((x, t), {"y": y}), (clip(4), {})]:
            assert torch.equal(fast(*args, **kwargs), model(*args, **kwargs))
        with use_backend("reference"):
            assert torch.equal(fast(x, t, y), model(x, t, y))
    assert played.captures == 4


def test_a_method_and_its_scale(model: Latte, played: Played) -> None:
    fast = Replay(model.forward_with_cfg)
    x, t, y = clip(4)
    with torch.no_grad():
        for scale in (4.0, 7.5, 4.0):
            assert torch.equal(fast(x, t, y, cfg_scale=scale), model.forward_with_cfg(x, t, y, cfg_scale=scale))
    assert played.captures == 2


def test_weights_that_change_in_place_need_no_new_graph(model: Latte, played: Played) -> None:
    fast, other = Replay(model), testing.refill(copy.deepcopy(model), seed=3)
    x, t, y = clip()
    with torch.no_grad():
        before = fast(x, t, y)
        model.load_state_dict(other.state_dict())
        after = fast(x, t, y)
        assert torch.equal(after, other(x, t, y)) and not torch.equal(after, before)
    assert played.captures == 1


def test_what_no_graph_can_hold_runs_as_the_model_does(model: Latte, played: Played) -> None:
    fast, seen = Replay(model), []
    x, t, y = clip()
    fast(x, t, y).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fast(x, t, y), model(x, t, y))
        handle = model.blocks[1].mlp.register_forward_hook(lambda module, *args: seen.append(module))
        fast(x, t, y)
        handle.remove()
        assert model.blocks[1].mlp in seen
        handle = register_module_forward_hook(lambda module, *args: None)
        with pytest.raises(ValueError, match="hooks for all modules must be removed"):
            fast(x, t, y)
        handle.remove()
        # as accelerate and diffusers move weights for a call
        model.blocks[1].mlp.forward = lambda h: Mlp.forward(model.blocks[1].mlp, h)
        fast(x, t, y)
        del model.blocks[1].mlp.forward
        model.blocks[0].train()
        fast(x, t, y)
        model.eval()
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert testing.relative_error(compiled(x, t, y), model(x, t, y)) <= 1e-6
    assert played.captures == 0


def test_images_in_a_list(played: Played) -> None:
    model = testing.refill(LatteIMG(**SMALL)).eval()
    x = torch.randn(2, 5, 4, 8, 8)
    kwargs = {"y": torch.tensor([0, 1]), "y_image": [torch.tensor([1, 2])] * 2, "use_image_num": 2}
    with torch.no_grad():
        t = torch.tensor([3, 4])
        assert torch.equal(Replay(model)(x, t, **kwargs), model(x, t, **kwargs))
        kwargs["y_image"] = torch.stack(kwargs["y_image"])
        assert torch.equal(Replay(model)(x, t, **kwargs), model(x, t, **kwargs))
    assert played.captures == 1


def test_the_least_used_graph_goes_first(model: Latte, played: Played) -> None:
    fast = Replay(model, most=2)
    with torch.no_grad():
        for batch in (1, 2, 1, 3, 1, 2):
            fast(*clip(batch))
        assert played.captures == 4 and len(fast._graphs) == 2
        fast.forget()
        assert not fast._graphs and fast._pool is None
        assert torch.equal(fast(*clip(1)), model(*clip(1)))


def test_a_refused_call_leaves_no_graph(model: Latte, played: Played) -> None:
    fast = Replay(model)
    with torch.no_grad(), pytest.raises(ValueError, match="x must"):
        fast(torch.randn(2, 3, 4, 8, 9), torch.tensor([1, 2]), torch.tensor([0, 1]))
    assert not fast._graphs


def test_a_model_that_returns_no_tensor(played: Played) -> None:
    text = {"cross_attention_dim": 32, "caption_channels": 24, "video_length": 3}
    model = LatteT2V(num_attention_heads=2, attention_head_dim=16, num_layers=1, sample_size=8, **text).eval()
    fast = Replay(model)
    with torch.no_grad(), pytest.raises(TypeError, match="forward must return a tensor, got Output"):
        fast(torch.randn(1, 4, 3, 8, 8), torch.tensor([5]), torch.randn(1, 7, 24))
    assert not fast._graphs


def test_sampling(model: Latte, played: Played) -> None:
    diffusion, noise = create_diffusion("ddim4"), torch.randn(1, 3, 4, 8, 8)

    def draw(net: nn.Module) -> Tensor:
        kwargs = {"y": torch.tensor([1, 5])}
        return diffusion.ddim_sample_loop(guided(net, 4.0), noise.shape, noise.clone(), model_kwargs=kwargs)

    assert torch.equal(draw(Replay(model)), draw(model))
    assert (played.captures, played.replays) == (1, 4)


def test_bad_arguments(model: Latte) -> None:
    with pytest.raises(TypeError, match="forward must be a module or a method of one, got function"):
        Replay(lambda x: x)
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        Replay(model, most=0)


def test_without_a_gpu_it_is_the_model(model: Latte) -> None:
    fast = Replay(model)
    with torch.no_grad():
        assert torch.equal(fast(*clip()), model(*clip())) and not fast._graphs


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_few_clips_replay_by_themselves_on_gpu() -> None:
    """From the second call at a shape on, with weights that change in place too, and not once it is turned off."""
    model = testing.refill(Latte(**SMALL, extras=2)).eval().to("cuda")
    plain = copy.deepcopy(model)
    plain.replays_few_clips = False
    for seed in range(6):
        x, t, y = (v.cuda() for v in clip(1 + seed % 2, seed))
        assert torch.equal(model(x, t, y), plain(x, t, y))
        assert hasattr(model, "_few_clips") and (model._few_clips.replay is not None) == (seed >= 2)
    assert not model._few_clips.broken and len(model._few_clips.replay._graphs) == 2
    assert not hasattr(plain, "_few_clips")
    for p in (*model.parameters(), *plain.parameters()):
        p.mul_(1.5)
    assert torch.equal(model(x, t, y), plain(x, t, y))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_gives_the_models_numbers_on_gpu(dtype: torch.dtype) -> None:
    model = testing.refill(Latte(**SMALL, extras=2)).eval().to("cuda", dtype)
    fast = Replay(model)

    def same(seed: int, batch: int) -> bool:
        x, t, y = (v.cuda() for v in clip(batch, seed))
        return torch.equal(fast(x.to(dtype), t, y), model(x.to(dtype), t, y))

    with torch.inference_mode():
        assert all(same(seed, batch) for batch in (1, 2) for seed in range(3)) and len(fast._graphs) == 2
        for p in model.parameters():
            p.mul_(1.5)
        assert same(1, 1) and same(2, 2)
    model.blocks[0].mlp.fc1.weight.data = model.blocks[0].mlp.fc1.weight.data.clone() * 2
    with torch.no_grad():
        assert same(3, 1) and same(3, 2)
