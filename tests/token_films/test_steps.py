"""Drawing by a step that asks the host for nothing: equal to a loop, as a graph and without; what is captured anew."""

import pytest
import torch
from torch import Tensor

from latte_fast import TokenTransformer
from latte_fast.models.tats.decoder import Decoder, causal_context, gap_context
from latte_fast.token_films.draw import Drawing, pick
from latte_fast.token_films.steps import Steps
from tests.helpers.counting import Count
from tests.helpers.played import Played
from tests.helpers.tiny_tokens import CODES, CONDITIONS, FRAME, GAP, pair, tokens

HOW = Drawing(1.0, 9, 0.9)


def numbers(batch: int, count: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def looped(model: TokenTransformer, context, shares: Tensor, how: Drawing) -> Tensor:
    """What a loop over the decoder draws, code by code."""
    decoder = Decoder(model, len(shares), model.config.block_size)
    logits, found = decoder.start(context), []
    for i in range(shares.shape[1]):
        found.append(pick(logits[:, CONDITIONS:], shares[:, i], how))
        if i + 1 < shares.shape[1]:
            logits = decoder.step(found[-1] + CONDITIONS)
    return torch.stack(found, 1)


def steps_of(model: TokenTransformer, batch: int = 2, how: Drawing = HOW) -> Steps:
    return Steps(model, batch, CONDITIONS, CODES, how)


@pytest.mark.parametrize("how", [HOW, Drawing(0.0), Drawing(1.0, 0, 1.0)], ids=str)
def test_steps_equal_a_loop(how: Drawing) -> None:
    model = pair()[0]
    steps, ticks = steps_of(model, how=how), []
    for seed, length, count in ((0, 5, 19), (1, 1, 24), (2, 20, 1)):
        context, shares = causal_context(tokens(2, length, seed)), numbers(2, count, seed)
        assert torch.equal(steps.draw(context, shares, ticks.append), looped(model, context, shares, how))
    assert ticks == [1] * (19 + 24 + 1)


def test_a_graph_draws_the_same(played: Played) -> None:
    """One capture serves all contexts, positions and numbers; each token but a context's first is one replay."""
    model = pair()[0]
    steps = steps_of(model)
    for seed, length, count in ((0, 5, 19), (1, 1, 24), (2, 9, 3)):
        context, shares = causal_context(tokens(2, length, seed)), numbers(2, count, seed)
        assert torch.equal(steps.draw(context, shares, lambda n: None), looped(model, context, shares, HOW))
    assert (played.captures, played.replays) == (1, 18 + 23 + 2)


def test_a_graph_fills_gaps(played: Played) -> None:
    """Where a token's position is not its place in the cache."""
    model = pair(**GAP)[0]
    for reading in ("trained", "released"):
        context = gap_context(model, tokens(3, 1 + FRAME), tokens(3, FRAME, 1), reading)
        shares = numbers(3, 3 * FRAME)
        found = steps_of(model, 3).draw(context, shares, lambda n: None)
        assert torch.equal(found, looped(model, context, shares, HOW))


def test_the_host_is_not_asked_in_a_step(played: Played) -> None:
    """In what a graph holds no tensor becomes a number."""
    model = pair()[0]
    steps = steps_of(model)
    steps.draw(causal_context(tokens(2, 5)), numbers(2, 3), lambda n: None)
    steps.decoder.reserve()
    with Count() as count:
        steps._replay()
    assert count.ran["decode_attention"] == len(model.blocks)
    assert not {
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "item",
        "masked_select",
        "unique_dim",
        "_unique2",
    } & set(count.ran)


def test_weights_in_place_and_elsewhere(played: Played) -> None:
    model = pair()[0]
    steps, context, shares = steps_of(model), causal_context(tokens(2, 5)), numbers(2, 12)

    def same() -> bool:
        return torch.equal(steps.draw(context, shares, lambda n: None), looped(model, context, shares, HOW))

    assert same() and played.captures == 1
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    assert same() and played.captures == 1
    model.head.weight.data = model.head.weight.data.clone() * 2
    assert same() and played.captures == 2
    model.to(torch.float64)
    assert same() and played.captures == 3
    replays = played.replays
    model.blocks[0].mlp.register_forward_hook(lambda module, args, out: -out)
    assert same() and (played.captures, played.replays) == (3, replays)


def test_no_token_beyond_the_block(played: Played) -> None:
    with pytest.raises(ValueError, match="tokens must fit into the 24 of the cache and block, got one more"):
        steps_of(pair()[0]).draw(causal_context(tokens(2, 20)), numbers(2, 6), lambda n: None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 9])
def test_a_graph_draws_the_same_on_gpu(dtype: torch.dtype, batch: int) -> None:
    model = pair()[0].to("cuda", dtype)
    steps = steps_of(model, batch)
    assert steps._replay is not None
    for seed, length, count in ((0, 5, 19), (1, 1, 24)):
        context, shares = causal_context(tokens(batch, length, seed).cuda()), numbers(batch, count, seed).cuda()
        assert torch.equal(steps.draw(context, shares, lambda n: None), looped(model, context, shares, HOW))
