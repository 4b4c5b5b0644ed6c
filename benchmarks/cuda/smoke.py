"""A minute that says whether a GPU day is worth going on: every op, both ways, at XL/2's shapes, then a whole model.

Each result against the oracle by the tests' criterion; python -m benchmarks.cuda.smoke [--tiny].
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import contenders
from latte_fast import testing


def op_case(op: str) -> None:
    """Forward and gradients of one op on one clip of XL/2."""
    from benchmarks.test_ops import forward_case

    fn, ref, args = forward_case(op, "XL")
    args = tuple(a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in args)
    wide = tuple(a.detach().float().requires_grad_() if isinstance(a, Tensor) else a for a in args)

    def both(call: Callable, given: tuple, dout: list[Tensor] | None) -> list[Tensor]:
        outs = call(*given)
        outs = outs if isinstance(outs, tuple) else (outs,)
        seeds = dout or [torch.randn_like(o) for o in outs]
        seeds = [d.to(o.dtype) for d, o in zip(seeds, outs, strict=True)]
        seen.append(seeds)
        return [*outs, *torch.autograd.grad(outs, [a for a in given if isinstance(a, Tensor)], seeds)]

    seen: list[list[Tensor]] = []
    got = both(fn, args, None)
    same, exact = both(ref, args, seen[0]), both(ref, wide, seen[0])
    for i, row in enumerate(zip(got, same, exact, strict=True)):
        testing.assert_no_worse_than_torch(f"{op}, result {i}", *(x.detach() for x in row))


def model_case(name: str, batch: int) -> None:
    """Four blocks, forward, and a step whose gradients are all finite."""
    oracle, ours, inputs = contenders.models(name, torch.bfloat16, batch, 4)
    contenders.model_gate(oracle, ours, inputs)()
    ours.train()
    ours(*inputs).float().square().mean().backward()
    broken = [n for n, p in ours.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not broken, f"gradients that are not finite: {broken}"


def main(tiny: bool) -> int:
    if tiny:
        contenders.shrink()
    # one clip: the oracle's fp32 scores of many would take what memory there is
    contenders.op_clips = lambda: 1  # type: ignore[assignment]
    from benchmarks import test_ops

    test_ops.op_clips = contenders.op_clips
    torch.manual_seed(0)
    cases: list[tuple[str, Callable[[], None]]] = [(op, lambda op=op: op_case(op)) for op in test_ops.OPS]  # type: ignore[misc]
    cases.append(("Latte-XL/2", lambda: model_case("Latte-XL/2", 1 if tiny else 2)))
    failed = 0
    for name, case in cases:
        began = time.perf_counter()
        try:
            case()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            outcome = "right"
        except Exception as error:
            failed += 1
            outcome = f"WRONG: {(str(error).strip() or repr(error)).splitlines()[0]}"
        print(f"{name}: {outcome}, {time.perf_counter() - began:.1f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main("--tiny" in sys.argv))
