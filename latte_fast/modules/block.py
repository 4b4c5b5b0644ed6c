"""A Latte block on (B, F, N, D): two elementwise passes, four GEMMs, one attention, the last residual left pending."""

from typing import NamedTuple

from torch import Tensor, nn

from latte_fast import ops
from latte_fast.modules.linear import split_bias


class Pending(NamedTuple):
    """A residual x + gate * (y + y_bias) not yet added; whoever normalises x next adds it in the same pass."""

    y: Tensor  # (B, F, N, D)
    gate: Tensor  # (G, D)
    y_bias: Tensor | None  # (D,)


def resolve(x: Tensor, pending: Pending | None) -> Tensor:
    """Adds a pending residual where no norm follows."""
    if pending is None:
        return x
    y = pending.y if pending.y_bias is None else pending.y + pending.y_bias
    return ops.gate_residual(x, y, pending.gate)


def add_and_norm(
    x: Tensor, pending: Pending | None, shift: Tensor, scale: Tensor, pos: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x', h): x with its pending residual and position added, and its modulated norm in the modulation's dtype."""
    if pending is not None:
        if pending.gate.shape[0] != shift.shape[0]:
            # conditions a frame beside conditions a clip, as the joint model has them
            shift, scale = (v.repeat_interleave(pending.gate.shape[0] // v.shape[0], 0) for v in (shift, scale))
        return ops.gate_residual_norm_modulate(x, pending.y, pending.gate, shift, scale, y_bias=pending.y_bias, pos=pos)
    if pos is not None:
        x = x + pos.to(x.dtype)
    return x, ops.norm_modulate(x, shift, scale, out_dtype=shift.dtype)


class Attention(nn.Module):
    """Multi-head attention over one axis, q, k, v read where the packed linear layer left them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor, axis: str) -> tuple[Tensor, Tensor | None]:
        """The result without the projection's bias, and that bias."""
        qkv = self.qkv(h).unflatten(-1, (3, self.num_heads, -1))  # (B, F, N, 3, H, K)
        return split_bias(self.proj, ops.axis_attention_qkv(qkv, axis))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """The result without the second layer's bias, and that bias."""
        u, bias = split_bias(self.fc1, h)
        return split_bias(self.fc2, ops.bias_gelu(u, bias))


class Block(nn.Module):
    """Attention over one axis, then the MLP, each modulated and gated by the condition."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, pending: Pending | None, silu_c: Tensor, axis: str, pos: Tensor | None = None
    ) -> tuple[Tensor, Pending]:
        """x (B, F, N, D), silu_c (G, D) the condition after its SiLU -> x' and this block's own last residual."""
        modulation = self.adaLN_modulation[1](silu_c)  # (G, 6D)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        x, h = add_and_norm(x, pending, shift_a, scale_a, pos)
        y, bias = self.attn(h, axis)
        x, h = add_and_norm(x, Pending(y, gate_a, bias), shift_m, scale_m)
        y, bias = self.mlp(h)
        # a copy, so that no parameter of this block is read by the next
        return x, Pending(y, gate_m, None if bias is None else bias.clone())


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, pending: Pending | None, silu_c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation[1](silu_c).chunk(2, dim=-1)
        return self.linear(add_and_norm(x, pending, shift, scale)[1])  # (B, F, N, P*P*C)
