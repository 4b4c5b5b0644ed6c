"""What of a text-to-video model's blocks does not run fused, and why: for the report of patch, and for our class."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from latte_fast.modules.hooks import is_untouched, must_be_called, runs_itself
from latte_fast.modules.linear import is_plain, joined
from latte_fast.modules.linear8 import is_8bit

PROJECTIONS = ("to_q", "to_k", "to_v")
# the layers of attentions and MLPs whose weights a fused block reads
LAYERS = (*PROJECTIONS, "to_out.0", "net.0.proj", "net.2")


def unfused(model: Any) -> dict[str, str]:
    """Returns the attentions and MLPs that are called as modules, or whose layers are, each with the reason."""
    found = calls_alone(model)
    for path, part in parts_of(model):
        reasons = {} if path in found else called_layers(part, path.endswith("attn1"))
        if reasons:
            groups = [", ".join(n for n in reasons if reasons[n] == why) + f" ({why})" for why in set(reasons.values())]
            found[path] = f"its layers are called one by one: {'; '.join(sorted(groups))}"
    return found


def calls_alone(model: Any) -> dict[str, str]:
    """Returns the parts of blocks that are called as modules, each with its processor or that it has hooks."""
    found = {}
    for path, part in parts_of(model):
        if runs_itself(part):
            why = "hooks" if must_be_called(part) else f"its processor {type(part.processor).__name__}"
            found[path] = f"it is called as a module, for {why}"
    return found


def parts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields the children of all blocks by their paths."""
    for kind in ("transformer_blocks", "temporal_transformer_blocks"):
        for i, block in enumerate(getattr(model, kind)):
            yield from ((f"{kind}.{i}.{name}", part) for name, part in block.named_children())


def called_layers(part: nn.Module, self_attention: bool) -> dict[str, str]:
    """Returns the linear layers of an attention or MLP that are called as modules, each with the reason."""
    layers = {name: layer for name, layer in part.named_modules() if name in LAYERS}
    found = {name: why for name, layer in layers.items() if (why := why_called(layer)) is not None}
    three = [layers[name] for name in PROJECTIONS if name in layers]
    if self_attention and len(three) == 3 and not found and joined(three) is None and not is_8bit(three[0]):
        found |= dict.fromkeys(PROJECTIONS, "its weight lies apart from the other two")
    return found


def why_called(layer: Any) -> str | None:
    """Returns why a linear layer is called as a module, None where a fused block may read its weight."""
    if is_plain(layer) or is_8bit(layer):
        return None
    if type(layer) is not nn.Linear:
        return f"a {type(layer).__name__}"
    return "hooks" if not is_untouched(layer) else f"its weight is a {type(layer.weight).__name__}"
