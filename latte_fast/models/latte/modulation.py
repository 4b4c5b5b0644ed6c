"""The modulations of a Latte, or of a FlexLatte, at all steps of a sampling run: one product a layer."""

from typing import Any

import torch
from torch import Tensor

from latte_fast.models.latte.model import Latte
from latte_fast.modules.embed import timestep_wave
from latte_fast.modules.modulation import ModulationTable, in_fp32


@torch.no_grad()
def tabulate(model: Latte, times: Tensor, y: Tensor | None = None, text: Tensor | None = None) -> ModulationTable:
    """Returns the modulations at time steps (S,) for labels y (B,) or text (B, 77, 768), computed in fp32.

    Steps (S, B, F) give every frame of every clip a step of its own, and a row of the table.

    The number of products is that of the layers, whatever the number of steps: one product of all layers at once would
    first copy their weights, a third of the model's.
    """
    if model.config.conditioning == "tokens":
        raise ValueError("ModulationTable: model must be modulated, got one whose conditions are tokens")
    members: Tensor | None = None
    by_frame = times.dim() == 3
    frames = times.shape[2] if by_frame else 1
    if y is not None and model.extras == 2 and not by_frame:
        y, members = y.unique(return_inverse=True)
    label = model.embed_condition(y, text)
    count = 1 if label is None else label.shape[0]  # U
    if count == 1:
        members = None
    first, act, second = model.t_embedder.mlp
    wave = timestep_wave(times.flatten(0, 1) if by_frame else times, model.t_embedder.frequencies)
    time = in_fp32(second, act(in_fp32(first, wave)))  # (S, D), or (S*B, F, D)
    if by_frame:
        count = times.shape[1] * frames
    else:
        time = time.repeat_interleave(count, 0)  # (S*U, D)
    labels = None if label is None else label.to(time.dtype).repeat(len(times), 1)
    space, clip, head = model.conditions(time, labels, None, frames)  # (S*U, D) each
    head_layer: Any = model.final_layer.adaLN_modulation
    width = model.pos_embed.shape[-1]
    parts: list[tuple[Any, int]] = [*((block, 6) for block in model.blocks), (None, 2)]
    whole = sum(many for _, many in parts) * width
    values = torch.empty(len(times), count, whole, dtype=head_layer[1].weight.dtype, device=times.device)
    at = 0
    for i, (block, many) in enumerate(parts):
        layer = head_layer if block is None else block.adaLN_modulation
        silu_c = head if block is None else clip if model.config.axis(i) == "time" else space
        made = in_fp32(layer[1], silu_c).unflatten(0, (len(times), count))
        values[:, :, at : at + many * width] = made  # rounded here, once
        at += many * width
    return ModulationTable(values, members, parts, frames)
