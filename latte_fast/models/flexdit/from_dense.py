"""Weights of a FlexLatte from those of a dense Latte, layer for layer."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latte_fast.flex_config import KINDS

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_TEXT_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")


@dataclass
class ConversionReport:
    """What became of a dense model's tensors: taken as they are, split, left out; and what is new."""

    taken: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken as they are"]
        for names, what in ((self.split, "q, kv or v of qkv"), (self.left, "q and k of pooling blocks, left out"),
                            (self.new, "merging layers, new: the dense input passes as it is")):  # fmt: skip
            if names:
                lines.append(f"  {len(names)} x {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
        return "\n".join(lines)


def from_dense(state: dict[str, Tensor], kinds: str) -> tuple[dict[str, Tensor], ConversionReport]:
    """Returns the state dict of a FlexLatte made of a dense Latte's or DiT's, and a report.

    Args:
        state: state dict of a Latte with S-AdaLN; it isn't changed.
        kinds: the layout's letters, one a block.
    """
    out: dict[str, Tensor] = {}
    report = ConversionReport()
    for key, value in state.items():
        match = _BLOCK.match(key)
        kind = kinds[int(match[1])] if match and int(match[1]) < len(kinds) else "D"
        if match is None or kind in "SD" or ".attn.qkv." not in key:
            out[key] = value
            report.taken.append(key)
            continue
        width = value.shape[0] // 3
        q, kv = value.split([width, 2 * width])
        if kind == "P":
            out[key.replace("qkv", "v")] = kv[width:].clone()
            report.split.append(key.replace("qkv", "v"))
            report.left.append(key)
        else:
            for name, part in (("q", q), ("kv", kv)):
                out[key.replace("qkv", name)] = part.clone()
                report.split.append(key.replace("qkv", name))
    for i, kind in enumerate(kinds):
        if kind == "R" and f"blocks.{i}.attn.proj.weight" in out:
            _add_merging(out, f"blocks.{i}", out[f"blocks.{i}.attn.proj.weight"], report)
    return out, report


def from_dense_text(state: dict[str, Tensor], kinds: str) -> tuple[dict[str, Tensor], ConversionReport]:
    """Returns the state dict of a FlexLatteT2V made of a LatteT2V's, without its time blocks, and a report.

    Args:
        state: state dict of a LatteT2V; it isn't changed.
        kinds: the layout's letters, one a space block.
    """
    out: dict[str, Tensor] = {}
    report = ConversionReport()
    for key, value in state.items():
        match = _TEXT_BLOCK.match(key)
        pools = match is not None and int(match[1]) < len(kinds) and kinds[int(match[1])] == "P"
        if key.startswith("temporal_transformer_blocks."):
            continue
        if pools and (".attn1.to_q." in key or ".attn1.to_k." in key):
            report.left.append(key)
            continue
        out[key] = value
        report.taken.append(key)
    for i, kind in enumerate(kinds):
        name = f"transformer_blocks.{i}"
        if kind == "R" and f"{name}.attn1.to_out.0.weight" in out:
            _add_merging(out, name, out[f"{name}.attn1.to_out.0.weight"], report)
    return out, report


def _add_merging(out: dict[str, Tensor], block: str, like: Tensor, report: ConversionReport) -> None:
    for name, weight in (("merged_layer1", torch.zeros_like(like)), ("merged_layer2", torch.eye(len(like)))):
        out[f"{block}.{name}.weight"] = weight.to(like)
        out[f"{block}.{name}.bias"] = like.new_zeros(len(like))
        report.new += [f"{block}.{name}.weight", f"{block}.{name}.bias"]


def kinds_of(state: dict[str, Tensor]) -> str:
    """Returns the layout's letters that a FlexLatte's tensors imply; S and D differ by where they stand."""
    depth = 1 + max(int(match[1]) for key in state if (match := _BLOCK.match(key)))
    kinds, inside = "", False
    for i in range(depth):
        names = [key for key in (f"blocks.{i}.{leaf}.weight" for leaf in ("merged_layer1", "attn.q", "attn.v"))
                 if key in state]  # fmt: skip
        kind = {"merged_layer1": "R", "attn.q": "G", "attn.v": "P"}.get(names[0].split(".", 2)[2][:-7] if names else "")
        kind = kind or ("S" if inside else "D")
        assert kind in KINDS
        inside = kind in "GS"
        kinds += kind
    return kinds


def is_flex_text(state: dict[str, Tensor]) -> bool:
    """Returns whether tensors are a FlexLatteT2V's: it merges tokens, or some block has values and no queries."""
    values = [key for key in state if key.endswith(".attn1.to_v.weight")]
    merges = any(".merged_layer1." in key for key in state)
    return merges or any(key.replace("to_v", "to_q") not in state for key in values)


def is_flex(state: dict[str, Tensor]) -> bool:
    """Returns whether tensors are a FlexLatte's: some block has attention without a packed qkv."""
    return any(key.endswith((".attn.v.weight", ".attn.kv.weight")) for key in state)
