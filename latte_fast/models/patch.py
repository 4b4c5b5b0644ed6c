"""patch(model) makes a live Latte fast in place, same instances, same parameters; unpatch undoes it.

It takes upstream's Latte and LatteT2V, diffusers' LatteTransformer3DModel, and whatever holds one, a pipeline too.

A module is recognised by its structure, never by where it was imported from. Each swapped instance gets a class that
inherits from ours and its own, so that isinstance still holds, and keeps its parameters, buffers and hooks.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, NamedTuple

from torch import nn

from latte_fast.config import LatteConfig
from latte_fast.models import patch_t2v
from latte_fast.models.latte import Latte, LatteIMG
from latte_fast.models.latte_t2v import FastT2V
from latte_fast.modules.block import Attention, Block, FinalLayer, Mlp
from latte_fast.modules.embed import PatchEmbed, TimestepEmbedder
from latte_fast.modules.linear import REGISTRY, is_replaced

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


def patch(model: Any) -> PatchReport:
    """Makes every Latte inside a module or a pipeline (itself included) fast, in place.

    The report says what was swapped, and what was left and why.
    """
    report = PatchReport()
    found = 0
    for prefix, root in _roots(model, "patch"):
        for name, module in list(root.named_modules()):
            kind = next((k for k in _KINDS if k.looks_like(module)), None)
            if kind is None:
                continue
            found += 1
            path = ".".join(filter(None, (prefix, name)))
            reason = "already fast" if isinstance(module, kind.fast) else kind.why_not(module)
            if reason:
                report.kept[path] = reason
                continue
            kind.prepare(module)
            for part, child, cls in kind.swaps(module):
                _swap(child, cls)
                report.swapped.append(f"{path}.{part}".strip("."))
            report.kept |= {f"{path}.{n}".strip("."): why for n, why in kind.finish(module).items()}
    if not found:
        report.kept[""] = (
            "no Latte inside: that needs x_embedder, t_embedder, blocks, final_layer, pos_embed, temp_embed, "
            "or the text-to-video model's transformer_blocks and temporal_transformer_blocks"
        )
    return report


def unpatch(model: Any) -> None:
    """Gives every instance that patch swapped its own class back."""
    for _, root in _roots(model, "unpatch"):
        for module in root.modules():
            before = module.__dict__.pop(_MARK, None)
            if before is not None:
                _forget_own_forward(module)
                module.__class__ = before
                module.__dict__.pop("_remembered", None)
                _rebind(module)
            if module.__dict__.pop(_MARK + _CONFIG, False):
                del module.__dict__[_CONFIG]


def _roots(model: Any, caller: str) -> Iterator[tuple[str, nn.Module]]:
    """The module itself, or the modules a pipeline is made of, by name."""
    if isinstance(model, nn.Module):
        yield "", model
        return
    parts = getattr(model, "components", None)
    if not isinstance(parts, dict):
        raise TypeError(f"{caller}: model must be a module or a pipeline with components, got {type(model).__name__}")
    yield from ((name, part) for name, part in parts.items() if isinstance(part, nn.Module))


def _forget_own_forward(module: nn.Module) -> None:
    """Drops a bound forward of the module's own class, which hooks leave behind when they go."""
    if not is_replaced(module):
        module.__dict__.pop("forward", None)


def _rebind(module: nn.Module) -> None:
    """The forwards that hooks keep become those of the class the module now has."""
    _forget_own_forward(module)
    own = MethodType(type(module).forward, module)
    if "_old_forward" in module.__dict__:  # accelerate's
        module.__dict__["_old_forward"] = own
    for innermost in getattr(module.__dict__.get(REGISTRY), "_fn_refs", [])[:1]:  # diffusers'
        kept = "forward" if innermost.original_forward is None else "original_forward"
        setattr(innermost, kept, own)


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
    module.__dict__[_MARK] = type(module)
    module.__class__ = _both(cls, type(module))
    _rebind(module)


def _both(cls: type[nn.Module], before: type[nn.Module]) -> type[nn.Module]:
    """The class of a swapped instance, ours before its own."""

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return _remade, (cls, before), self.__dict__.copy()

    # the old name too: it is what save_pretrained writes for the next reader
    names = {"__module__": before.__module__, "__qualname__": before.__qualname__, "__reduce_ex__": reduce}
    return type(before.__name__, (cls, before), names)


def _remade(cls: type[nn.Module], before: type[nn.Module]) -> nn.Module:
    """An instance as pickle and copy want it, before its state is set."""
    module = before.__new__(before)
    module.__class__ = _both(cls, before)
    return module


def _looks_like_latte(module: nn.Module) -> bool:
    names = ("x_embedder", "t_embedder", "blocks", "final_layer", "pos_embed", "temp_embed")
    # its own: a compiled model or a LoRA's wrapper shows those of the module inside
    return all(name in own for name, own in zip(names, 4 * [module._modules] + 2 * [_tensors(module)], strict=True))


def _tensors(module: nn.Module) -> dict[str, Any]:
    return module._parameters | module._buffers | module.__dict__


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


def _keep_config(latte: Any) -> None:
    if _CONFIG not in latte.__dict__:
        latte.__dict__[_CONFIG] = config_of(latte)
        latte.__dict__[_MARK + _CONFIG] = True


def _share(model: Any) -> dict[str, str]:
    why = "its to_q, to_k and to_v run one by one: LoRA, hooks, quantised or sharded weights do not share a storage"
    return dict.fromkeys(model.share_projections(), why)


class _Kind(NamedTuple):
    """One family of models that patch knows."""

    looks_like: Callable[[nn.Module], bool]
    fast: type[nn.Module]
    why_not: Callable[[Any], str | None]
    prepare: Callable[[Any], None]
    swaps: Callable[[nn.Module], Iterator[tuple[str, nn.Module, type[nn.Module]]]]
    finish: Callable[[Any], dict[str, str]]


_KINDS = (
    _Kind(_looks_like_latte, Latte, why_not, _keep_config, _swaps, lambda model: {}),
    _Kind(patch_t2v.looks_like_t2v, FastT2V, patch_t2v.why_not, lambda model: None, patch_t2v.swaps, _share),
)
