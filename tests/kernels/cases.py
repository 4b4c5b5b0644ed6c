"""Inputs for the kernel tests: layouts that merge and that do not, groups as views of (G, 6D), poisoned margins."""

import torch
from torch import Tensor

from tests.kernels.conftest import DEVICE

# (residual dtype, partners' dtype)
DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "fp32-bf16": (torch.float32, torch.bfloat16),
    "fp32-fp16": (torch.float32, torch.float16),
}
LAYOUTS = ("contiguous", "sliced", "transposed", "expanded", "flat")


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device=DEVICE, dtype=dtype)


def laid_out(layout: str, B: int, F: int, N: int, D: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """x (B, F, N, D), or (B*F*N, D) for `flat`, as a leaf that wants a gradient."""
    if layout == "sliced":
        x = randn(B, F + 1, N, D, dtype=dtype, seed=seed)[:, :F]
    elif layout == "transposed":
        x = randn(B, N, F, D, dtype=dtype, seed=seed).transpose(1, 2)
    elif layout == "expanded":
        x = randn(B, 1, N, D, dtype=dtype, seed=seed).expand(B, F, N, D)
    else:
        x = randn(B, F, N, D, dtype=dtype, seed=seed)
    return (x.flatten(0, 2) if layout == "flat" else x).requires_grad_()


def groups(count: int, G: int, D: int, dtype: torch.dtype, seed: int = 9) -> list[Tensor]:
    """`count` of the six (G, D) views of one (G, 6D) tensor."""
    return [v.requires_grad_() for v in randn(G, 6 * D, dtype=dtype, seed=seed).chunk(6, dim=-1)[:count]]


def rope_tables(F: int, K: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(F)[:, None] * 10000.0 ** (-torch.arange(0, K, 2) / K)
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


def name(case: dict) -> str:
    return "-".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in case.values())
