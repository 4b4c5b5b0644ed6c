"""adamw_ema's kernel within two ulp of three passes that round once, no further than torch's; the bytes it moves."""

from collections import Counter
from typing import Any

import pytest
import torch

from latte_fast import ops
from latte_fast.kernels import adamw_ema, rows
from tests.helpers.optimizing import FACTORS, check_step, copied, lists, rounded_once, three_passes, ulps
from tests.kernels.conftest import DEVICE


@pytest.mark.parametrize("copy", [None, torch.bfloat16, torch.float16], ids=str)
def test_step_is_torchs_three_passes(copy: torch.dtype | None) -> None:
    """Aligned weights in one launch, those at odd addresses or of odd sizes in another."""
    for factors in ({}, {"beta1": 0.0, "decay": 0.1, "weight_decay": 0.0}):
        check_step(
            ops.adamw_ema,
            lists(copy, averages=copy is not None, device=DEVICE),
            rounded_once,
            **{**FACTORS, **factors},
        )


@pytest.mark.skipif(DEVICE == "cpu", reason="of torch's step on a GPU")
def test_no_further_from_the_exact_step_than_torch() -> None:
    """torch 2.11 takes the bias corrections in fp32 there: at a seventh step its change of a weight is 1e-6 off."""
    given = lists(None, averages=False, device=DEVICE)
    got, same = copied(given), three_passes(given, **FACTORS)
    ops.adamw_ema(**got, **FACTORS)
    wide = {name: [t.double() for t in some] for name, some in given.items()}
    exact = rounded_once(wide, **FACTORS)
    for name in ("weights", "moments", "squares"):
        ours, torchs = (max(ulps(a, b, c) for a, b, c in zip(some[name], exact[name], given[name], strict=True))
                        for some in (got, same))  # fmt: skip
        assert ours <= max(torchs, 2), (name, ours, torchs)


def test_weights_of_several_programs() -> None:
    """More values than a program takes, the last few beside a boundary; nothing is written past a weight's end."""
    size = 2 * adamw_ema.CHUNK + 3
    torch.manual_seed(0)
    stores = {name: torch.rand(size + 61) for name in ("weights", "grads", "moments", "squares", "averages", "copies")}
    given: dict[str, Any] = {name: [store[:size].to(DEVICE)] for name, store in stores.items()}
    around = {name: torch.full((size + 64,), -77.0, device=DEVICE) for name in given}
    for name, store in around.items():
        store[:size] = given[name][0]
        given[name] = [store[:size]]
    given["copies"][0].copy_(given["weights"][0])
    given["steps"] = [torch.tensor(3.0, device=DEVICE)]
    check_step(ops.adamw_ema, given, rounded_once, **FACTORS)
    ops.adamw_ema(**given, **FACTORS)
    assert all((store[size:] == -77).all() for store in around.values())


@pytest.mark.skipif(not rows.interpreted(), reason="the interpreter counts")
def test_bytes_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight, moment, square, gradient and average read once, all but the gradient written once, and the copy."""
    from triton.runtime.interpreter import InterpreterBuilder

    moved: Counter[str] = Counter()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def loaded(self: Any, ptrs: Any, mask: Any, *args: Any) -> Any:
        out = load(self, ptrs, mask, *args)
        if mask.data.size == adamw_ema.BLOCK:  # the rest is the table, of 64 bytes a weight
            moved["read"] += int(mask.data.sum()) * out.data.itemsize
        return out

    def stored(self: Any, ptrs: Any, value: Any, mask: Any, *args: Any) -> Any:
        moved["written"] += int(mask.data.sum()) * value.data.itemsize
        return store(self, ptrs, value, mask, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", loaded)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", stored)
    given = copied(lists(torch.float16, device=DEVICE))
    values = sum(w.numel() for w in given["weights"])
    ops.adamw_ema(**given, **FACTORS)
    assert moved == {"read": 5 * 4 * values, "written": (4 * 4 + 2) * values}
