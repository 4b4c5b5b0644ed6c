"""Patching of live models: patch(model) makes every Latte in it fast in place, and unpatch undoes it.

It takes upstream's Latte and LatteT2V, diffusers' LatteTransformer3DModel, and modules or pipelines that contain one.

A module is recognised by its structure, never by where it was imported from. Each swapped instance gets a class that
inherits from ours and its own, so that isinstance still holds; the instance keeps its parameters, buffers and hooks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from latte_fast.integrations import diffusers_model, upstream_model
from latte_fast.integrations.swap import restore, swap
from latte_fast.integrations.upstream_model import forget_config

# the families of models that patch knows
KINDS = (upstream_model.KIND, diffusers_model.KIND)


@dataclass
class PatchReport:
    """Names of the swapped modules, and of those kept with the reason."""

    swapped: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, kept: dict[str, str]) -> None:
        """Adds what a model at a path keeps, by names inside it."""
        self.kept |= {f"{path}.{name}".strip("."): why for name, why in kept.items()}

    def __str__(self) -> str:
        names: dict[str, list[str]] = {}
        for name, why in self.kept.items():
            names.setdefault(why, []).append(name or "the model")
        lines = [f"{len(self.swapped)} modules swapped"]
        for why, (first, *others) in names.items():
            more = f" and {len(others)} more" if others else ""
            lines.append(f"  {first}{more} kept: {why}")
        return "\n".join(lines)


def patch(model: Any) -> PatchReport:
    """Makes every Latte inside a module or a pipeline (itself included) fast, in place.

    The report says what was swapped, and what was left and why; of a model that is fast already, too.
    """
    report = PatchReport()
    found = 0
    for prefix, root in _roots(model, "patch"):
        for name, module in list(root.named_modules()):
            kind = next((k for k in KINDS if k.looks_like(module)), None)
            if kind is None:
                continue
            found += 1
            path = ".".join(filter(None, (prefix, name)))
            fast = isinstance(module, kind.fast)
            reason = "already fast" if fast else kind.why_not(module)
            if reason:
                report.kept[path] = reason
                if fast:
                    report.add(path, kind.unfused(module))
                continue
            kind.prepare(module)
            for part, child, cls in kind.swaps(module):
                swap(child, cls)
                report.swapped.append(f"{path}.{part}".strip("."))
            kind.finish(module)
            report.add(path, kind.unfused(module))
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
            restore(module)
            forget_config(module)


def _roots(model: Any, caller: str) -> Iterator[tuple[str, nn.Module]]:
    """Yields the module itself, or the modules of a pipeline by name."""
    if isinstance(model, nn.Module):
        yield "", model
        return
    parts = getattr(model, "components", None)
    if not isinstance(parts, dict):
        raise TypeError(f"{caller}: model must be a module or a pipeline with components, got {type(model).__name__}")
    yield from ((name, part) for name, part in parts.items() if isinstance(part, nn.Module))
