"""Decoding with a static cache: equal to the authors' cached sampler and to an uncached loop, without a copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latte_fast import TokenTransformer
from latte_fast.models.tats.decoder import Decoder, causal_context, gap_context
from tests.helpers.counting import Count
from tests.helpers.guards import require_backend
from tests.helpers.tiny_tokens import FRAME, GAP, TINY, pair, tokens

close = {"rtol": 1e-10, "atol": 1e-11}


def drawn(model: TokenTransformer, context: Any, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Greedy tokens (B, steps) and the logits that each was drawn from."""
    decoder = Decoder(model, len(context.tokens), context.tokens.shape[1] + steps)
    logits = [decoder.start(context)]
    found = [logits[0].argmax(1)]
    for _ in range(steps - 1):
        logits.append(decoder.step(found[-1]))
        found.append(logits[-1].argmax(1))
    return torch.stack(found, 1), logits


def test_every_position_equals_the_whole_forward_and_the_authors_loop() -> None:
    ours, oracle = pair(torch.float64)
    start = tokens(3, 5)
    found, logits = drawn(ours, causal_context(start), 19)
    seen: list[Tensor] = []

    def pick(x: Tensor, step: int) -> Tensor:
        seen.append(x)
        return x.argmax(1)

    with torch.no_grad():
        theirs = oracle.sample_with_past(start, 19, pick)
        whole = ours(torch.cat([start, found[:, :-1]], 1))
        uncached = start
        for _ in range(19):
            uncached = torch.cat([uncached, oracle(uncached)[:, -1].argmax(1)[:, None]], 1)
    assert torch.equal(found, theirs) and torch.equal(found, uncached[:, 5:])
    for i, got in enumerate(logits):
        torch.testing.assert_close(got, seen[i], **close)
        torch.testing.assert_close(got, whole[:, 4 + i], **close)


def test_gap_as_trained_equals_the_whole_forward() -> None:
    """Each token is drawn from the row that learned to predict it, with both ends at their trained positions."""
    ours, oracle = pair(torch.float64, **GAP)
    before, after = tokens(2, 1 + FRAME), tokens(2, FRAME, 1)
    found, logits = drawn(ours, gap_context(ours, before, after, "trained"), 3 * FRAME)
    with torch.no_grad():
        whole = oracle(torch.cat([before, found, after[:, :-1]], 1))
    assert whole.shape[1] == GAP["block_size"]
    for i, got in enumerate(logits):
        torch.testing.assert_close(got, whole[:, FRAME + i], **close)


def test_gap_as_released_equals_the_authors_sampler() -> None:
    """The frame before does not see the one after: another future leaves its rows alone."""
    ours, oracle = pair(torch.float64, **GAP)
    before, after = tokens(2, 1 + FRAME), tokens(2, FRAME, 1)
    found, logits = drawn(ours, gap_context(ours, before, after, "released"), 3 * FRAME)
    seen: list[Tensor] = []

    def pick(x: Tensor, step: int) -> Tensor:
        seen.append(x)
        return x.argmax(1)

    with torch.no_grad():
        theirs = oracle.fill_gap(before, after, 3 * FRAME, pick)
    assert torch.equal(found, theirs)
    for got, want in zip(logits, seen, strict=True):
        torch.testing.assert_close(got, want, **close)
    trained = drawn(ours, gap_context(ours, before, after, "trained"), 1)[1][0]
    assert not torch.allclose(trained, logits[0])


class Storages(TorchDispatchMode):
    """Sizes in bytes of all new storages, and how many ops there were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        new = {x.untyped_storage()._cdata: x for x in tree_leaves(out) if isinstance(x, Tensor)}
        self.sizes += [x.untyped_storage().nbytes() for key, x in new.items() if key not in before]
        return out


def test_a_step_copies_no_cache() -> None:
    """The same bytes early and late; nothing as large as a layer's keys, though the cache is written in place."""
    torch.manual_seed(0)
    model = TokenTransformer(**TINY | {"block_size": 600}).eval()
    decoder = Decoder(model, 2, 600)
    where = decoder.cache.data_ptr()
    decoder.start(causal_context(tokens(2, 10)))
    early, late = Storages(), Storages()
    with early:
        decoder.step(torch.zeros(2, dtype=torch.int64))
    for _ in range(500):
        decoder.step(torch.zeros(2, dtype=torch.int64))
    with late:
        decoder.step(torch.zeros(2, dtype=torch.int64))
    keys = decoder.cache[0, 0].nbytes
    assert decoder.cache.data_ptr() == where and early.sizes == late.sizes
    assert max(late.sizes) < keys / 8 and sum(late.sizes) < 2 * keys


