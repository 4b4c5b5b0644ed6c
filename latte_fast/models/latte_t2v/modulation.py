"""The modulations of a LatteT2V at all steps of a sampling run; they depend on the step alone."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from latte_fast.models.latte_t2v.model import TIME_CHANNELS, FastT2V
from latte_fast.modules.embed import timestep_wave
from latte_fast.modules.modulation import ModulationTable, in_fp32


@torch.no_grad()
def tabulate(model: FastT2V, times: Tensor) -> ModulationTable:
    """Returns the modulations at time steps (S,), one row for all clips, computed in fp32.

    Steps (S, B, F) give every frame of every clip a step of its own, and a row of the table.
    """
    net: Any = model
    frames = times.shape[2] if times.dim() == 3 else 1
    steps, times = len(times), times.flatten()
    layers = net.adaln_single.emb.timestep_embedder
    time = in_fp32(layers.linear_2, silu(in_fp32(layers.linear_1, timestep_wave(times, TIME_CHANNELS))))  # (S*G, D)
    shared = in_fp32(net.adaln_single.linear, silu(time)).unflatten(1, (6, -1))  # (S*G, 6, D)
    every = [*net.transformer_blocks, *net.temporal_transformer_blocks]
    parts: list[tuple[nn.Module | None, int]] = [*((block, 6) for block in every), (None, 2)]
    own = torch.cat([block.scale_shift_table for block in every])  # (6 * depth, D)
    blocks = shared.repeat(1, len(every), 1) + own.to(time.dtype)
    head = time[:, None] + net.scale_shift_table.to(time.dtype)  # (S*G, 2, D)
    values = torch.cat([blocks, head], dim=1).flatten(1).unflatten(0, (steps, -1))
    return ModulationTable(values.to(net.proj_out.weight.dtype), None, parts, frames)  # rounded here, once
