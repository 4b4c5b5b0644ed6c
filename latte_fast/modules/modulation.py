"""Modulations of a sampling run, computed before its loop: all that depends on the step and the condition alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from latte_fast.modules.linear import is_plain

# shift, scale, gate of attention, then of the MLP, (G, D) each; of the head, under None, shift and scale
Modulations = Mapping[nn.Module | None, tuple[Tensor, ...]]
Conditioning = Tensor | Modulations | None


class ModulationTable:
    """Shifts, scales and gates of all blocks and of the head at every step of a run.

    `select` copies the rows of one step to one place, from which the model's forwards read them: a launch a step,
    where each block had a matrix product. The place stays the same, so that a CUDA graph may read it.

    Args:
        values: (S, U, W) for S steps and U different conditions, in the dtype of the model's modulation.
        members: condition of each row of the batch (G,), below U; None for row i with condition i, or for U = 1.
        parts: blocks, and None for the head, with their number of vectors (D,); W is the sum of all widths.
        frames: number of rows of a clip, above 1 where each frame has a time step of its own.
    """

    def __init__(
        self, values: Tensor, members: Tensor | None, parts: Sequence[tuple[nn.Module | None, int]], frames: int = 1
    ):
        self.values, self.members, self.parts, self.frames = values, members, list(parts), frames
        rows = values.shape[1] if members is None else len(members)
        self.current = values.new_empty(rows, values.shape[2])
        self.width = values.shape[2] // sum(count for _, count in self.parts)
        self._of_batch: dict[int, Modulations] = {}

    def select(self, step: int) -> None:
        """Makes a step's modulations the current ones."""
        if self.members is None:
            self.current.copy_(self.values[step])
        else:
            torch.index_select(self.values[step], 0, self.members, out=self.current)

    def at(self, batch: int) -> Modulations:
        """Returns the current modulations of the first `batch` clips, as views; one row serves any batch."""
        if batch not in self._of_batch:
            rows = 1 if self.current.shape[0] == 1 else batch * self.frames
            if rows > self.current.shape[0]:
                most = self.current.shape[0] // self.frames
                raise ValueError(f"ModulationTable: batch must be at most {most}, got {batch}")
            found, at = {}, 0
            for part, count in self.parts:
                found[part] = self.current[:rows, at : at + count * self.width].chunk(count, dim=1)
                at += count * self.width
            self._of_batch[batch] = found
        return self._of_batch[batch]

    def takes(self, other: "ModulationTable") -> bool:
        """Whether another table's modulations may be put in this one's place."""
        mine, others = self.members, other.members
        return (
            self.values.shape[0] == other.values.shape[0]
            and (self.current.shape, self.frames) == (other.current.shape, other.frames)
            and (self.current.dtype == other.current.dtype and (mine is None) == (others is None))
        )

    def take(self, other: "ModulationTable") -> None:
        """Replaces the modulations by those of a table for other conditions; the current ones keep their place."""
        assert self.takes(other)
        self.values, self.members = other.values, other.members

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Lets the model's forwards in this context take their modulations from the table."""
        owner: Any = model
        if owner.modulation_table is not None:
            raise ValueError("ModulationTable: model must not be in another run with a table at the same time")
        owner.modulation_table = self
        try:
            yield
        finally:
            del owner.modulation_table  # the class's None again


def of_block(conditioning: Conditioning, block: nn.Module | None) -> Any:
    """Returns the condition that all blocks share, or what a table holds for this block, or under None for the head."""
    return conditioning[block] if isinstance(conditioning, Mapping) else conditioning


def in_fp32(layer: Any, x: Tensor) -> Tensor:
    """Applies a plain linear layer in fp32, or in the weights' dtype where that is wider."""
    if not is_plain(layer):
        rule = "plain linear layers without adapters and hooks for modulation tables"
        raise ValueError(f"ModulationTable: the layers of a model's modulation must be {rule}, got {layer}")
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    return linear(x.to(wide), layer.weight.to(wide), None if layer.bias is None else layer.bias.to(wide))
