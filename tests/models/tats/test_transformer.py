"""The token transformer against the authors' formula: masks, gradients, keys, counts, the loss, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast import TokenTransformer, testing
from latte_fast.models.tats.token_loss import cross_entropy
from latte_fast.models.tats.transformer_config import TransformerConfig
from latte_fast.reference.token_transformer import mask_of
from tests.helpers.counting import Count
from tests.helpers.meta import on_meta
from tests.helpers.tiny_tokens import FRAME, GAP, TINY, pair, tokens

CELLS = [
    pytest.param({}, 24, id="causal"),
    pytest.param({}, 1, id="one"),
    pytest.param(GAP, 30, id="gap"),
    pytest.param(GAP, 27, id="gap-shorter"),
    pytest.param(GAP, 13, id="gap-without-its-end"),
    pytest.param(GAP, 5, id="gap-first-tokens"),
    pytest.param({"n_unmasked": 1}, 24, id="one-unmasked"),
    pytest.param({"n_unmasked": 12}, 24, id="no-gap"),
]


@pytest.mark.parametrize(("changes", "length"), CELLS)
def test_logits_and_gradients_equal_the_oracle(changes: dict[str, Any], length: int) -> None:
    for dtype, limit in ((torch.float32, 3e-6), (torch.float64, 1e-11)):
        ours, oracle = pair(dtype, **changes)
        x = tokens(2, length)
        got, want = ours(x), oracle(x)
        assert testing.relative_error(got, want) <= limit
        upstream = torch.randn(want.shape, dtype=torch.float64)
        got.backward(upstream.to(dtype)), want.backward(upstream)
        largest = max(p.grad.abs().max().item() for p in oracle.parameters())
        for (name, p), q in zip(ours.named_parameters(), oracle.parameters(), strict=True):
            if q.grad.abs().max() < (nothing := 8 * torch.finfo(dtype).eps * largest):
                # keys' biases have no gradient in exact arithmetic
                assert name.endswith("key.bias") or length == 1
                assert p.grad.abs().max() < nothing, name
            else:
                assert testing.relative_error(p.grad, q.grad) <= 4 * limit, name


def test_gap_mask_is_a_prefix_after_a_permutation() -> None:
    """The mask of the published interpolator: 512 tokens that all see, then 768 causal ones."""
    u, block = 256, 1280
    front, back = TransformerConfig(2, block, 1, 1, 1, u).ends(block)
    assert (front, back) == (257, 255)
    order = [*range(front), *range(block - back, block), *range(front, block - back)]
    prefix = torch.ones(block, block, dtype=torch.bool).tril()
    prefix[:, : front + back] = True
    assert torch.equal(mask_of(block, u)[order][:, order], prefix)
    assert mask_of(block, u).float().mean().item() == pytest.approx(0.58, abs=0.005)


def test_half_precision_is_no_worse_than_torch() -> None:
    ours, oracle = pair(**GAP)
    x = tokens(2, 30)
    same = oracle.bfloat16()(x)
    want = pair(**GAP)[1](x)
    testing.assert_no_worse_than_torch("logits", ours.bfloat16()(x), same, want)


def test_second_table_of_positions() -> None:
    ours, oracle = pair(torch.float64, vtokens_pos=(4, 3, 5))
    x = tokens(2, 2 + 11)
    box = ((1, 3), (0, 3), (2, 4))
    got = ours(x, box=box, conditions=2)
    torch.testing.assert_close(got, oracle(x, tuple(slice(*edge) for edge in box), 2), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(got, ours(x))
    with pytest.raises(ValueError, match="box must hold the 12 codes"):
        ours(tokens(2, 13), box=((0, 1), (0, 3), (0, 3)))
    with pytest.raises(ValueError, match=r"box must be inside the table's \(4, 3, 5\)"):
        ours(x, box=((0, 5), (0, 3), (0, 3)))
    with pytest.raises(ValueError, match="box must be None for a model without vtokens_pos"):
        pair()[0](x, box=box)


@pytest.mark.parametrize(
    ("vocab", "block", "u", "want"),
    [
        (16384, 1024, 0, 336_914_432),
        (16384 + 101, 1024, 0, 337_121_280),
        (16384, 1280, 256, 337_176_576),
        (65_792, 1280, 0, 438_364_160),
    ],
)
def test_published_sizes(vocab: int, block: int, u: int, want: int) -> None:
    with on_meta():
        model = TokenTransformer(vocab, block, n_unmasked=u)
    assert sum(p.numel() for p in model.parameters()) == want
    assert sum(p.numel() for p in model.blocks[0].parameters()) == 12_596_224
    assert not list(model.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_of_targets(dtype: torch.dtype) -> None:
    """Rows from `start` on, in parts, equal the cross-entropy of all logits; every gradient too."""
    ours, oracle = pair(dtype)
    x, targets = tokens(3, 12), tokens(3, 7, 1)
    upstream = torch.randn(3, 7, dtype=torch.float64)
    got = ours(x, targets, 4)
    want = nn.functional.cross_entropy(oracle(x)[:, 4:11].movedim(-1, 1), targets, reduction="none")
    limit = 3e-6 if dtype == torch.float32 else 1e-11
    assert testing.relative_error(got, want) <= limit
    got.backward(upstream.to(dtype)), want.backward(upstream)
    for (name, p), q in zip(ours.named_parameters(), oracle.parameters(), strict=True):
        if name.endswith("key.bias"):
            continue
        assert testing.relative_error(p.grad, q.grad) <= 4 * limit, name


def test_cross_entropy_in_parts() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(9, (2, 5))
    for at_once in (1, 27, 1000):
        assert torch.autograd.gradcheck(lambda a, b, n=at_once: cross_entropy(a, b, targets, n), (x, weight))


def test_cross_entropy_holds_a_part_of_the_logits() -> None:
    x, weight = torch.randn(1, 64, 4).bfloat16(), torch.randn(500, 4).bfloat16()
    targets = torch.randint(500, (1, 64))
    with Count() as count:
        largest = max((op.numel() for op in outputs(lambda: cross_entropy(x, weight, targets, 8 * 500))), default=0)
    assert count.ran["mm"] == 8 and largest == 8 * 500


def outputs(run: Any) -> list[Tensor]:
    """Returns everything that the ops of a call return."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[Tensor] = []

    class Keep(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            found.extend(x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor))
            return out

    with Keep():
        run()
    return found


