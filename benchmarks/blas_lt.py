"""cuBLASLt's algorithms on a GPU: that their products are right, and what the fastest take beside torch.

`python -m benchmarks.blas_lt OUT.jsonl [--seconds 150] [--clips 8 1 5] [--keep]` writes a line of JSON a case as it is
done, and the entries that `latte-fast tune` would keep into OUT.table.json; with --keep into kernels/configs/ too. It
ends by itself.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latte_fast._ext import blas_lt
from latte_fast._ext.blas_lt import WAYS, Plan, Product
from latte_fast.cli.tune_products import by_plan, by_torch, entry, fastest, operands, products

WIDTH, TOKENS = 1152, 4096
SMALL = [(264, 384, 144), (1, 8, 8), (4096, 1152, 4608), (1000, 3456, 1152)]


def check(product: Product, device: torch.device, count: int) -> dict[str, Any]:
    """Returns the largest error against float64 of every algorithm proposed, in units of torch's own."""
    given, plan = operands(product, device), Plan(product, device.index)
    exact = by_torch(product, type(given)(*(x if x is None else x.double().cpu() for x in given)))
    same = by_torch(product, given)
    if product.way == "forward-bias-gelu-kept":  # torch's way keeps the sum without its bias
        assert given.bias is not None
        exact, same = (exact[0], exact[1] + given.bias.double().cpu()), (same[0], same[1] + given.bias)
    worst, algorithms = 0.0, plan.search(count)
    for algorithm in algorithms:
        plan.take(algorithm)
        for got, torchs, want in zip(by_plan(plan, given), same, exact, strict=True):
            error, usual = ((x.double().cpu() - want).abs().max().item() for x in (got, torchs))
            ulp = torch.finfo(product.dtype).eps * want.abs().max().item()
            worst = max(worst, error / (2 * usual + ulp))
    return {"check": product.key, "algorithms": len(algorithms), "error_over_limit": worst, "right": worst <= 1}


def race(layer: str, product: Product, device: torch.device, timer: Callable) -> tuple[dict[str, Any], dict[str, Any]]:
    found = fastest(product, device, timer)
    rate = 2 * product.rows * product.outputs * product.inputs / 1e9
    line = {
        "race": product.key,
        "layer": layer,
        "torch_ms": found.torch,
        "best_ms": found.best,
        "gain": found.torch / found.best - 1,
        "torch_tflops": rate / found.torch,
        "best_tflops": rate / found.best,
        "config": found.config,
        "proposed": found.proposed,
    }
    return line, entry(found, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--clips", type=int, nargs="+", default=[8, 1, 5])
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    deadline, device = time.monotonic() + args.seconds, torch.device("cuda", torch.cuda.current_device())
    from latte_fast.kernels import measure_tiles

    table: dict[str, Any] = {}
    with args.out.open("a") as file:

        def write(line: dict[str, Any]) -> None:
            print(json.dumps(line), file=file, flush=True)

        write({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "why_not": blas_lt.why_not_loaded()})
        if blas_lt.why_not_loaded() is not None:
            return
        write({"version": blas_lt.version(device.index)})
        checks = [Product(way, *size, kind) for size in SMALL for kind in blas_lt.CODES for way in WAYS]
        races = [
            (layer, product)
            for clips in args.clips
            for layer, product in products(WIDTH, clips * TOKENS, torch.bfloat16)
        ]
        for case in [*checks, *races]:
            if time.monotonic() > deadline:
                write({"left_out": str(case)})
                continue
            try:
                if isinstance(case, Product):
                    write(check(case, device, 4))
                else:
                    line, table[case[1].key] = race(*case, device, measure_tiles.milliseconds)
                    write(line)
                    args.out.with_suffix(".table.json").write_text(json.dumps(table, indent=1))
            # one case's failure is a line, and the others go on
            except Exception as error:
                write({"failed": str(case), "why": repr(error)[:300]})
    if args.keep:
        measure_tiles.save(table, device)


if __name__ == "__main__":
    main()
