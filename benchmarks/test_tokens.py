"""The token transformer: a training step, and decoding against a bare read of its weights and the authors' loop."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.contenders import gated, no_grad
from benchmarks.token_contenders import (
    FULL,
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
from latte_fast import TokenTransformer, testing

BATCHES = [pytest.param(1, marks=pytest.mark.quick), 8, pytest.param(32, marks=pytest.mark.full)]


@pytest.mark.parametrize("batch", BATCHES)
def test_decode(batch: int, compare: Any, benchmark: Any) -> None:
    ours, oracle = models(HALF)
    start = tokens(batch, given()["block_size"] // 2)
    mine, theirs = Ours(ours, start), no_grad(Authors(oracle, start))
    same = theirs().cpu()
    want = no_grad(Ours(models(FULL)[0], start))().cpu()
    models.cache_clear()

    def right(run: Callable[[], Tensor]) -> None:
        testing.assert_no_worse_than_torch("logits", no_grad(run)().cpu(), same, want)

    def checked(run: Callable[[], Tensor]) -> Callable[[], Any] | str:
        return gated(lambda: right(run), no_grad(run))

    contenders: dict[str, Callable | str] = {"ours": no_grad(mine)}
    if start.is_cuda:
        contenders |= {"ours, a CUDA graph a token": checked(Graph(ours, start))}
        contenders |= {"SDPA, static cache, torch.compile": compiled_sdpa(ours, start)}
        contenders |= {"Hugging Face's GPT-2, a CUDA graph a token": made(lambda: Gpt2Graph(start))}
    contenders |= {
        "ours, tokens drawn, the first launch by launch": no_grad(Drawn(ours, start)),
        "SDPA, static cache": checked(Sdpa(ours, start)),
        "Hugging Face's GPT-2, static cache": made(lambda: Gpt2(start)),
        "a bare read of the weights": read_of(ours),
        "the authors' cached loop": theirs,
    }
    clips = f"{batch} clip{'s' * (batch > 1)}"
    text = f"{LAP} tokens of {clips}, {title()}, bfloat16"
    laps = compare(text, contenders, lambda: right(mine), seconds=15.0, bytes=LAP * read_bytes(ours))
    rates = {name: LAP * batch / lap.median for name, lap in laps.items() if not lap.reason}
    benchmark.extra_info["tokens a second"] = rates
    print(*(f"{rate:10.0f} tokens/s  {name}" for name, rate in rates.items()), sep="\n")


@pytest.mark.full
def test_decode_as_shipped(compare: Any) -> None:
    """In fp32, as the authors' scripts run."""
    ours, oracle = models(FULL)
    start = tokens(1, given()["block_size"] // 2)
    mine, theirs = Ours(ours, start), Authors(oracle, start)
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(mine),
        "a bare read of the weights": read_of(ours),
        "the authors' cached loop": no_grad(theirs),
    }

    def check() -> None:
        assert testing.relative_error(mine(), no_grad(theirs)()) <= 3e-6

    compare(f"{LAP} tokens of 1 clip, {title()}, float32", contenders, check, seconds=15.0)


@pytest.mark.full
def test_training_step(compare: Any) -> None:
    """Forward and backward of a clip's cross-entropy under bf16 autocast, without an update."""
    ours, oracle = models(FULL)
    x = tokens(1, given()["block_size"])
    targets = x.roll(-1, 1)

    def losses(model: Any) -> Tensor:
        with torch.autocast(x.device.type, HALF):
            if isinstance(model, TokenTransformer):
                return model(x, targets)
            return nn.functional.cross_entropy(model(x).movedim(-1, 1).float(), targets, reduction="none")

    def step(model: Any) -> None:
        losses(model).mean().backward()
        model.zero_grad()

    contenders: dict[str, Callable | str] = {
        "ours": lambda: step(ours),
        "oracle eager (the authors' formula)": lambda: step(oracle),
    }

    def check() -> None:
        with torch.no_grad():
            want = nn.functional.cross_entropy(oracle(x).movedim(-1, 1), targets, reduction="none")
            testing.assert_no_worse_than_torch("loss", losses(ours), losses(oracle), want)

    compare(f"training step of 1 clip, {title()}, bf16 autocast", contenders, check, seconds=30.0)
