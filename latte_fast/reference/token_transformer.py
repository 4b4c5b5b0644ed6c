"""The oracle of TATS's transformer: the authors' formula with a mask in every layer, and their cached sampler.

The sampler joins all keys and values anew at each step, and its first step of a gap sees what the authors' code shows
it: the top left of the mask.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Past = list[tuple[Tensor, Tensor]]


def mask_of(block: int, n_unmasked: int) -> Tensor:
    """The mask of a whole block (block, block), True where a row sees a column."""
    mask = torch.ones(block, block, dtype=torch.bool).tril()
    u = n_unmasked
    if u:
        mask[:, : u + 1] = True
        if u > 1:
            mask[:, -(u - 1) :] = True
            mask[-(u - 1) :, u + 1 : block - (u - 1)] = False
    return mask


class Attention(nn.Module):
    def __init__(self, block: int, heads: int, width: int, n_unmasked: int):
        super().__init__()
        self.heads = heads
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.register_buffer("mask", mask_of(block, n_unmasked), persistent=False)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, L, D = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(B, L, self.heads, D // self.heads).transpose(1, 2)  # (B, H, L, K)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        present = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(D // self.heads)
        if past is None:
            # a step from a cache has one row, which sees all that came before
            scores = scores.masked_fill(~self.mask[:L, :L], -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, L, D)
        return self.proj(y), present


class Block(nn.Module):
    def __init__(self, block: int, heads: int, width: int, n_unmasked: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(block, heads, width, n_unmasked)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, present = self.attn(self.ln1(x), past)
        x = x + y
        return x + self.mlp(self.ln2(x)), present


class TokenTransformer(nn.Module):
    """The authors' GPT: tokens (B, L) to logits (B, L, vocab_size)."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int = 24,
        n_head: int = 16,
        n_embd: int = 1024,
        n_unmasked: int = 0,
        vtokens_pos: tuple[int, int, int] | None = None,
    ):
        super().__init__()
        self.block_size, self.n_unmasked = block_size, n_unmasked
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        if vtokens_pos is not None:
            self.vtokens_pos_emb = nn.Parameter(torch.zeros(1, *vtokens_pos, n_embd))
        self.blocks = nn.ModuleList([Block(block_size, n_head, n_embd, n_unmasked) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, tokens: Tensor, box: tuple[slice, slice, slice] | None = None, conditions: int = 1) -> Tensor:
        x = self.tok_emb(tokens) + self.pos_emb[:, : tokens.shape[1]]
        if box is not None:
            where = (slice(None), *box)
            added = self.vtokens_pos_emb[where].flatten(1, 3)[:, : tokens.shape[1] - conditions]
            x = torch.cat([x[:, :conditions], x[:, conditions:] + added], 1)
        for block in self.blocks:
            x, _ = block(x)
        return self.head(self.ln_f(x))

    def with_past(self, tokens: Tensor, positions: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Returns the logits of a step and what every layer's cache has become, joined anew."""
        x = self.tok_emb(tokens) + self.pos_emb[:, positions]
        held: Past = []
        for i, block in enumerate(self.blocks):
            x, present = block(x, None if past is None else past[i])
            joined = present if past is None else tuple(torch.cat([a, b], -2) for a, b in zip(past[i], present))  # noqa: B905
            held.append((joined[0], joined[1]))
        return self.head(self.ln_f(x)), held

    def sample_with_past(self, start: Tensor, steps: int, pick: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The authors' cached sampler: returns `steps` tokens (B, steps) after `start` (B, L); `pick` takes logits."""
        past: Past | None = None
        tokens, drawn, positions = start, [], torch.arange(start.shape[1])
        for step in range(steps):
            logits, past = self.with_past(tokens, positions, past)
            tokens = pick(logits[:, -1], step)[:, None]
            positions = positions[-1:] + 1
            drawn.append(tokens)
        return torch.cat(drawn, 1)

    def fill_gap(self, past_frame: Tensor, future: Tensor, steps: int, pick: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The authors' sampler of a gap: `past_frame` (B, 1 + u) with its condition, `future` (B, u).

        In one step both ends go through the top left of the mask, the future's positions the block's last u. The first
        token is drawn from the future's last row.
        """
        n, u = past_frame.shape[1], future.shape[1]
        positions = torch.cat([torch.arange(n), self.block_size - u + torch.arange(u)])
        logits, held = self.with_past(torch.cat([past_frame, future], 1), positions, None)
        drawn = []
        for step in range(steps):
            drawn.append(pick(logits[:, -1], step)[:, None])
            if step + 1 < steps:
                logits, held = self.with_past(drawn[-1], torch.tensor([n + step]), held)
        return torch.cat(drawn, 1)
