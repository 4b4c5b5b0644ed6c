"""Prints how far our class and a patched model are from diffusers' own, at worst: python -m tests.helpers.parity

Outputs and gradients of all cases, caches that never reuse, caches that reuse as diffusers' class does with the same,
and LoRA. The limits are those of the tests: 3e-6 of the largest value, 1e-4 where a cache reuses.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from latte_fast.testing import relative_error
from tests.helpers.suite import CHECKS, caches
from tests.helpers.suite.kinds import Kind, call, installed, reference
from tests.helpers.suite.training import adapted, adapted_layers, put_back
from tests.helpers.t2v import CASES, gradients, inputs

IDENTIFIERS = {"cache_identifiers": [r".*transformer_blocks\.\d+\.attn[12]"]}
MAKERS: dict[str, Callable[[bool], Any]] = {
    "PyramidAttentionBroadcast": caches.pab,
    "FasterCache": caches.faster,
    "FirstBlockCache": caches.first_block,
    "MagCache": caches.mag,
    "TaylorSeer": lambda reuse: caches.taylor(reuse, **IDENTIFIERS),
    "TaylorSeer, lite": lambda reuse: caches.taylor(reuse, use_lite_mode=True),
}
THEIRS_WORKS = ("PyramidAttentionBroadcast", "FasterCache", "TaylorSeer")


def of_gradients(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> Iterator[float]:
    """Yields each gradient's error, of its size; those that are zero in exact arithmetic must be noise, and are 0."""
    assert theirs.keys() == ours.keys()
    largest = max(g.abs().max().item() for g in theirs.values())
    for name, want in theirs.items():
        noise = 8 * torch.finfo(want.dtype).eps * largest
        error, size = (want - ours[name]).abs().max().item(), want.abs().max().item()
        assert size >= noise or error <= noise, name
        yield error / size if size >= noise else 0.0


def of_cases(kind: str) -> Iterator[float]:
    """Yields the errors of outputs and gradients over all cases, with a mask and without."""
    for frames, height, width, over_time in CASES:
        for masked in (False, True):
            theirs, ours = reference(), Kind(kind).model()
            x, t, text, mask = inputs(frames, height, width)
            bias = ((1 - mask.float()) * -10000.0)[:, None].repeat_interleave(frames, 0)
            want = theirs(x, t, text, bias if masked else None, enable_temporal_attentions=over_time).sample
            got = ours(x, t, text, mask if masked else None, enable_temporal_attentions=over_time).sample
            yield relative_error(got, want)
            yield from of_gradients(gradients(theirs, want), gradients(ours, got))


@torch.no_grad()
def of_cache(kind: str, name: str, reuse: bool) -> Iterator[float]:
    """Yields the errors of all steps of a run under a cache, called with a context and without."""
    theirs = reference()
    if reuse:
        theirs.enable_cache(MAKERS[name](True))
        wanted = caches.run(theirs, True)
    else:
        wanted = torch.stack([call(theirs, seed) for seed in caches.SEEDS])
    for context in (False, True):
        ours = Kind(kind).model()
        ours.enable_cache(MAKERS[name](reuse))
        yield from map(relative_error, caches.run(ours, context), wanted)


@torch.no_grad()
def of_lora(kind: str) -> Iterator[tuple[str, float]]:
    """Yields the errors of adapted models at three scales: as they are, fused, unfused; and after removal."""
    before = call(Kind(kind).model())
    for scale in (1.0, 0.3, -2.0):
        ours, want = adapted(Kind(kind).model(), scale), call(adapted(reference(), scale))
        yield "scaled", relative_error(call(ours), want)
        for how in ("merge", "unmerge"):
            for layer in adapted_layers(ours):
                getattr(layer, how)()
            getattr(ours, "forget_text", lambda: None)()
            yield {"merge": "fused", "unmerge": "unfused"}[how], relative_error(call(ours), want)
    ours = adapted(Kind(kind).model(), 1.0)
    call(ours)
    put_back(ours)
    yield "removed", relative_error(call(ours), before)


def say(what: str, errors: list[float]) -> None:
    print(f"{what:70}{len(errors):5} comparisons, at most {max(errors):.2e}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    assert len(CHECKS) > 20
    for kind in ("ours", "patched"):
        say(f"{kind}: outputs and gradients", list(of_cases(kind)))
        for name in MAKERS:
            say(f"{kind}: {name} that never reuses", list(of_cache(kind, name, False)))
        for name in THEIRS_WORKS:
            say(f"{kind}: {name} that reuses, beside diffusers' with it", list(of_cache(kind, name, True)))
        installed("peft")
        found: dict[str, list[float]] = {}
        for name, error in of_lora(kind):
            found.setdefault(name, []).append(error)
        for name, errors in found.items():
            say(f"{kind}: LoRA {name}", errors)


if __name__ == "__main__":
    main()
