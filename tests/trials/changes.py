"""Changes that users make to a module of a live model, and whether a fast model takes part in each or refuses it."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_map

LIMIT = 1e-9


def louder(x: Any) -> Any:
    return tree_map(lambda y: y * 1.25 if isinstance(y, Tensor) and y.is_floating_point() else y, x)


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda m, args, out: louder(out))


def pre_hook(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda m, args: (louder(args[0]), *args[1:]) if args else None)


def backward_hook(module: nn.Module) -> None:
    module.register_full_backward_hook(lambda m, given, out: tuple(None if g is None else g * 1.25 for g in given))


def replaced(module: nn.Module) -> None:
    """Gives the module a class of its own, as a user's subclass in its place has."""
    kind = type(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return louder(kind.forward(self, *args, **kwargs))

    module.__class__ = type("Louder", (kind,), {"forward": forward})


class Lora(nn.Module):
    """A layer plus a trained update, without the attributes of the layer."""

    def __init__(self, base: Any):
        super().__init__()
        self.base = base
        self.more = copy.deepcopy(base)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.3 * self.more(x)


def weight_norm(module: nn.Module) -> None:
    parametrizations.weight_norm(module)
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(1.25)  # type: ignore[union-attr, operator]


def pruned(module: nn.Module) -> None:
    """By a mask, as torch's choice of the smallest weights takes no channels_last ones."""
    weight: Any = module.weight
    prune.custom_from_mask(module, "weight", weight.abs() > weight.abs().median())


def frozen_activation(module: nn.Module) -> None:
    """Another dropout, eps or approximation, set on the module itself."""
    for name, value in (("p", 0.5), ("eps", 0.3), ("approximate", "none")):
        if name in module.__dict__:
            setattr(module, name, value)


LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d, nn.Embedding)
CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "hook": hook, "pre-hook": pre_hook, "backward hook": backward_hook, "replaced": replaced, "setting":
    frozen_activation, "weight_norm": weight_norm, "pruned": pruned,
}  # fmt: skip


def kinds_for(module: nn.Module) -> list[str]:
    kinds = ["hook", "pre-hook", "backward hook", "replaced"]
    if isinstance(module, (nn.GELU, nn.LayerNorm, nn.Dropout)):
        kinds.append("setting")
    return [*kinds, "lora", "weight_norm", "pruned"] if isinstance(module, LAYERS) else kinds


def change(model: nn.Module, path: str, kind: str) -> None:
    module = model.get_submodule(path)
    if kind == "lora":
        above, _, name = path.rpartition(".")
        setattr(model.get_submodule(above), name, Lora(module))
    else:
        CHANGES[kind](module)


def places(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields every module's path with every kind of change; lists and dicts are never called by anybody."""
    for path, module in model.named_modules():
        if path and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            for kind in kinds_for(module):
                yield path, kind


Call = Callable[[nn.Module], Tensor]


def result(model: nn.Module, call: Call) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)  # of dropout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = call(model)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out))
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def differs(want: tuple, got: tuple) -> str | None:
    """Says which of output and gradients differ, or returns None."""
    if want[1].keys() != got[1].keys():
        return f"gradients of {sorted(want[1].keys() ^ got[1].keys())[:2]}"
    largest = max(float(g.abs().max()) for g in want[1].values())
    if float((want[0] - got[0]).abs().max()) > LIMIT * float(want[0].abs().max()):
        return "output"
    for name, g in want[1].items():
        if float((g - got[1][name]).abs().max()) > LIMIT * largest:
            return f"gradient of {name}"
    return None


def judge(truth: nn.Module, fast: nn.Module, path: str, kind: str, call: Call, patch: Any = None) -> str:
    """Returns "served" or "refused", or what is wrong.

    Args:
        truth: model that calls every module; changed as the fast one is.
        fast: model to be judged; a copy is changed.
        path: path of the module.
        kind: kind of change.
        call: function that runs a model.
        patch: function that makes the changed model fast, and returns why it does not, or None.
    """
    truth, fast = copy.deepcopy(truth), copy.deepcopy(fast)
    comparable = path in dict(truth.named_modules())
    try:
        change(fast, path, kind)
        reason = None if patch is None else patch(fast)
        if reason is not None:
            return "refused" if path.split(".")[-1] in reason else f"refused without its name: {reason}"
        got = result(fast, call)
    except ValueError as error:
        return "refused" if path in str(error) else f"an error without its name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not comparable and kind == "setting":
        return "served"  # such as a norm's eps, which is read
    if not comparable:
        return "served where the oracle has no such module"
    change(truth, path, kind)
    wrong = differs(result(truth, call), got)
    return f"wrong: {wrong}" if wrong else "served"
