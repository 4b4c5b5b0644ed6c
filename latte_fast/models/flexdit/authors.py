"""Checkpoints of the FlexDiT authors' image model, whose blocks are numbered module by module."""

import re

from torch import Tensor

from latte_fast.models.checkpoint import CheckpointError

_PARTS = ("token_merge_blocks", "semantic_blocks", "token_recover_blocks", "normal_blocks")
_KEY = re.compile(rf"(poolingformer_blocks|normal_blocks|dumbbell_blocks\.(\d+)\.({'|'.join(_PARTS)}))\.(\d+)\.(.+)")
_COMMON = ("attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
_MERGING = ("merged_layer1", "merged_layer2")
# by part: a block's linear layers, each with weight and bias
_LAYERS = {
    "poolingformer_blocks": ("attn.v", *_COMMON),
    "token_merge_blocks": ("attn.q", "attn.kv", *_COMMON),
    "semantic_blocks": ("attn.qkv", *_COMMON),
    "token_recover_blocks": ("attn.q", "attn.kv", *_COMMON, *_MERGING),
    "normal_blocks": ("attn.qkv", *_COMMON),
}
_FINAL = ("final_layer.linear", "final_layer.adaLN_modulation.1")
_AROUND = ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", *_FINAL)
_TABLES = ("pos_embed", "y_embedder.embedding_table.weight")


def is_sparsedit(state: dict[str, Tensor]) -> bool:
    """Returns whether keys are those of the authors' model."""
    return any(key.startswith(("dumbbell_blocks.", "poolingformer_blocks.")) for key in state)


def from_sparsedit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict of a FlexLatte of variant 0, blocks in depth order, from one of the authors' model.

    Every key that the authors' model has must be there, and no other; otherwise CheckpointError names one.
    """
    blocks: dict[tuple[int, int, int, int], str] = {}  # place of a block -> its prefix
    for key in state:
        match = _KEY.fullmatch(key)
        if match is None:
            if key not in _TABLES and key.rpartition(".")[0] not in _AROUND:
                raise CheckpointError(f"from_sparsedit: {key} is unknown: not a checkpoint of the authors' model")
            continue
        kind, module, part, number = match[1], match[2], match[3], int(match[4])
        stage = 0 if kind == "poolingformer_blocks" else 2 if module is None else 1
        place = (stage, int(module or 0), _PARTS.index(part) if part else 0, number)
        blocks[place] = f"{kind}.{number}"
    places = sorted(blocks)
    names = {blocks[place]: f"blocks.{i}" for i, place in enumerate(places)}
    wanted = {f"{layer}.{leaf}" for layer in _AROUND for leaf in ("weight", "bias")} | set(_TABLES)
    for prefix in names:
        layers = _LAYERS[prefix.split(".")[-2]]
        wanted |= {f"{prefix}.{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    missing, unknown = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise CheckpointError(
            f"from_sparsedit: {what}: not a checkpoint of the authors' model "
            f"({len(missing)} keys missing, {len(unknown)} unknown)"
        )
    _check_numbers(places)
    out = {}
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        prefix = key.removesuffix("." + match[5]) if match else ""
        out[f"{names[prefix]}.{match[5]}" if match else key] = value
    return out


def _check_numbers(places: list[tuple[int, int, int, int]]) -> None:
    """Raises CheckpointError where a number is left out: a file without one of its blocks."""
    for length in (2, 4):
        counts: dict[tuple[int, ...], set[int]] = {}
        for place in places:
            counts.setdefault(place[: length - 1], set()).add(place[length - 1])
        for at, numbers in counts.items():
            if length == 2 and at != (1,):
                continue
            if numbers != set(range(len(numbers))):
                found = ", ".join(map(str, sorted(numbers)))
                what = ("poolingformer_blocks", f"dumbbell_blocks{f'.{at[1]}' if len(at) > 1 else ''}", "normal_blocks")
                raise CheckpointError(f"from_sparsedit: {what[at[0]]} must be numbered from 0, found {found}")
