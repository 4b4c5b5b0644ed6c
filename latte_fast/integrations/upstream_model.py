"""Patching of upstream's Latte and LatteIMG, recognised by their structure."""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from latte_fast.config import LatteConfig
from latte_fast.integrations.swap import Kind
from latte_fast.models.latte.block import Attention, Block, FinalLayer, Mlp
from latte_fast.models.latte.model import Latte, LatteIMG
from latte_fast.models.latte.parts import LATTE
from latte_fast.modules.embed import PatchEmbed, TimestepEmbedder
from latte_fast.modules.parts import walk

_CONFIG, _OURS = "config", "_latte_fast_config"


def config_of(latte: Any) -> LatteConfig:
    """Reads the config of an upstream instance off its parameters."""
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


def looks_like_latte(module: nn.Module) -> bool:
    names = ("x_embedder", "t_embedder", "blocks", "final_layer", "pos_embed", "temp_embed")
    # its own, as a compiled model's or LoRA's wrapper shows attributes of the module inside
    return all(name in own for name, own in zip(names, 4 * [module._modules] + 2 * [_tensors(module)], strict=True))


def _tensors(module: nn.Module) -> dict[str, Any]:
    return module._parameters | module._buffers | module.__dict__


def swaps(latte: Any) -> Iterator[tuple[str, nn.Module, type[nn.Module]]]:
    joint = "use_image_num" in inspect.signature(type(latte).forward).parameters
    yield "", latte, LatteIMG if joint else Latte
    yield "x_embedder", latte.x_embedder, PatchEmbed
    yield "t_embedder", latte.t_embedder, TimestepEmbedder
    for i, block in enumerate(latte.blocks):
        yield f"blocks.{i}", block, Block
        yield f"blocks.{i}.attn", block.attn, Attention
        yield f"blocks.{i}.mlp", block.mlp, Mlp
    yield "final_layer", latte.final_layer, FinalLayer


def why_not(latte: Any) -> str | None:
    """Returns which detail of a module like a Latte would change its results if it were swapped, or None."""
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
    details = (_why_not_detail(name, m, latte) for name, m in latte.named_modules())
    return next(filter(None, details), None) or walk(latte, LATTE, patched=True)[1]


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


def keep_config(latte: Any) -> None:
    if _CONFIG not in latte.__dict__:
        latte.__dict__[_CONFIG] = config_of(latte)
        latte.__dict__[_OURS] = True


def forget_config(latte: Any) -> None:
    if latte.__dict__.pop(_OURS, False):
        del latte.__dict__[_CONFIG]


KIND: Kind = Kind(looks_like_latte, Latte, why_not, keep_config, swaps, lambda model: None, lambda model: {})
