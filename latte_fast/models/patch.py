"""patch(model) makes a live upstream-style Latte fast in place, same instances, same parameters; unpatch undoes it.

A module is recognised by its structure, never by where it was imported from. Each swapped instance gets a class that
inherits from ours and its own, so that isinstance still holds, and keeps its parameters, buffers and hooks.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from latte_fast.config import LatteConfig
from latte_fast.models.latte import Latte, LatteIMG
from latte_fast.modules.block import Attention, Block, FinalLayer, Mlp
from latte_fast.modules.embed import PatchEmbed, TimestepEmbedder

_MARK = "_latte_fast_class_before"
_CONFIG = "config"


@dataclass
class PatchReport:
    """What was swapped, and what was not and why."""

    swapped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} modules swapped"]
        return "\n".join(lines + [f"  {name or 'the model'} kept: {why}" for name, why in self.kept.items()])


def patch(model: nn.Module) -> PatchReport:
    """Makes every Latte inside `model` (itself included) fast, in place; the report says what was left and why."""
    report = PatchReport()
    found = [(name, module) for name, module in model.named_modules() if _looks_like_latte(module)]
    if not found:
        report.kept[""] = (
            "no Latte inside: that needs x_embedder, t_embedder, blocks, final_layer, pos_embed, temp_embed"
        )
    for name, latte in found:
        if isinstance(latte, Latte):
            report.kept[name] = "already fast"
            continue
        reason = why_not(latte)
        if reason:
            report.kept[name] = reason
            continue
        if _CONFIG not in latte.__dict__:
            latte.__dict__[_CONFIG] = config_of(latte)
            latte.__dict__[_MARK + _CONFIG] = True
        for path, module, cls in _swaps(latte):
            _swap(module, cls)
            report.swapped.append(f"{name}.{path}".strip("."))
    return report


def unpatch(model: nn.Module) -> None:
    """Gives every instance that patch swapped its own class back."""
    for module in model.modules():
        before = module.__dict__.pop(_MARK, None)
        if before is not None:
            module.__class__ = before
        if module.__dict__.pop(_MARK + _CONFIG, False):
            del module.__dict__[_CONFIG]


def config_of(latte: Any) -> LatteConfig:
    """The config that an upstream instance was built with, read off its parameters."""
    block = latte.blocks[0]
    return LatteConfig(
        input_size=int(latte.pos_embed.shape[1] ** 0.5) * latte.patch_size,
        patch_size=latte.patch_size,
        in_channels=latte.in_channels,
        hidden_size=latte.pos_embed.shape[2],
        depth=len(latte.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / block.mlp.fc1.in_features,
        num_frames=latte.temp_embed.shape[1],
        learn_sigma=latte.out_channels != latte.in_channels,
        extras=latte.extras,
    )


def _swap(module: nn.Module, cls: type[nn.Module]) -> None:
    before = type(module)
    module.__dict__[_MARK] = before
    module.__class__ = type(f"Fast{before.__name__}", (cls, before), {"__module__": before.__module__})


def _looks_like_latte(module: nn.Module) -> bool:
    names = ("x_embedder", "t_embedder", "blocks", "final_layer", "pos_embed", "temp_embed")
    return all(hasattr(module, name) for name in names)


def _swaps(latte: nn.Module) -> Iterator[tuple[str, nn.Module, type[nn.Module]]]:
    joint = "use_image_num" in inspect.signature(type(latte).forward).parameters
    yield "", latte, LatteIMG if joint else Latte
    yield "x_embedder", latte.x_embedder, PatchEmbed  # type: ignore[misc]
    yield "t_embedder", latte.t_embedder, TimestepEmbedder  # type: ignore[misc]
    for i, block in enumerate(latte.blocks):
        yield f"blocks.{i}", block, Block
        yield f"blocks.{i}.attn", block.attn, Attention
        yield f"blocks.{i}.mlp", block.mlp, Mlp
    yield "final_layer", latte.final_layer, FinalLayer  # type: ignore[misc]


def why_not(latte: nn.Module) -> str | None:
    """Why a module that looks like a Latte can't be swapped: a detail that would change its numbers."""
    for name in ("extras", "in_channels", "out_channels", "patch_size"):
        if not hasattr(latte, name):
            return f"it has no attribute {name}"
    if latte.extras not in (1, 2, 78):
        return f"extras must be 1, 2 or 78, got {latte.extras}"
    blocks = list(latte.blocks)
    if not blocks or len(blocks) % 2:
        return f"blocks must alternate space and time, got {len(blocks)}"
    needed = {"attn": ("qkv", "proj", "num_heads"), "mlp": ("fc1", "fc2"), "adaLN_modulation": ()}
    for i, block in enumerate(blocks):
        for child, names in needed.items():
            if not hasattr(block, child) or not all(hasattr(getattr(block, child), n) for n in names):
                return f"blocks.{i}.{child} must have {', '.join(names) or 'a linear layer'}"
        if not (isinstance(block.adaLN_modulation, nn.Sequential) and len(block.adaLN_modulation) == 2):
            return f"blocks.{i}.adaLN_modulation must be SiLU and a linear layer"
    return next((reason for name, m in latte.named_modules() if (reason := _why_not_detail(name, m, latte))), None)


def _why_not_detail(name: str, module: nn.Module, latte: nn.Module) -> str | None:
    if module is not latte and (module._forward_hooks or module._forward_pre_hooks) and list(module.children()):
        return f"{name} has forward hooks, which a fused forward would not call"
    if isinstance(module, nn.LayerNorm) and (module.elementwise_affine or module.eps != 1e-6):
        return f"{name} must be a LayerNorm without affine and with eps 1e-6, got {module}"
    if isinstance(module, nn.GELU) and module.approximate != "tanh":
        return f"{name} must be the tanh GELU, got {module}"
    if isinstance(module, nn.Dropout) and module.p > 0:
        return f"{name} must not drop anything, got p = {module.p}"
    if isinstance(module, nn.RMSNorm):
        return f"{name} is a norm that a Latte does not have"
    return None
