"""Draws tokens one after the other, on a GPU by the replay of one CUDA graph a token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latte_fast.cuda_graphs import replay
from latte_fast.models.tats.decoder import Context, Decoder
from latte_fast.models.tats.transformer import TokenTransformer
from latte_fast.token_films.draw import Drawing, pick

Tick = Callable[[int], object]
# steps that a capture runs before it, and itself
_CAPTURED = replay.WARM_UPS + 1


class Steps:
    """Draws the tokens of `batch` sequences after a context, up to `count` at a time.

    All that differs from step to step lies on the device: the tokens, their place and the numbers that decide them. So
    a step asks the host for nothing, and on a GPU an unchanged model's is captured once and replayed.

    Args:
        model: transformer, in eval mode.
        batch: number of sequences.
        first: number of the first code in the vocabulary.
        codes: number of codes.
        how: how tokens are drawn from their probabilities.
        holds: whether some tokens may be there already, between those that are drawn.
    """

    def __init__(self, model: TokenTransformer, batch: int, first: int, codes: int, how: Drawing, holds: bool = False):
        self.model, self.batch, self.first, self.codes, self.how = model, batch, first, codes, how
        self.holds = holds
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        count, device = self.model.config.block_size, self.model.pos_emb.device
        self.decoder = Decoder(self.model, self.batch, count)
        self.token = torch.zeros(self.batch, dtype=torch.int64, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.shares = torch.zeros(count, self.batch, dtype=torch.float64, device=device)
        self.drawn = torch.zeros(count, self.batch, dtype=torch.int64, device=device)
        self.held = torch.full_like(self.drawn, -1) if self.holds else None
        self._key = self._weights()
        self._replay: Callable[[], None] | None = None
        # a capture runs steps, from place 0 of the empty cache on
        if replay.on_gpu(self.token) and self.decoder.plain and count >= _CAPTURED and not replay.is_capturing():
            self._replay, _ = replay.capture(self._step, device, replay.new_pool())

    @torch.no_grad()
    def draw(self, context: Context, shares: Tensor, tick: Tick, held: Tensor | None = None) -> Tensor:
        """Returns the codes (B, n) that the numbers `shares` (B, n) in [0, 1) choose, one after the other.

        Where `held` (B, n) has a code and not -1, it stands in place of a drawn one.
        """
        if self._key != self._weights():
            self._begin()
        count = shares.shape[1]
        self.shares[:count].copy_(shares.t())
        if self.held is not None:
            self.held.fill_(-1)
            if held is not None:
                self.held[:count].copy_(held.t())
        self.place.zero_()
        self._pick(self.decoder.start(context))
        tick(1)
        for _ in range(count - 1):
            if self._replay is not None and self.decoder.plain:
                self.decoder.reserve()
                self._replay()
            else:
                self._pick(self.decoder.step(self.token))
            tick(1)
        return self.drawn[:count].t().clone()

    def _step(self) -> Tensor:
        self._pick(self.decoder.advance(self.token))
        return self.token

    def _pick(self, logits: Tensor) -> None:
        """Draws a code of each sequence, keeps it, and makes it the next step's token."""
        share = self.shares.index_select(0, self.place)[0]
        code = pick(logits[:, self.first : self.first + self.codes], share, self.how)
        if self.held is not None:
            held = self.held.index_select(0, self.place)[0]
            code = torch.where(held < 0, code, held)
        self.drawn.index_copy_(0, self.place, code[None])
        self.token.copy_(code + self.first)
        self.place.add_(1)

    def _weights(self) -> list[Any]:
        """What a graph fixes of the weights: where they lie, and as what."""
        weights = (*self.model.parameters(), *self.model.buffers())  # of int8 they are buffers
        return [(p.data_ptr(), p.dtype, p.device) for p in weights]
