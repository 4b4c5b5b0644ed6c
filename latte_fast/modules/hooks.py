"""Finds what changes a module's call: hooks of torch, accelerate and diffusers, and replaced forwards."""

from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

# attributes that accelerate and diffusers set on a module whose forward they replace; a registry may be empty again
_HOOK, REGISTRY = "_hf_hook", "_diffusers_hook"
# diffusers' hooks that move or widen weights and leave the numbers alone; all others change what a module returns
_MOVING = {"group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker", "lazy_leafs",
           "layerwise_casting"}  # fmt: skip
# diffusers' attention processors that compute what the fused blocks compute
_DEFAULT_PROCESSORS = ("NoneType", "AttnProcessor", "AttnProcessor2_0")


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


def is_predicted(module: nn.Module) -> bool:
    """Returns whether all that listens to a module is diffusers' TaylorSeer, which any shape of tensors suits."""
    names = [name for name in registered_hooks(module) if name not in _MOVING]
    return names == ["taylorseer_cache"] and not has_torch_hooks(module)


def runs_itself(module: nn.Module) -> bool:
    """Returns whether a fused block must call a part of it as a module, for its hooks or a processor of its own.

    Parts without a forward, as ours are, have nothing that could be called.
    """
    held = module.__dict__
    processor = held.get("processor") or held["_modules"].get("processor")
    if type(processor).__name__ in _DEFAULT_PROCESSORS and not must_be_called(module):
        return False
    return type(module).forward is not nn.Module.forward


def has_torch_hooks(module: nn.Module) -> bool:
    """Returns whether torch calls a hook of any kind with the module: forward, backward, before or after."""
    held = module.__dict__
    return bool(
        held["_forward_hooks"] or held["_forward_pre_hooks"] or held["_backward_hooks"] or held["_backward_pre_hooks"]
    )


def is_untouched(module: nn.Module) -> bool:
    """Returns whether calling a module runs its class's forward alone: no hooks, no replaced forward."""
    hooked = has_torch_hooks(module) or _HOOK in module.__dict__
    return not (hooked or is_replaced(module) or registered_hooks(module))


def is_heard(module: nn.Module) -> bool:
    """Returns whether hooks do more to a module's call than move or gather its weights."""
    if has_torch_hooks(module):
        held = module.__dict__
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(not _gathers(hook) for kind in kinds for hook in held[kind].values()):
            return True
    if "forward" not in module.__dict__ and REGISTRY not in module.__dict__:
        return False
    moved = _HOOK in module.__dict__ or registered_hooks(module)
    return has_cache_hooks(module) or bool(is_replaced(module) and not moved)


def brings_weights(module: nn.Module) -> bool:
    """Returns whether accelerate brings the weights of all layers inside a module for the time of its call."""
    hook = module.__dict__.get(_HOOK)
    if hook is None:
        return False
    hooks = getattr(hook, "hooks", (hook,))
    placed = any(getattr(each, "offload", False) and getattr(each, "place_submodules", False) for each in hooks)
    return placed and next(module.parameters(), None) is not None


def must_be_called(module: nn.Module) -> bool:
    """Returns whether calling the layers inside a module one by one would leave out what its hooks do."""
    return is_heard(module) or brings_weights(module)


def is_changed(module: nn.Module) -> bool:
    """Returns whether hooks or a subclass's forward see what one of our modules is called with and returns."""
    own = getattr(type(module), "fused", None)
    return is_heard(module) or (own is not None and type(module).forward is not own)


def listens_to_all() -> bool:
    """Returns whether a hook for all modules is registered; those of torch's own tools only look on."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    hooks = [hook for kind in kinds for hook in getattr(torch_module, f"_global_{kind}").values()]
    return any(not str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)


def _gathers(hook: Any) -> bool:
    """Returns whether a hook is FSDP's, which gathers and frees weights."""
    owner = getattr(hook, "__self__", None)
    return type(owner).__module__.startswith("torch.distributed")