def test_loss_under_autocast_is_no_worse_than_torch() -> None:
    ours, oracle = pair()
    x, targets = tokens(3, 12), tokens(3, 7, 1)
    want = nn.functional.cross_entropy(oracle(x)[:, 4:11].movedim(-1, 1), targets, reduction="none")
    single = oracle.float()
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(x, targets, 4)
        same = nn.functional.cross_entropy(single(x)[:, 4:11].movedim(-1, 1).float(), targets, reduction="none")
    assert got.dtype == torch.float32
    testing.assert_no_worse_than_torch("loss", got.detach(), same.detach(), want.detach())


def test_changed_layers_are_called() -> None:
    """A hook on a query is heard, though query, key and value are one product otherwise."""
    ours, _ = pair()
    x = tokens(1, 9)
    plain = ours(x)
    handle = ours.blocks[0].attn.query.register_forward_hook(lambda m, args, out: out * 2)
    heard = ours(x)
    handle.remove()
    head = ours.head.register_forward_hook(lambda m, args, out: out * 2)
    loss = ours(x, x, 0)
    head.remove()
    assert not torch.allclose(heard, plain) and torch.equal(ours(x), plain)
    assert not torch.allclose(loss, ours(x, x, 0))


def test_block_compiles_in_one_graph() -> None:
    ours, _ = pair()
    x = tokens(2, 9)
    assert torch._dynamo.explain(ours.forward)(x).graph_break_count == 0


REFUSED = [
    (lambda m: m(tokens(1, 25)), "tokens must be at most the block's 24, got a prompt of 25"),
    (lambda m: m(tokens(1, 9) + 3), r"tokens must be in 0 .. 22, the model's vocabulary, got \d .. 2[3-5]"),
    (lambda m: m(tokens(1, 9).float()), r"tokens must be \(B, L\) int64, got \(1, 9\) float32"),
    (lambda m: TokenTransformer(**TINY | {"n_head": 3}), "n_embd must be a multiple of n_head = 3, got 16"),
    (lambda m: TokenTransformer(**TINY | {"n_unmasked": 13}), "n_unmasked must be 0, or so that both ends fit"),
    (lambda m: TokenTransformer(**TINY | {"vocab_size": 0}), "vocab_size must be at least 1, got 0"),
    (lambda m: TokenTransformer(**TINY | {"vtokens_pos": (1, 2)}), "vtokens_pos must be None or the"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pair()[0])


def test_frames_are_what_the_helper_says() -> None:
    assert GAP["block_size"] == 5 * FRAME and TransformerConfig(**GAP).ends(30) == (FRAME + 1, FRAME - 1)
