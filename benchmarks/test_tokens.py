"""The token transformer: a training step, and decoding against a bare read of its weights and the authors' loop."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import contenders as sizes
from benchmarks.contenders import device, no_grad
from latte_fast import TokenTransformer, reference, testing
from latte_fast.models.tats.decoder import Decoder, causal_context

HALF, FULL = torch.bfloat16, torch.float32
BATCHES = [pytest.param(1, marks=pytest.mark.quick), 8, pytest.param(32, marks=pytest.mark.full)]
# tokens of a lap, in the middle of a clip, where the cache is half full
LAP = 16


def given() -> dict[str, Any]:
    """The authors' sizes, and small ones where every benchmark is tried in a moment."""
    if sizes.SIDE < 32:
        return {"vocab_size": 64, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return {"vocab_size": 16384, "block_size": 1024}


@functools.lru_cache(maxsize=1)
def models(dtype: torch.dtype) -> tuple[TokenTransformer, Any]:
    """Ours and the oracle with the same weights."""
    torch.manual_seed(0)
    ours = TokenTransformer(**given()).eval()
    oracle = reference.token_transformer.TokenTransformer(**given()).eval()
    oracle.load_state_dict(ours.state_dict())
    return ours.to(device(), dtype), oracle.to(device(), dtype)


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(given()["vocab_size"], (batch, length), device=device())


class Ours:
    """A clip decoded by the static cache: a call feeds LAP tokens at a clip's middle."""

    def __init__(self, model: TokenTransformer, start: Tensor):
        self.context, self.next = causal_context(start), start[:, 0]
        self.decoder = Decoder(model, len(start), model.config.block_size)
        self.first = self.decoder.start(self.context)

    def __call__(self) -> Tensor:
        self.decoder.filled = self.decoder.position = self.context.tokens.shape[1]
        for _ in range(LAP):
            logits = self.decoder.step(self.next)
        return logits


class Authors:
    """The same tokens by the authors' loop, which joins all keys and values anew at each step."""

    def __init__(self, model: Any, start: Tensor):
        self.model, self.next, self.length = model, start[:, :1], start.shape[1]
        with torch.no_grad():
            _, self.past = model.with_past(start, torch.arange(self.length, device=start.device), None)

    def __call__(self) -> Tensor:
        past = self.past
        for i in range(LAP):
            place = torch.tensor([self.length + i], device=self.next.device)
            logits, past = self.model.with_past(self.next, place, past)
        return logits[:, -1]


def read_of(model: nn.Module) -> Callable[[], object]:
    """Returns what reads all weights of a step once, LAP times: the sum of their bits as 64-bit numbers."""
    skipped = ("tok_emb.weight", "pos_emb")
    weights = [p.detach().flatten() for name, p in model.named_parameters() if name not in skipped]
    whole = torch.cat([w.view(torch.uint8) for w in weights])
    words = whole[: len(whole) // 8 * 8].view(torch.int64)
    return lambda: [words.sum() for _ in range(LAP)]


@pytest.mark.parametrize("batch", BATCHES)
def test_decode(batch: int, compare: Any) -> None:
    ours, oracle = models(HALF)
    start = tokens(batch, given()["block_size"] // 2)
    mine, theirs = Ours(ours, start), Authors(oracle, start)
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(mine),
        "a bare read of the weights": read_of(ours),
        "the authors' cached loop": no_grad(theirs),
    }

    def check() -> None:
        full, _ = models(FULL)
        want = Ours(full, start)()
        models.cache_clear()
        testing.assert_no_worse_than_torch("logits", mine().cpu(), no_grad(theirs)().cpu(), want.cpu())

    compare(f"{LAP} tokens of {batch} clips, {title()}, bfloat16", contenders, check, seconds=15.0)


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


def title() -> str:
    return "{n_layer} layers of {n_embd}, {block_size} tokens".format_map({"n_layer": 24, "n_embd": 1024} | given())
