"""Tokens one after the other, by a transformer with a static cache of keys and values that is never copied.

A step on an unchanged model is five ops a block, of which four read the weights once and one the cache, and nothing in
it is read by the host: where it writes and which position it has lie on the device, so that a CUDA graph serves all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast.backends import autocast_dtype
from latte_fast.models.tats.transformer import Attend, Attention, Block, Packed, TokenTransformer, check_tokens
from latte_fast.modules.hooks import is_untouched
from latte_fast.modules.linear_int8 import LinearInt8
from latte_fast.ops import causal_attention
from latte_fast.ops.registration import REGISTRY

# modules whose forward a step computes without calling them
_KINDS = (Attention, Block, LinearInt8, TokenTransformer, nn.Embedding, nn.GELU, nn.LayerNorm, nn.Linear,
          nn.ModuleList, nn.Sequential)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """Tokens that are given at once, before the first that is drawn.

    Args:
        tokens: tokens (B, L).
        positions: position of each of the L tokens.
        prefix: number of first tokens that all of them see; the rest is causal.
        row: row whose logits the first token is drawn from.
        after: position of the first token that is drawn.
        places: place in the second table of positions, counted in the flat table, of each code of the window, of which
            the first comes after `conditions` tokens; None for a model that sees whole frames.
        conditions: number of tokens before the first code.
    """

    tokens: Tensor
    positions: Sequence[int]
    prefix: int
    row: int
    after: int
    places: Tensor | None = None
    conditions: int = 1


class Decoder:
    """Feeds tokens to a transformer and keeps their keys and values, in room for `length` tokens of `batch` sequences.

    Weights of query, key and value are packed at each start; one that changes after it is seen by the next.

    Args:
        model: transformer, in eval mode.
        batch: number of sequences.
        length: number of tokens that fit.
    """

    def __init__(self, model: TokenTransformer, batch: int, length: int):
        config = model.config
        self.model, self.batch, self.room = model, batch, length
        weight = model.tok_emb.weight
        # one tensor for all layers: (n_layer, 2, B, H, length, K)
        shape = (config.n_layer, 2, batch, config.n_head, length, config.n_embd // config.n_head)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            self.packed = [block.attn.packed() for block in model.blocks]
        self.filled = 0  # tokens in the cache
        self.position = 0  # of the next token
        self.at = torch.zeros(2, dtype=torch.int64, device=weight.device)  # both, where a step reads them
        # (block, D), the weights themselves unless a second table is added
        self.positions = model.pos_emb.detach()[0]
        if config.vtokens_pos is not None:
            self.positions = self.positions.clone()
        self._bind()

    @torch.no_grad()
    def start(self, context: Context) -> Tensor:
        """Forgets all tokens, feeds a context and returns the logits (B, vocab_size) of its row."""
        tokens = context.tokens
        check_tokens(tokens, self.model.config)
        count = tokens.shape[1]
        if len(tokens) != self.batch or count > self.room:
            rule = f"({self.batch}, at most {self.room})"
            raise ValueError(f"Decoder: tokens must be {rule}, got {tuple(tokens.shape)}")
        self.packed = [
            in_place(packed, block.attn.packed()) for block, packed in zip(self.model.blocks, self.packed, strict=True)
        ]
        self._bind()
        self.seek(count, context.after)
        self._place(context)
        places = torch.tensor(context.positions, device=tokens.device)
        x = self.model.tok_emb(tokens) + self.positions[places]
        return self._logits(self._run(x, context.prefix), context.row)

    def _place(self, context: Context) -> None:
        """Adds the second table's part to the positions, in place, as a graph may read them."""
        places, table = context.places, self.model.config.vtokens_pos
        if table is None:
            if places is not None:
                raise ValueError("Decoder: places must be None for a model without vtokens_pos, got some")
            self.positions = self.model.pos_emb.detach()[0]
            return
        self.positions.copy_(self.model.pos_emb[0])
        if places is not None:
            here = self.positions[context.conditions :][: len(places)]
            here += self.model.vtokens_pos_emb[0].flatten(0, 2)[places[: len(here)].to(here.device)]

    def seek(self, filled: int, position: int) -> None:
        """Says how many of the cache's tokens count, and which position the next one has."""
        self.filled, self.position = filled, position
        self.at.copy_(torch.tensor([filled, position]))

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Feeds the next token of every sequence, (B,), and returns the logits (B, vocab_size) of what follows."""
        self.reserve()
        if self.plain:
            return self.advance(tokens)
        x = self.model.tok_emb(tokens[:, None]) + self.positions[self.position - 1 : self.position]
        return self._logits(self._run(x, 0), 0)

    def reserve(self) -> None:
        """Counts a step on the host, and refuses one that does not fit."""
        if self.filled >= self.room or self.position >= self.model.config.block_size:
            limit = min(self.room, self.model.config.block_size)
            raise ValueError(f"Decoder: tokens must fit into the {limit} of the cache and block, got one more")
        self.filled, self.position = self.filled + 1, self.position + 1

    @torch.no_grad()
    def advance(self, tokens: Tensor) -> Tensor:
        """Computes a step of an unchanged model from what lies on the device alone; see `step`."""
        model, filled, shape = self.model, self.at[:1], (3, self.model.config.n_head, -1)
        x = model.tok_emb(tokens) + self.positions.index_select(0, self.at[1:])  # (B, D)
        calls, attend = self.calls, self.attend
        for layer, cache in zip(self.layers, self.cache, strict=True):
            qkv = calls[0](x, *layer[0]).unflatten(1, shape)  # (B, 3, H, K)
            proj, fc2 = layer[1], layer[3]
            x = calls[1](attend(qkv, cache, filled, self.scale), *proj[0], x, False, 0.0, proj[1])
            x = calls[3](calls[2](x, *layer[2]), *fc2[0], x, False, 0.0, fc2[1])
        self.at.add_(1)
        return calls[4](x, *self.head)

    @torch.no_grad()
    def _bind(self) -> None:
        """Finds the arguments of a step's ops and what serves them, so that a step does not look for either."""
        model, self.plain = self.model, is_plain(self.model) and None not in self.packed
        if not self.plain:
            return

        def normed(packed: Any, norm: nn.LayerNorm, gelu: bool = False) -> tuple[Any, ...]:
            weight, bias, scale = packed
            return weight, bias, norm.weight, norm.bias, None, gelu, norm.eps, scale

        def of(layer: Any) -> Packed:
            return layer.weight, layer.bias, layer.weight_scale if type(layer) is LinearInt8 else None

        def plain(layer: Any) -> tuple[Any, ...]:
            weight, bias, scale = of(layer)
            return (weight, bias, None, None), scale

        self.layers = [
            (
                normed(packed, block.ln1),
                plain(block.attn.proj),
                normed(of(block.mlp[0]), block.ln2, gelu=True),
                plain(block.mlp[2]),
            )
            for block, packed in zip(model.blocks, self.packed, strict=True)
        ]
        self.head = normed(of(model.head), model.ln_f)
        linear, attend = REGISTRY["small_linear"], REGISTRY["decode_attention"]
        x = model.tok_emb.weight.new_zeros(self.batch, model.config.n_embd)
        h = x.new_zeros(self.batch, 4 * model.config.n_embd)
        first = self.layers[0]
        proj, fc2 = ((*args, x, False, 0.0, scale) for args, scale in (first[1], first[3]))
        rows = ((x, *first[0]), (x, *proj), (x, *first[2]), (h, *fc2))
        self.calls = [linear.bound(*args) for args in (*rows, (x, *self.head))]
        qkv = x.new_zeros(self.batch, 3, *self.cache.shape[3:6:2])
        self.scale = qkv.shape[-1] ** -0.5
        self.attend = attend.bound(qkv, self.cache[0], self.at[:1], self.scale)

    def _run(self, x: Tensor, prefix: int) -> Tensor:
        """Feeds x (B, n, D), the last n of the tokens that count, to all blocks."""
        count = x.shape[1]
        for block, packed, layer in zip(self.model.blocks, self.packed, self.cache, strict=True):
            x = block(x, self._attend(layer, count, prefix), packed)
        return x

    def _attend(self, layer: Tensor, count: int, prefix: int) -> Attend:
        """Returns attention to the cache of a layer, (2, B, H, length, K), after the new tokens are written into it.

        New tokens are all that there are, of which the first `prefix` are seen by all; or one, which sees all.
        """
        first, last = self.filled - count, self.filled

        def attend(qkv: Tensor) -> Tensor:
            layer[:, :, :, first:last] = qkv[:, :, 1:].permute(2, 0, 3, 1, 4)
            if not first:
                return causal_attention(qkv, prefix)
            query, keys, values = qkv[:, :, 0].transpose(1, 2), layer[0, :, :, :last], layer[1, :, :, :last]
            return F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)

        return attend

    def _logits(self, x: Tensor, row: int) -> Tensor:
        return self.model.head(self.model.ln_f(x[:, row]))


