"""Whether every module of a tree still is what a fused forward takes it for: changed ones are called or refused.

A fused forward calls some modules of its tree, reads the weights of others, and computes what activations, norms and
dropouts compute by itself. A `Part` says which of these a place is, a tree of parts says it for a model, and `check`
walks the model's modules along that tree. The walk is kept, and each forward only compares what it saw: 0.2 ms for 28
blocks (a busy core of an AMD EPYC, 2026-11-26).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from latte_fast.modules.hooks import brings_weights, is_heard, is_predicted, listens_to_all
from latte_fast.tracing import constant_in_graphs

Rule = Callable[[nn.Module], str | None]


@dataclass(frozen=True)
class Part:
    """What a forward does with the module at a place.

    Args:
        role: called, as any module is, hooks included; own, called by our convention, with children that the forward
            knows; inside, never called, while its children are; fixed, neither called nor read, but computed.
        names: names of the classes whose forward may stand here, for own and inside.
        children: parts by the names of the module's children.
        each: part of every child, of a list.
        rule: function that returns why a module can't stand here, or None.
        foreign: the rule in another library's model.
        watched: attributes that the rule depends on.
        alone: function that returns whether the forward calls the module itself, whatever is inside.
    """

    role: str
    names: tuple[str, ...] = ()
    children: Mapping[str, "Part"] = field(default_factory=dict)
    each: "Part | None" = None
    rule: Rule | None = None
    foreign: Rule | None = None
    watched: tuple[str, ...] = ()
    alone: Callable[[nn.Module], bool] | None = None


def silu(module: nn.Module) -> str | None:
    return None if type(module) is nn.SiLU else f"must be SiLU, which the forward computes, got {module}"


def tanh_gelu(module: Any) -> str | None:
    right = type(module) is nn.GELU and module.approximate == "tanh"
    return None if right else f"must be the tanh GELU, which the forward computes, got {module}"


def does_nothing(module: Any) -> str | None:
    """Accepts what changes no number: identities, and dropout that drops nothing."""
    if type(module) is nn.Identity or (type(module) is nn.Dropout and not module.p):
        return None
    if isinstance(module, nn.Dropout) and module.p:
        return f"must not drop anything, got p = {module.p}"
    return f"is a {type(module).__name__} that the forward would not call"


def bare_norm(module: Any) -> str | None:
    right = type(module) is nn.LayerNorm and module.weight is None and module.eps == 1e-6
    return None if right else f"must be a LayerNorm without affine and with eps 1e-6, got {module}"


def any_bare_norm(module: Any) -> str | None:
    right = type(module) is nn.LayerNorm and module.weight is None
    return None if right else f"must be a LayerNorm without affine, got {module}"


def native_norm(module: Any) -> str | None:
    """Accepts a norm without affine, as adaLN has, or one whose plain weight and bias the forward reads."""
    right = type(module) is nn.LayerNorm and module.eps == 1e-6
    plain = all(type(p) is nn.Parameter for p in module._parameters.values()) or bare_norm(module) is None
    return None if right and plain else f"must be a LayerNorm with eps 1e-6, its weights plain, got {module}"


CALLED = Part("called")
SILU = Part("fixed", rule=silu)
TANH_GELU = Part("fixed", rule=tanh_gelu, watched=("approximate",))
NOTHING = Part("fixed", rule=does_nothing, watched=("p",))
BARE_NORM = Part("fixed", rule=bare_norm, watched=("eps", "elementwise_affine"))
ANY_BARE_NORM = Part("fixed", rule=any_bare_norm, watched=("eps", "elementwise_affine"))
NATIVE_NORM = Part("fixed", rule=native_norm, foreign=bare_norm, watched=("eps", "elementwise_affine"))
MODULATION = Part("inside", ("Sequential",), {"0": SILU, "1": CALLED})


class _Seen(NamedTuple):
    """One module as the walk saw it."""

    siblings: dict[str, Any]  # the parent's children
    name: str
    module: nn.Module
    kind: type
    size: int  # number of children
    quiet: bool  # whether nobody may listen to it
    watched: tuple[str, ...]
    values: tuple[Any, ...]


class _Walk:
    """The walk that a model keeps; copies of the model begin without."""

    def __init__(self) -> None:
        self.seen: list[_Seen] | None = None

    def __deepcopy__(self, memo: Any) -> "_Walk":
        return _Walk()

    def __reduce__(self) -> Any:
        return _Walk, ()


class Fused:
    """A model whose forward computes itself what some of its modules would."""

    parts: Part
    patched = False  # whether it is another library's model
    owned = False  # whether it is one of another library's class, made by us

    def check_parts(self, name: str) -> None:
        """Raises ValueError naming the first module that the forward would pass over."""
        reason = self.why_not_fused() if torch.compiler.is_compiling() else check(self)
        if reason is not None:
            more = "; latte_fast.unpatch(model) brings its own forward back" if self.patched and not self.owned else ""
            raise ValueError(f"{name}: {reason}{more}")

    @constant_in_graphs
    def why_not_fused(self) -> str | None:
        """Returns which module the forward would pass over, and why; torch.compile asks when it traces the forward."""
        return walk(self, self.parts, self.patched)[1]


def check(model: Fused) -> str | None:
    """Returns which module a forward would pass over, and why; what was seen is kept for the next call."""
    # kept by the model itself: from anywhere else it would keep alive what shards and process groups hang on
    kept = model.__dict__.setdefault("_walk", _Walk())
    if kept.seen is not None and not listens_to_all() and _unchanged(kept.seen):
        return None
    seen, reason = walk(model, model.parts, model.patched)
    kept.seen = seen if reason is None else None
    return reason


def _unchanged(seen: list[_Seen]) -> bool:
    # one loop without calls, as every forward runs it
    for siblings, name, module, kind, size, quiet, watched, values in seen:
        held = module.__dict__
        if siblings.get(name) is not module or type(module) is not kind or len(held["_modules"]) != size:
            return False
        if quiet and (
            held["_forward_hooks"]
            or held["_forward_pre_hooks"]
            or held["_backward_hooks"]
            or held["_backward_pre_hooks"]
            or ("forward" in held and (is_heard(module) or brings_weights(module)))
            or ("_diffusers_hook" in held and is_heard(module))
        ):
            return False
        if watched and tuple(map(held.get, watched)) != values:
            return False
    return True


def walk(model: Any, part: Part, patched: bool) -> tuple[list[_Seen] | None, str | None]:
    """Returns what each forward compares, and why the model can't run fused: the first such module and the reason.

    There is nothing to compare, but to walk again, while a module runs by itself: when it stops nothing tells.

    Args:
        model: model whose own hooks and class are nobody's concern, as it is called.
        part: part of the model itself.
        patched: whether it is another library's model, whose unknown modules must do nothing, and whose hooks on
            modules that get our layout would see other tensors than before.
    """
    seen: list[_Seen] = []
    lasts = True
    if listens_to_all():
        return seen, "torch's hooks for all modules must be removed, as the fused forward does not call every module"
    for path, siblings, name, module, here in _children(model, part, ""):
        if here is ALONE:
            lasts = False
            continue
        reason = _why_not(module, here, patched)
        if reason is not None:
            return seen, f"{path} {reason}"
        values = tuple(module.__dict__.get(w) for w in here.watched)
        quiet = here.role in ("inside", "fixed") or patched or here.rule is not None
        size = len(module._modules)
        seen.append(_Seen(siblings, name, module, type(module), size, quiet, here.watched, values))
    return (seen if lasts else None), None


def _children(module: nn.Module, part: Part, above: str) -> Iterator[tuple[str, dict, str, nn.Module, Part]]:
    """Yields (path, the parent's children, name, module, part) of the modules that are not simply called."""
    for name, child in module._modules.items():
        here = part.children.get(name, part.each or UNKNOWN)
        if child is None or here.role == "called":
            continue
        path = f"{above}.{name}".strip(".")
        if here.alone is not None and here.alone(child):
            yield path, module._modules, name, child, ALONE
            continue
        yield path, module._modules, name, child, here
        if here.role == "inside" or (here.role == "own" and forward_of(child) in here.names):
            yield from _children(child, here, path)


UNKNOWN = Part("unknown")
ALONE = Part("alone")


def _why_not(module: nn.Module, part: Part, patched: bool) -> str | None:
    if part.role == "unknown":
        # a module that a user added to one of ours was never called
        return (does_nothing(module) or _heard(module)) if patched else None
    if part.role == "own":
        if not patched:
            return part.rule(module) if part.rule is not None else None
        if is_predicted(module):
            return None
        known = forward_of(module) in part.names
        return _heard(module) if known else f"is a {type(module).__name__}, whose forward would not be called"
    if part.role == "inside" and part.names and forward_of(module) not in part.names:
        return f"must be a {part.names[0]}, whose layers the forward calls itself, got a {type(module).__name__}"
    rule = part.foreign if patched and part.foreign is not None else part.rule
    reason = rule(module) if rule is not None else None
    if reason is not None:
        return reason
    if part.role == "inside" and brings_weights(module):
        return "has a hook that brings the weights of all layers inside it, which the fused forward would not call"
    # lists and dicts have no call that anybody could listen to
    return _HEARD if is_heard(module) and not isinstance(module, (nn.ModuleList, nn.ModuleDict)) else None


_HEARD = "has hooks, which the fused forward would not call"


def _heard(module: nn.Module) -> str | None:
    return _HEARD if is_heard(module) else None


def forward_of(module: nn.Module) -> str:
    """Returns the name of the class whose forward a module runs."""
    if "forward" in module.__dict__ and is_heard(module):
        return "a function"
    return next(c.__name__ for c in type(module).__mro__ if "forward" in vars(c))
