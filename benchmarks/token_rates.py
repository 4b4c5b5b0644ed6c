"""Tokens a second at several batches on one GPU, and decode_attention with other numbers of programs a head.

python -m benchmarks.token_rates --results token-rates.jsonl        about two minutes

Each batch is one race of `seconds`, a line of the file for each contender; what fails costs its own line.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import contenders as sizes
from benchmarks.contenders import no_grad
from benchmarks.race import race
from benchmarks.token_contenders import (
    HALF,
    LAP,
    Authors,
    Drawn,
    Gpt2,
    Gpt2Graph,
    Graph,
    Ours,
    Sdpa,
    compiled_sdpa,
    given,
    made,
    models,
    read_bytes,
    read_of,
    title,
    tokens,
)
from latte_fast import info, ops


def rates(batch: int, seconds: float, compiled: bool) -> list[dict[str, Any]]:
    """Races all contenders at a batch; returns a row each."""
    ours, oracle = models(HALF)
    start = tokens(batch, given()["block_size"] // 2)
    contenders: dict[str, Callable[[], object] | str] = {"ours": made(lambda: Ours(ours, start))}
    if start.is_cuda:
        contenders |= {
            "ours, a CUDA graph a token": made(lambda: Graph(ours, start)),
            "Hugging Face's GPT-2, a CUDA graph a token": made(lambda: Gpt2Graph(start)),
        }
        if compiled:
            contenders["SDPA, static cache, torch.compile"] = compiled_sdpa(ours, start)
    contenders |= {
        "ours, tokens drawn, the first launch by launch": made(lambda: Drawn(ours, start)),
        "Hugging Face's GPT-2, static cache": made(lambda: Gpt2(start)),
        "SDPA, static cache": made(lambda: Sdpa(ours, start)),
        "a bare read of the weights": read_of(ours),
        "the authors' cached loop": no_grad(Authors(oracle, start)),
    }
    rows = []
    for name, lap in race(contenders, seconds, rounds=(3, 20)).items():
        row: dict[str, Any] = {"batch": batch, "contender": name, "reason": lap.reason}
        if not lap.reason:
            row |= {"tokens_per_s": LAP * batch / lap.median, "ms": 1e3 * lap.median / LAP, "low": 1e3 * lap.low / LAP,
                    "rounds": lap.rounds, "read_gb_per_s": LAP * read_bytes(ours) / lap.median / 1e9}  # fmt: skip
        rows.append(row)
    return rows


def splits(batch: int, position: int) -> list[dict[str, Any]]:
    """Times decode_attention of a layer with 1 to 32 programs a head, from a cold cache."""
    from latte_fast.kernels import decode_attention, measure_tiles

    of = {"n_head": 16, "n_embd": 1024} | given()
    width, device = of["n_embd"] // of["n_head"], torch.device("cuda")
    qkv = torch.randn(batch, 3, of["n_head"], width, device=device, dtype=HALF)
    cache = torch.randn(2, batch, of["n_head"], of["block_size"], width, device=device, dtype=HALF)
    place = torch.tensor([position], device=device)
    config = decode_attention.config
    default = config(qkv, cache)
    rows = []
    try:
        for count in sorted({1, 2, 4, 8, 16, 32, default.splits}):
            decode_attention.config = lambda *args, count=count: replace(default, splits=count)
            ms = measure_tiles.milliseconds(lambda: ops.decode_attention(qkv, cache, place))
            rows.append({"op": "decode_attention", "batch": batch, "position": position, "splits": count, "ms": ms,
                         "default": count == default.splits})  # fmt: skip
    finally:
        decode_attention.config = config
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="numbers of clips")
    parser.add_argument("--seconds", type=float, default=12.0, help="seconds of a batch in its race")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds after which no part begins")
    parser.add_argument("--compiled", action="store_true", help="race torch.compile too, which takes minutes")
    parser.add_argument("--results", type=Path, default=Path("token-rates.jsonl"), help="file of a line a row")
    parser.add_argument("--tiny", action="store_true", help="a model whose times mean nothing")
    asked = parser.parse_args(arguments)
    if asked.tiny:
        sizes.shrink()
    gpu = torch.cuda.is_available()
    about = {"device": info.gpu() if gpu else info.cpu(), "what": title(), "dtype": "bfloat16"}
    parts: list[Callable[[], list[dict[str, Any]]]] = [
        lambda batch=batch: rates(batch, asked.seconds, asked.compiled)  # type: ignore[misc]
        for batch in asked.batches
    ]
    places = [(batch, place) for batch in asked.batches for place in (128, 512, 1023)] if gpu else []
    parts += [lambda pair=pair: splits(*pair) for pair in places]  # type: ignore[misc]
    begin = time.perf_counter()
    with asked.results.open("a") as file:
        for part in parts:
            if time.perf_counter() - begin > asked.limit:
                break
            try:
                rows = part()
            except Exception as error:  # the rest is measured all the same
                rows = [{"failed": repr(error)[:300]}]
            for row in rows:
                line = json.dumps(about | row | {"at_s": round(time.perf_counter() - begin, 1)})
                file.write(line + "\n")
                print(line, flush=True)
            file.flush()


if __name__ == "__main__":
    main()