def test_a_step_is_five_ops_a_block() -> None:
    """Four of them linear; around them an embedding, a position, their sum, the count and the head."""
    model = pair()[0]
    decoder = Decoder(model, 2, 24)
    require_backend("small_linear", torch.zeros(2, 16), torch.zeros(3, 16))
    decoder.start(causal_context(tokens(2, 5)))
    fed = torch.zeros(2, dtype=torch.int64)
    with Count() as count:
        decoder.step(fed)
    layers = len(model.blocks)
    want = {"small_linear": 4 * layers + 1, "decode_attention": layers, "embedding": 1, "index_select": 1, "add": 1}
    assert dict(count.ran) == want | {"add_": 1} and not count.copies


@pytest.mark.parametrize("change", ["hook", "layer", "forward", "autocast"])
def test_a_changed_model_is_called(change: str) -> None:
    """Modules with hooks, layers of another type and a replaced forward are run as the whole forward runs them."""
    model = pair()[0]
    block = model.blocks[1]
    if change == "hook":
        block.mlp[2].register_forward_hook(lambda module, args, out: 2 * out)
    elif change == "layer":
        block.attn.proj = nn.Sequential(block.attn.proj, nn.Tanh())
    elif change == "forward":
        block.ln2.forward = lambda x: x
    context = torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast")
    with context, torch.no_grad():
        found, logits = drawn(model, causal_context(tokens(2, 5)), 6)
        whole = model(torch.cat([tokens(2, 5), found[:, :-1]], 1))
    close = {"rtol": 0.1, "atol": 0.1} if change == "autocast" else {"rtol": 1e-4, "atol": 1e-5}
    for i, got in enumerate(logits):
        torch.testing.assert_close(got, whole[:, 4 + i], **close)
    assert (logits[1].dtype == torch.bfloat16) == (change == "autocast")


def test_a_start_sees_weights_that_changed() -> None:
    model = pair()[0]
    decoder = Decoder(model, 2, 24)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.7)
    decoder.start(causal_context(tokens(2, 5)))
    got = decoder.step(torch.zeros(2, dtype=torch.int64))
    want = model(torch.cat([tokens(2, 5), torch.zeros(2, 1, dtype=torch.int64)], 1))[:, -1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_sequences_do_not_see_each_other() -> None:
    ours, _ = pair(torch.float64)
    start = tokens(3, 5)
    together = drawn(ours, causal_context(start), 10)[0]
    for i in range(3):
        assert torch.equal(drawn(ours, causal_context(start[i : i + 1]), 10)[0][0], together[i])


def test_a_decoder_starts_again() -> None:
    ours, _ = pair(torch.float64)
    decoder = Decoder(ours, 2, 24)
    first = decoder.start(causal_context(tokens(2, 9)))
    decoder.step(first.argmax(1))
    decoder.start(causal_context(tokens(2, 4, 5)))
    assert torch.equal(decoder.start(causal_context(tokens(2, 9))), first)


REFUSED: list[tuple[Callable[[TokenTransformer, TokenTransformer], Any], str]] = [
    (
        lambda m, g: Decoder(m, 2, 4).start(causal_context(tokens(2, 5))),
        r"tokens must be \(2, at most 4\), got \(2, 5\)",
    ),
    (lambda m, g: Decoder(m, 1, 30).start(causal_context(tokens(1, 25))), "at most the block's 24, got a prompt of 25"),
    (lambda m, g: gap_context(g, tokens(1, 4), tokens(1, 3)), "a gap must lie between a condition with 6 tokens and 6"),
    (lambda m, g: gap_context(g, tokens(1, 7), tokens(1, 6), "odd"), "reading must be released or trained, got 'odd'"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pair()[0], pair(**GAP)[0])


def test_no_token_beyond_the_block() -> None:
    ours, _ = pair()
    decoder = Decoder(ours, 1, 24)
    decoder.start(causal_context(tokens(1, 24)))
    with pytest.raises(ValueError, match="tokens must fit into the 24 of the cache and block, got one more"):
        decoder.step(torch.zeros(1, dtype=torch.int64))
