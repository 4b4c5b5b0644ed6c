"""The transformer of TATS over the tokens of a 3D-VQGAN: a GPT, or an interpolator that is given both ends."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast.models.tats.token_loss import cross_entropy
from latte_fast.models.tats.transformer_config import TransformerConfig
from latte_fast.modules.hooks import is_untouched
from latte_fast.modules.linear_int8 import LinearInt8, product_int8
from latte_fast.ops import causal_attention

Attend = Callable[[Tensor], Tensor]  # packed query, key and value (B, L, 3, H, K) to (B, L, H*K)
# weights and biases of query, key and value, one below the other, and the scales of weights of int8
Packed = tuple[Tensor, Tensor, Tensor | None]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class Attention(nn.Module):
    # the linear layers whose weights may be int8, as decoding reads them for a few rows, and what kind each is
    weight_only: ClassVar[dict[str, str]] = {"query": "qkv", "key": "qkv", "value": "qkv", "proj": "proj"}

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, width = config.n_head, config.n_embd
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Attend, packed: Packed | None = None) -> Tensor:
        return self.proj(attend(self.qkv(x, packed)))

    def qkv(self, x: Tensor, packed: Packed | None = None) -> Tensor:
        """Returns query, key and value (B, L, 3, H, K) of x (B, L, D), by one product unless a layer is changed."""
        layers = (self.query, self.key, self.value)
        joined = (packed or self.packed()) if all(is_untouched(layer) for layer in layers) else None
        if joined is None:
            return torch.stack([layer(x).unflatten(-1, (self.heads, -1)) for layer in layers], 2)
        weight, bias, scale = joined
        out = F.linear(x, weight, bias) if scale is None else product_int8(x, weight, bias, scale)
        return out.unflatten(-1, (3, self.heads, -1))

    def packed(self) -> Packed | None:
        """Returns query, key and value as one layer; None where they are not all plain or all int8."""
        layers: tuple[Any, ...] = (self.query, self.key, self.value)
        int8 = all(type(layer) is LinearInt8 for layer in layers)
        if not int8 and not all(type(layer) is nn.Linear for layer in layers):
            return None
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        return weight, bias, torch.cat([layer.weight_scale for layer in layers]) if int8 else None


class Block(nn.Module):
    weight_only: ClassVar[dict[str, str]] = {"mlp.0": "fc1", "mlp.2": "fc2"}

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width = config.n_embd
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, attend: Attend, packed: Packed | None = None) -> Tensor:
        x = x + self.attn(self.ln1(x), attend, packed)
        return x + self.mlp(self.ln2(x))


class TokenTransformer(nn.Module):
    """A GPT with learned positions under the authors' keys: tokens (B, L) to logits (B, L, vocab_size).

    With `n_unmasked` = u, tokens 0 .. u and the last u - 1 of a block are seen by all rows and see each other, and the
    tokens between are causal: the model fills the gap between two frames of u tokens. A shorter input takes the top
    left of the block's mask. No mask is stored.

    Args:
        vocab_size: number of tokens: conditions come first, then the codes.
        block_size: largest number of tokens in a forward.
        n_layer: number of blocks.
        n_head: number of attention heads.
        n_embd: width.
        n_unmasked: number of tokens at each end that all rows see; 0 is causal throughout.
        vtokens_pos: (T, H, W) of a second table of positions, for windows of a larger film; by default none.
    """

    weight_only: ClassVar[dict[str, str]] = {"head": "head"}

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
        self.config = TransformerConfig(vocab_size, block_size, n_layer, n_head, n_embd, n_unmasked, vtokens_pos)
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        if vtokens_pos is not None:
            self.vtokens_pos_emb = nn.Parameter(torch.zeros(1, *vtokens_pos, n_embd))
        self.blocks = nn.ModuleList([Block(self.config) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        start: int = 0,
        box: Box | Tensor | None = None,
        conditions: int = 1,
    ) -> Tensor:
        """Returns the logits (B, L, vocab_size) of tokens (B, L), or the losses of `targets`.

        Args:
            tokens: conditions, then codes, all as numbers of the vocabulary.
            targets: the tokens (B, n) that rows start .. start + n - 1 predict; their cross-entropy (B, n) in fp32 is
                returned, and no more than a part of the logits exists at a time.
            start: first row that predicts.
            box: where the codes lie in the second table of positions: (start, stop) in time, height and width; or the
                place of each, (B, n), counted in the flat table.
            conditions: number of conditions, which that table leaves alone.
        """
        x = self.hidden(tokens, box, conditions)
        if targets is None:
            return self.head(x)
        rows = x[:, start : start + targets.shape[1]]
        if type(self.head) is nn.Linear and is_untouched(self.head):
            return cross_entropy(rows, self.head.weight, targets)
        return F.cross_entropy(self.head(rows).movedim(-1, 1).float(), targets, reduction="none")

    def hidden(self, tokens: Tensor, box: Box | Tensor | None = None, conditions: int = 1) -> Tensor:
        """Returns what the head multiplies, (B, L, D)."""
        check_tokens(tokens, self.config)
        length = tokens.shape[1]
        x = self.tok_emb(tokens) + self.pos_emb[:, :length]  # (B, L, D)
        if box is not None:
            x = torch.cat([x[:, :conditions], x[:, conditions:] + self._boxed(box, length - conditions)], 1)
        front, back = self.config.ends(length)
        if back:
            # both ends first: what all rows see is a prefix
            x = torch.cat([x[:, :front], x[:, length - back :], x[:, front : length - back]], 1)
        prefix = front + back

        def attend(qkv: Tensor) -> Tensor:
            return causal_attention(qkv, prefix)

        for block in self.blocks:
            x = block(x, attend)
        if back:
            x = torch.cat([x[:, :front], x[:, front + back :], x[:, front : front + back]], 1)
        return self.ln_f(x)

    def _boxed(self, box: Box | Tensor, length: int) -> Tensor:
        """Returns a part of the second table of positions, (1 or B, length, D)."""
        if self.config.vtokens_pos is None:
            got = f"places {tuple(box.shape)}" if isinstance(box, Tensor) else box
            raise ValueError(f"TokenTransformer: box must be None for a model without vtokens_pos, got {got}")
        if isinstance(box, Tensor):
            if box.dim() != 2 or box.shape[1] < length:
                rule = f"(B, n) places of the {length} codes of the input"
                raise ValueError(f"TokenTransformer: box must hold {rule}, got {tuple(box.shape)}")
            return F.embedding(box[:, :length], self.vtokens_pos_emb[0].flatten(0, 2))
        rule = f"inside the table's {self.config.vtokens_pos}"
        if not all(0 <= a < b <= n for (a, b), n in zip(box, self.config.vtokens_pos, strict=True)):
            raise ValueError(f"TokenTransformer: box must be {rule}, got {box}")
        if not 0 <= length <= math.prod(b - a for a, b in box):
            raise ValueError(f"TokenTransformer: box must hold the {length} codes of the input, got {box}")
        where = (slice(None), *(slice(*edge) for edge in box))
        return self.vtokens_pos_emb[where].flatten(1, 3)[:, :length]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.config).items())


def check_tokens(tokens: Tensor, config: TransformerConfig) -> None:
    if tokens.dim() != 2 or not tokens.numel() or tokens.dtype not in (torch.int64, torch.int32):
        got = f"{tuple(tokens.shape)} {str(tokens.dtype)[6:]}"
        raise ValueError(f"TokenTransformer: tokens must be (B, L) int64, got {got}")
    if tokens.shape[1] > config.block_size:
        rule = f"at most the block's {config.block_size}"
        raise ValueError(f"TokenTransformer: tokens must be {rule}, got a prompt of {tokens.shape[1]}")
    # on a GPU a look at the values would wait for it
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = torch.aminmax(tokens)
        if low < 0 or high >= config.vocab_size:
            rule = f"in 0 .. {config.vocab_size - 1}, the model's vocabulary"
            raise ValueError(f"TokenTransformer: tokens must be {rule}, got {low.item()} .. {high.item()}")
