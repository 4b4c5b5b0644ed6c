"""diffusers' caches on its Latte made fast: which modules each of them hooks, and what is refused, with the reason.

Attention caches hook the attentions, which the blocks then call as modules. Caches of residuals need blocks that take
and return one tensor of one shape: the pairs of a space and a time block on (B, F, N, D), a list that the model has as
its child `blocks` while such a cache is on.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from latte_fast.modules.hooks import has_cache_hooks, is_changed
from latte_fast.modules.residual import Pending, resolve

RESIDUAL = ("FirstBlockCacheConfig", "MagCacheConfig")
# caches that diffusers wrote for models with other parts, and which would do nothing here
ELSEWHERE = {
    "SeaCacheConfig": "is for Wan and Cosmos 3, whose parts it reads",
    "TextKVCacheConfig": "is for NucleusMoE-Image; here keys and values of the text are computed once a prompt anyway",
}
ATTENTIONS = r"(temporal_)?transformer_blocks\.\d+\.attn[12]"
PAIRS = r"blocks\.\d+"
RunPair = Callable[[int, Tensor, Pending | None], tuple[Tensor, Pending | None]]


class Pair(nn.Module):
    """A space and a time block as one module on (B, F, N, D), for hooks; it owns nothing and is told what to run."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def forward(self, hidden_states: Tensor, run: RunPair) -> Tensor:
        return resolve(*run(self.index, hidden_states, None))

    fused = forward


def make_pairs(model: Any) -> nn.ModuleList:
    return nn.ModuleList(Pair(i) for i in range(len(model.transformer_blocks)))


def run_pairs(pairs: nn.ModuleList, run: RunPair, x: Tensor) -> tuple[Tensor, Pending | None]:
    """Runs all pairs; residuals are added only before and after those that somebody listens to."""
    pending: Pending | None = None
    for pair in pairs:
        if type(pair) is Pair and not is_changed(pair):
            x, pending = run(pair.index, x, pending)
        else:
            x, pending = pair(resolve(x, pending), run), None
    return x, pending


def show_pairs(model: Any) -> None:
    model.blocks = make_pairs(model)


def hide_pairs(model: Any) -> None:
    """Leaves the pairs readable as `blocks`, for cache-dit's adapter, but no child of the model for hooks to find."""
    model._modules.pop("blocks", None)
    model.__dict__["blocks"] = make_pairs(model)


def forget_pairs(model: Any) -> None:
    for held in (model._modules, model.__dict__):
        held.pop("blocks", None)


def enable(model: Any, config: Any, apply: Callable[[Any], None]) -> None:
    """Enables a cache of diffusers, whose own `enable_cache` is `apply`; nothing is left behind where it is refused."""
    name = type(config).__name__
    if name in ELSEWHERE:
        raise ValueError(f"enable_cache: {name.removesuffix('Config')} {ELSEWHERE[name]}")
    before = set(_hooked(model))
    try:
        if name in RESIDUAL:
            _enable_residual(model, config, name)
        else:
            lite = name == "TaylorSeerCacheConfig" and config.use_lite_mode
            if lite:
                show_pairs(model)
            apply(for_latte(config) if name == "TaylorSeerCacheConfig" else config)
        if set(_hooked(model)) == before:
            raise ValueError(f"enable_cache: identifiers of {name} must name modules of the model, found none")
    except BaseException:
        hide_pairs(model)
        model._cache_config = None
        raise
    model._cache_config = config


def for_latte(config: Any) -> Any:
    """Returns a TaylorSeer config whose identifiers name Latte's modules; diffusers' defaults match none of them."""
    if config.use_lite_mode:
        return replace(config, use_lite_mode=False, skip_predict_identifiers=[PAIRS], cache_identifiers=["proj_out"])
    if config.cache_identifiers or config.skip_predict_identifiers:
        return config
    return replace(config, cache_identifiers=[ATTENTIONS])


def _enable_residual(model: Any, config: Any, name: str) -> None:
    from diffusers.hooks import HookRegistry
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    from diffusers.models.cache_utils import CacheMixin

    class Pairs(nn.Module, CacheMixin):
        """What the cache is shown of the model: its pairs alone, as it hooks every list of blocks that it finds."""

    if name == "FirstBlockCacheConfig" and len(model.transformer_blocks) < 2:
        raise ValueError("enable_cache: FirstBlockCache must have num_layers of 2 or more, as it never skips the first")
    metadata: Any = TransformerBlockMetadata
    known = metadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    TransformerBlockRegistry.register(Pair, known)
    show_pairs(model)
    shown = Pairs()
    shown.blocks = model.blocks
    shown.enable_cache(config)
    HookRegistry.check_if_exists_or_initialize(model)._child_registries_cache = None


def _hooked(model: nn.Module) -> Iterator[str]:
    return (name for name, module in model.named_modules() if has_cache_hooks(module))
