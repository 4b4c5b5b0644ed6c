"""A linear layer plus a trained update, as adapter libraries put it in a layer's place."""

import torch
from torch import Tensor, nn


class Lora(nn.Module):
    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.up = nn.Parameter(torch.full_like(base.weight, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.up.t()