def in_place(ours: Packed | None, new: Packed | None) -> Packed | None:
    """Returns new weights in the place of those that a graph may read, or by themselves if they are of another kind."""
    if ours is None or new is None or ours[0].dtype != new[0].dtype:
        return new
    for a, b in zip(ours, new, strict=True):
        if a is not None and b is not None:
            a.copy_(b)
    return ours


def is_plain(model: TokenTransformer) -> bool:
    """Whether a step may compute what the modules compute instead of calling them: no layer exchanged, no hook."""
    weight = model.tok_emb.weight
    return (
        autocast_dtype(weight.device.type) is None
        and all(type(module) in _KINDS and is_untouched(module) for module in model.modules())
        and all(p.dtype == weight.dtype for p in model.parameters())
    )


def causal_context(tokens: Tensor) -> Context:
    """A context whose tokens follow each other from position 0, as a causal model was trained on them."""
    count = tokens.shape[1]
    return Context(tokens, range(count), 0, count - 1, count)


def gap_context(model: TokenTransformer, before: Tensor, after: Tensor, reading: str = "trained") -> Context:
    """Returns the context of a gap: `before` (B, c + u), conditions and the frame before it, `after` (B, u).

    The authors' sampler shows a model something else than its training did, and their weights are used with it. Of the
    two readings, "released" is their sampler: both ends through the top left of the block's mask, so that the frame
    before does not see the one after, whose positions are the block's last u and which is causal; the first token is
    drawn from the row of the last token after the gap. "trained" is their training: both ends see each other, the
    positions after the gap are one higher, its last token is left out, and the first token is drawn from the row of the
    last token before it.
    """
    block, u = model.config.block_size, after.shape[1]
    count = before.shape[1]
    if u != model.config.n_unmasked or count != u + 1:
        need = model.config.n_unmasked
        raise ValueError(
            f"TokenTransformer: a gap must lie between a condition with {need} tokens and {need} tokens, for which the "
            f"model was made, got {count - 1} and {u}"
        )
    if reading == "released":
        positions = [*range(count), *range(block - u, block)]
        return Context(torch.cat([before, after], 1), positions, count, count + u - 1, count)
    if reading != "trained":
        raise ValueError(f"TokenTransformer: reading must be released or trained, got {reading!r}")
    tokens = torch.cat([before, after[:, : u - 1]], 1)
    return Context(tokens, [*range(count), *range(block - u + 1, block)], count + u - 1, count - 1, count)
