"""What stands between a module and its call: hooks of torch, accelerate and diffusers, and replaced forwards."""

from torch import nn

# what accelerate and diffusers leave on a module whose forward they replaced; a registry may be empty again
_HOOK, REGISTRY = "_hf_hook", "_diffusers_hook"
# diffusers' hooks that move or widen weights and leave the numbers alone; all others change what a module returns
_MOVING = {"group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker", "lazy_leafs",
           "layerwise_casting"}  # fmt: skip


def is_replaced(module: nn.Module) -> bool:
    """Whether a module has a forward of its own: not its class's, which removed hooks leave behind."""
    forward = module.__dict__.get("forward")
    own = getattr(forward, "__func__", None)
    return forward is not None and (own is None or own not in [vars(c).get("forward") for c in type(module).__mro__])


def registered_hooks(module: nn.Module) -> list[str]:
    """The names of the hooks that diffusers put on a module."""
    return list(getattr(module.__dict__.get(REGISTRY), "hooks", None) or ())


def has_cache_hooks(module: nn.Module) -> bool:
    return any(name not in _MOVING for name in registered_hooks(module))


def is_untouched(module: nn.Module) -> bool:
    """Whether nothing stands between a module and its call: no hooks, no forward of its own put in its place."""
    hooked = module._forward_hooks or module._forward_pre_hooks or _HOOK in module.__dict__
    return not (hooked or is_replaced(module) or registered_hooks(module))


def is_heard(module: nn.Module) -> bool:
    """Whether somebody takes part in a module's call, more than to move its weights, which its layers have done too."""
    moved = _HOOK in module.__dict__ or registered_hooks(module)
    called = module._forward_hooks or module._forward_pre_hooks or has_cache_hooks(module)
    return bool(called or (is_replaced(module) and not moved))
