"""Initialisation from an ImageNet DiT, as in the paper, for every variant."""

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latte_fast.models.checkpoint import CheckpointError, check_floating, read_checkpoint
from latte_fast.modules.embed import stretch_space


@dataclass
class InitReport:
    """The tensors that an initialisation took, how some were fitted, and why the others were left."""

    taken: list[str] = field(default_factory=list)
    fitted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken"]
        return "\n".join(lines + [f"  {name}: {why}" for name, why in (self.fitted | self.left).items()])


def init_from_dit(model: nn.Module, path: str | os.PathLike) -> InitReport:
    """Initialises a Latte from a DiT's file and reports what was taken; on an error the model is untouched.

    DiT's block i becomes Latte's block i. DiT's positions serve every frame (they broadcast over F), resized where the
    grid differs. DiT's label table is dropped and Latte's own set to zero. Parameters that DiT lacks (temp_embed, a
    second attention, plain norms) keep their initialisation; variant 4 splits DiT's heads between its two attentions,
    and the embedding of a patch of s frames starts as the mean over its frames.
    """
    state, own = read_checkpoint(path), model.state_dict()
    check_floating(own, state, str(path))
    report = InitReport()
    update: dict[str, Tensor] = {}
    for key, value in _split_heads(model, state, report).items():
        if key.startswith("y_embedder."):
            report.left[key] = "label table of another data set; the model's own is set to zero"
        elif key not in own:
            report.left[key] = "no such parameter here"
        else:
            update[key] = _fitted(key, value, own[key], report)
            if update[key].shape != own[key].shape:
                want, found = tuple(own[key].shape), tuple(value.shape)
                raise CheckpointError(f"{path}: {key} must have shape {want}, found {found}: not a DiT of this size")
    absent = [key for key in own if key.startswith("blocks.") and key not in update and not _is_new(key)]
    if absent:
        shape = tuple(own[absent[0]].shape)
        raise CheckpointError(f"{path}: {absent[0]} must have shape {shape}, found none: not a DiT of this depth")
    report.taken = list(update)
    for key in own:
        if key.startswith("y_embedder."):
            update[key] = torch.zeros_like(own[key])
        elif key not in update:
            report.left[key] = "not in the DiT; kept as initialised"
    model.load_state_dict(update, strict=False)
    return report


def _is_new(key: str) -> bool:
    """Returns whether DiT's blocks lack this parameter: it is of a second attention or a plain norm."""
    return ".attn_time." in key or ".norm1." in key or ".norm2." in key


def _fitted(key: str, value: Tensor, own: Tensor, report: InitReport) -> Tensor:
    if value.shape == own.shape:
        return value
    if key == "pos_embed" and value.dim() == 3 and value.shape[2] == own.shape[2]:
        side = int(own.shape[1] ** 0.5)
        report.fitted[key] = f"resized from {tuple(value.shape)} to {tuple(own.shape)}"
        return stretch_space(value, side, side)
    if key == "x_embedder.proj.weight" and own.dim() == 5 and value.shape == own[:, :, 0].shape:
        report.fitted[key] = f"spread over patches of {own.shape[2]} frames as their mean"
        return (value / own.shape[2]).unsqueeze(2).expand_as(own)
    return value


def _split_heads(model: nn.Module, state: dict[str, Tensor], report: InitReport) -> dict[str, Tensor]:
    """Gives the first half of DiT's heads to variant 4's space attention, the second half to its time attention."""
    config = model.config
    if config.heads_each == config.num_heads:
        return state
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attn." not in key:
            out[key] = value
        elif ".qkv." in key:
            halves = value.unflatten(0, (3, 2, -1))
            for half, name in enumerate(("attn", "attn_time")):
                out[key.replace(".attn.", f".{name}.")] = halves[:, half].flatten(0, 1)
            report.fitted[key] = "heads split between attention over space and over time"
        elif key.endswith("proj.weight"):
            for columns, name in zip(value.chunk(2, dim=1), ("attn", "attn_time"), strict=True):
                out[key.replace(".attn.", f".{name}.")] = columns
        else:
            # both projections add their bias, so each gets half of it
            for name in ("attn", "attn_time"):
                out[key.replace(".attn.", f".{name}.")] = value / 2
    return out
