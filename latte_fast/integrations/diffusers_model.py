"""Patching of text-to-video models: diffusers' LatteTransformer3DModel and upstream's LatteT2V."""

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from latte_fast.integrations.swap import Kind
from latte_fast.models.latte_t2v.block import BlockT2V
from latte_fast.models.latte_t2v.model import FastT2V
from latte_fast.models.latte_t2v.parts import LATTE_T2V
from latte_fast.modules.hooks import has_cache_hooks, is_heard, is_untouched
from latte_fast.modules.parts import walk

_PARTS = ("transformer_blocks", "temporal_transformer_blocks", "adaln_single", "caption_projection", "pos_embed")


class PatchedT2V(FastT2V):
    """FastT2V on diffusers' or upstream's module tree."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        reason = cache_hooks(self)
        if reason:
            raise RuntimeError(f"patch: {reason}")
        return super().forward(hidden_states, *args, **kwargs)

    def output(self, sample: Tensor) -> Any:
        kind = getattr(sys.modules.get(type(self).__module__), "Transformer2DModelOutput", None)
        return super().output(sample) if kind is None else kind(sample=sample)

    def enable_cache(self, config: Any) -> None:
        if hasattr(config, "start_steps"):
            super().enable_cache(config)
            return
        raise RuntimeError(f"patch: {_CACHE_REASON}; latte_fast.unpatch the model to use {type(config).__name__}")


_CACHE_REASON = "diffusers' caches hook the attention modules, which a fused block does not call"


def cache_hooks(model: nn.Module) -> str | None:
    """Returns why a model with diffusers' cache hooks can't run fast, or None where it has none."""
    for name in ("transformer_blocks", "temporal_transformer_blocks"):
        for i, block in enumerate(getattr(model, name)):
            for child in (block, block.attn1, getattr(block, "attn2", None)):
                if child is not None and has_cache_hooks(child):
                    return f"{name}.{i} has cache hooks: {_CACHE_REASON}; disable the cache or unpatch"
    return None


def looks_like_t2v(module: nn.Module) -> bool:
    # in _modules, as a compiled model's or LoRA's wrapper shows attributes of the module inside
    return all(name in module._modules for name in _PARTS)


def swaps(model: nn.Module) -> Iterator[tuple[str, nn.Module, type[nn.Module]]]:
    yield "", model, PatchedT2V
    for name in ("transformer_blocks", "temporal_transformer_blocks"):
        for i, block in enumerate(getattr(model, name)):
            yield f"{name}.{i}", block, BlockT2V


def why_not(model: Any) -> str | None:
    """Returns which detail of a text-to-video model would change its results if it were swapped, or None."""
    if len(model.transformer_blocks) != len(model.temporal_transformer_blocks):
        return "it must have as many temporal_transformer_blocks as transformer_blocks"
    reason = cache_hooks(model)
    if reason:
        return reason
    for name in ("transformer_blocks", "temporal_transformer_blocks"):
        for i, block in enumerate(getattr(model, name)):
            reason = _why_not_block(block, space=name == "transformer_blocks")
            if reason:
                return f"{name}.{i}.{reason}"
    return _why_not_ends(model) or walk(model, LATTE_T2V, patched=True)[1]


def _why_not_ends(model: Any) -> str | None:
    """Returns which detail before or after the blocks would change the model's results, or None."""
    if getattr(model.adaln_single.emb, "use_additional_conditions", False):
        return "adaln_single must not have conditions of resolution and aspect ratio"
    activation = getattr(model.caption_projection, "act_1", None)
    if activation is not None and not (isinstance(activation, nn.GELU) and activation.approximate == "tanh"):
        return f"caption_projection.act_1 must be the tanh GELU, got {activation}"
    norm = getattr(model, "norm_out", None)
    if norm is not None and not _is_bare(norm, 1e-6):
        return f"norm_out must be a LayerNorm without affine and with eps 1e-6, got {norm}"
    for part in ("pos_embed", "adaln_single", "caption_projection", "norm_out"):
        for name, module in getattr(model, part, nn.Identity()).named_modules(prefix=part):
            # the fast forward calls the layers inside, not the modules that hold them
            if (list(module.children()) or part == "norm_out") and is_heard(module):
                return f"{name} has hooks, which the fast forward would not call"
    return None


def _is_bare(norm: Any, eps: float | None = None) -> bool:
    return isinstance(norm, nn.LayerNorm) and not norm.elementwise_affine and eps in (None, norm.eps)


def _why_not_block(block: Any, space: bool) -> str | None:
    if getattr(block, "norm_type", "ada_norm_single") != "ada_norm_single":
        return f"norm_type must be 'ada_norm_single', got {block.norm_type!r}"
    if not _is_bare(getattr(block, "norm1", None)):
        return f"norm1 must be a LayerNorm without affine, got {getattr(block, 'norm1', None)}"
    if getattr(block, "pos_embed", None) is not None or getattr(block, "_chunk_size", None) is not None:
        return "pos_embed and feed-forward chunks must be None"
    for name in ("attn1", "attn2"):
        attn = getattr(block, name, None)
        if (attn is None) != (name == "attn2" and not space):
            return f"{name} must be {'None in a time block' if attn is not None else 'an attention'}"
        reason = None if attn is None else _why_not_attention(attn)
        if reason:
            return f"{name}: {reason}"
    activation = block.ff.net[0]
    if not hasattr(activation, "proj") or getattr(activation, "approximate", "tanh") != "tanh":
        return f"ff must be a tanh-GELU MLP, got {activation}"
    for name, module in block.named_modules():
        if name and list(module.children()) and not is_untouched(module):
            return f"{name} has hooks, which a fused block would not call"
        if isinstance(module, nn.Dropout) and module.p > 0:
            return f"{name} must not drop anything, got p = {module.p}"
    return None


def _why_not_attention(attn: Any) -> str | None:
    if not all(hasattr(attn, n) for n in ("heads", "to_q", "to_k", "to_v", "to_out")):
        return "it must have heads, to_q, to_k, to_v and to_out"
    for name in ("norm_q", "norm_k", "group_norm", "spatial_norm", "norm_cross", "add_k_proj"):
        if getattr(attn, name, None) not in (None, False):
            return f"{name} must be None"
    wanted = {"residual_connection": False, "rescale_output_factor": 1.0, "upcast_attention": False}
    for name, value in (wanted | {"upcast_softmax": False, "is_causal": False}).items():
        if getattr(attn, name, value) != value:
            return f"{name} must be {value}, got {getattr(attn, name)}"
    processor = type(getattr(attn, "processor", None)).__name__
    if processor not in ("NoneType", "AttnProcessor", "AttnProcessor2_0"):
        return f"its processor {processor} computes something of its own"
    return None


def share_projections(model: Any) -> dict[str, str]:
    why = "its to_q, to_k and to_v run one by one: LoRA, hooks, quantised or sharded weights do not share a storage"
    return dict.fromkeys(model.share_projections(), why)


KIND: Kind = Kind(looks_like_t2v, FastT2V, why_not, lambda model: None, swaps, share_projections)
