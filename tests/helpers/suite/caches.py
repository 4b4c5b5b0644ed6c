"""diffusers' caches: each is enabled, reuses, is reset, is taken away, and changes nothing where it never reuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.pipelines import diffusers
from tests.helpers.suite.kinds import Kind, Missing, call, check, close, need, reference

# of the inputs; a step that reuses the one before has another input
SEEDS = (0, 1, 1, 2)
STEPS = len(SEEDS)
ATTENTION = [r"(temporal_)?transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"]


def config(name: str, **options: Any) -> Any:
    hooks = need(diffusers, "hooks") if hasattr(diffusers, "hooks") else None
    if hooks is None:
        raise Missing(f"diffusers {diffusers.__version__} has no caches")
    return need(hooks, name)(**options)


def pab(reuse: bool) -> Any:
    kinds = {f"{k}_attention_block_skip_range": 2 if reuse else 1 for k in ("spatial", "temporal", "cross")}
    return config("PyramidAttentionBroadcastConfig", **kinds, current_timestep_callback=lambda: 500)


def faster(reuse: bool) -> Any:
    ranges = {f"{k}_attention_block_skip_range": 2 for k in ("spatial", "temporal")}
    ranges |= {f"{k}_attention_timestep_skip_range": (-1, 901) for k in ("spatial", "temporal")}
    ranges |= {"unconditional_batch_skip_range": 2 if reuse else 1}
    now: Callable[[], int] = lambda: 500  # noqa: E731
    return config("FasterCacheConfig", **ranges, current_timestep_callback=now, attention_weight_callback=lambda _: 0.5)


def first_block(reuse: bool) -> Any:
    return config("FirstBlockCacheConfig", threshold=100.0 if reuse else 0.0)


def mag(reuse: bool) -> Any:
    ratios = {"mag_ratios": [1.0] * STEPS} if reuse else {"calibrate": True}
    return config("MagCacheConfig", num_inference_steps=STEPS, retention_ratio=0.3, **ratios)


def taylor(reuse: bool, **which: Any) -> Any:
    interval = 3 if reuse else 1
    spans = {"cache_interval": interval, "disable_cache_before_step": 1, "taylor_factors_dtype": torch.float32}
    return config("TaylorSeerCacheConfig", **spans, **which)


def run(model: Any, context: bool) -> torch.Tensor:
    """Calls a model for a few steps of a loop, as a pipeline does."""
    outs = []
    for step in range(STEPS):
        if context:
            with model.cache_context("cond"):
                outs.append(call(model, SEEDS[step]))
        else:
            outs.append(call(model, SEEDS[step]))
    model._reset_stateful_cache()
    return torch.stack(outs)


@torch.no_grad()
def works(kind: Kind, make: Callable[[bool], Any], like: Callable[[bool], Any] | None = None) -> None:
    """Asserts what must hold of a cache; `like` makes the config with which diffusers' own class does the same."""
    make(True)
    plain = torch.stack([call(reference(), seed) for seed in SEEDS])
    model = kind.model()
    need(model, "enable_cache")
    assert not model.is_cache_enabled
    for context in (False, True) if hasattr(reference(), "cache_context") else (False,):
        model.enable_cache(make(False))
        with pytest.raises(ValueError, match="Caching has already been enabled"):
            model.enable_cache(make(False))
        close(run(model, context), plain)
        model.disable_cache()
        model.enable_cache(make(True))
        assert model.is_cache_enabled
        first = run(model, context)
        assert first.isfinite().all() and (first - plain).abs().max() > 1e-5 * plain.abs().max(), "nothing was reused"
        close(run(model, context), first)  # after a reset nothing is left of the run before
        if like is not None:
            theirs = reference()
            theirs.enable_cache(like(True))
            close(first, run(theirs, hasattr(theirs, "cache_context")), 1e-4)
        model.disable_cache()
        assert not model.is_cache_enabled
        assert not any(getattr(getattr(m, "_diffusers_hook", None), "hooks", None) for m in model.modules())
        close(torch.stack([call(model, seed) for seed in SEEDS]), plain)


@check("PyramidAttentionBroadcast")
def pyramid_attention_broadcast(kind: Kind) -> None:
    works(kind, pab, pab)


@check("FasterCache")
def faster_cache(kind: Kind) -> None:
    works(kind, faster, faster)


@check("FirstBlockCache", shared=False)
def first_block_cache(kind: Kind) -> None:
    works(kind, first_block)


@check("MagCache, calibrated", shared=False)
def mag_cache(kind: Kind) -> None:
    works(kind, mag)


@check("TaylorSeer by default", shared=False)
def taylorseer(kind: Kind) -> None:
    works(kind, taylor, lambda reuse: taylor(reuse, cache_identifiers=[r".*transformer_blocks\.\d+\.attn[12]"]))


@check("TaylorSeer, lite", shared=False)
def taylorseer_lite(kind: Kind) -> None:
    def lite(reuse: bool) -> Any:
        return taylor(reuse, use_lite_mode=True)

    works(kind, lite, lite)


@check("TaylorSeer by identifiers, in a `cache_context`")
@torch.no_grad()
def taylorseer_identifiers(kind: Kind) -> None:
    model, theirs = kind.model(), reference()
    given = taylor(True, cache_identifiers=ATTENTION)
    need(model, "cache_context")
    for each in (model, theirs):
        each.enable_cache(given)
    got = run(model, True)
    close(got, run(theirs, True), 1e-4)
    assert (got[-1] - call(reference(), SEEDS[-1])).abs().max() > 1e-5
    model.disable_cache()
    close(call(model), call(reference()))


@check("caches without effect are refused", shared=False)
@torch.no_grad()
def no_effect(kind: Kind) -> None:
    model = kind.model()
    taylor(True)
    names = [name for name in ("SeaCacheConfig", "TextKVCacheConfig") if hasattr(diffusers.hooks, name)]
    given = [taylor(True, cache_identifiers=["no such module"]), *(config(name) for name in names)]
    for each in given:
        with pytest.raises(ValueError, match="enable_cache: "):
            model.enable_cache(each)
        assert not model.is_cache_enabled
    close(call(model), call(reference()))
