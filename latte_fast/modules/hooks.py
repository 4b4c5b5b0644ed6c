"""Finds what changes a module's call: hooks of torch, accelerate and diffusers, and replaced forwards."""

from torch import nn

# attributes that accelerate and diffusers set on a module whose forward they replace; a registry may be empty again
_HOOK, REGISTRY = "_hf_hook", "_diffusers_hook"
# diffusers' hooks that move or widen weights and leave the numbers alone; all others change what a module returns
_MOVING = {"group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker", "lazy_leafs",
           "layerwise_casting"}  # fmt: skip


def is_replaced(module: nn.Module) -> bool:
    """Returns whether an instance's forward is not its class's (removed hooks leave the class's on the instance)."""
    forward = module.__dict__.get("forward")
    own = getattr(forward, "__func__", None)
    return forward is not None and (own is None or own not in [vars(c).get("forward") for c in type(module).__mro__])


def registered_hooks(module: nn.Module) -> list[str]:
    """Returns the names of the hooks that diffusers put on a module."""
    return list(getattr(module.__dict__.get(REGISTRY), "hooks", None) or ())


def has_cache_hooks(module: nn.Module) -> bool:
    return any(name not in _MOVING for name in registered_hooks(module))


def is_untouched(module: nn.Module) -> bool:
    """Returns whether calling a module runs its class's forward alone: no hooks, no replaced forward."""
    hooked = module._forward_hooks or module._forward_pre_hooks or _HOOK in module.__dict__
    return not (hooked or is_replaced(module) or registered_hooks(module))


def is_heard(module: nn.Module) -> bool:
    """Returns whether hooks do more to a module's call than move its weights, for which its layers have hooks too."""
    moved = _HOOK in module.__dict__ or registered_hooks(module)
    called = module._forward_hooks or module._forward_pre_hooks or has_cache_hooks(module)
    return bool(called or (is_replaced(module) and not moved))
