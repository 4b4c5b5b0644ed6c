"""adamw_ema on the CPU: within two ulp of torch's three passes, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import ops, use_backend
from latte_fast.reference.functional import adamw_ema_ref
from tests.helpers.guards import require_backend
from tests.helpers.optimizing import FACTORS, SHAPES, check_step, copied, lists

COPIES = (None, torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("copy", COPIES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_step_is_torchs_three_passes(backend: str, copy: torch.dtype | None, averages: bool) -> None:
    require_backend("adamw_ema", *lists(copy).values())
    with use_backend(adamw_ema=backend):
        for factors in ({}, {"weight_decay": 0.0, "decay": 0.1}, {"beta1": 0.0, "decay": 0.9999, "eps": 1e-8}):
            check_step(ops.adamw_ema, lists(copy, averages), **{**FACTORS, **factors})


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same(threads: int) -> None:
    """Chunks of 16,384 values, of which these weights have several."""
    require_backend("adamw_ema", *lists(None).values())
    torch.manual_seed(0)
    given = {name: [torch.rand(50_001), torch.rand(16_384)] for name in ("weights", "grads", "moments", "squares")}
    given |= {"steps": [torch.tensor(3.0)] * 2, "averages": [torch.rand(50_001), torch.rand(16_384)], "copies": []}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check_step(ops.adamw_ema, given, **FACTORS)
        got = copied(given)
        ops.adamw_ema(**got, **FACTORS)
        alone = {name: [t[16_000:17_000].clone() if t.dim() else t for t in some] for name, some in given.items()}
        ops.adamw_ema(**alone, **FACTORS)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b[16_000:17_000]) for a, b in zip(alone["weights"], got["weights"], strict=True))


def test_other_orders_of_memory_and_registration() -> None:
    """Weights that lie in another order than their axes; a write is noticed, as by autograd."""
    given = {name: [t.mT for t in some[:1]] for name, some in lists(torch.bfloat16).items() if name != "steps"}
    given["steps"] = [torch.tensor(4.0)]
    check_step(ops.adamw_ema, given, **FACTORS)
    version = given["weights"][0]._version
    ops.adamw_ema(**given, **FACTORS)
    assert given["weights"][0]._version > version and given["copies"][0]._version > 0
    ops.adamw_ema([], [], [], [], [], [], [], **FACTORS)
    args = (*lists(torch.bfloat16).values(), *FACTORS.values(), "cpu")
    torch.library.opcheck(torch.ops.latte_fast.adamw_ema.default, args)


def changed(name: str, change: Any) -> dict[str, Any]:
    given = lists(torch.bfloat16)
    given[name] = change(given[name])
    return given


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("grads", lambda g: g[:-1], "grads must be 5 tensors, as weights, got 4"),
        ("steps", lambda s: s[1:], "steps must be 5 tensors, as weights, got 4"),
        ("averages", lambda a: a[1:], "averages must be 5 tensors, as weights, got 4"),
        ("moments", lambda m: [m[0].double(), *m[1:]], "moments must be fp32, got torch.float64"),
        ("copies", lambda c: [c[0].double(), *c[1:]], "copies must be fp32 or 16 bits, got torch.float64"),
        ("squares", lambda s: [s[0].T, *s[1:]], r"squares must have the weight's shape \(64, 40\)"),
        ("grads", lambda g: [g[0].T.contiguous().T, *g[1:]], r"strides \(40, 1\) and device cpu, got"),
        ("averages", lambda a: [a[0].to("meta"), *a[1:]], "device cpu, got .* meta"),
    ],
)
def test_bad_inputs(name: str, change: Any, error: str) -> None:
    given = changed(name, change)
    before = copied(lists(torch.bfloat16))
    with pytest.raises((ValueError, TypeError), match=f"adamw_ema: .*{error}"):
        ops.adamw_ema(**given, **FACTORS)
    assert all(torch.equal(a, b) for a, b in zip(given["weights"], before["weights"], strict=True)), (
        "written all the same"
    )


def test_weights_with_gaps_are_refused() -> None:
    given = {name: [t[:, ::2] for t in some[:1]] for name, some in lists(None).items() if name != "steps"}
    with pytest.raises(ValueError, match="adamw_ema: weights must have no gaps, got strides"):
        ops.adamw_ema(**given, steps=[torch.tensor(1.0)], **FACTORS)


def test_hundred_steps_end_where_torchs_end() -> None:
    """Steps that each start where the last ended: the roundings do not add up to a difference."""
    got, want = lists(None), copied(lists(None))
    generator = torch.Generator().manual_seed(1)
    for step in range(100):
        grads: list[Tensor] = [torch.randn(s, generator=generator) for s in SHAPES]
        for given, run in ((got, ops.adamw_ema), (want, adamw_ema_ref)):
            given["grads"], given["steps"] = grads, [torch.tensor(step + 1.0)] * len(SHAPES)
            run(**given, **FACTORS)
    for name in ("weights", "averages"):
        torch.testing.assert_close(got[name], want[name], rtol=2e-6, atol=2e-6)
