"""Patching of text-to-video models: diffusers' LatteTransformer3DModel and upstream's LatteT2V."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.integrations.caches import enable, forget_pairs, hide_pairs, run_pairs
from latte_fast.integrations.called_block import CalledBlockT2V
from latte_fast.integrations.dispatched import DispatchedProcessor, attentions_of, dispatch
from latte_fast.integrations.swap import Kind
from latte_fast.integrations.unfused import unfused
from latte_fast.models.latte_t2v.model import FastT2V, RunBlocks, Stack
from latte_fast.models.latte_t2v.parts import LATTE_T2V
from latte_fast.modules.caching import Caching
from latte_fast.modules.hooks import has_cache_hooks, is_heard, is_predicted, runs_itself
from latte_fast.modules.parts import walk
from latte_fast.modules.residual import Pending

_PARTS = ("transformer_blocks", "temporal_transformer_blocks", "adaln_single", "caption_projection", "pos_embed")


class PatchedT2V(FastT2V):
    """FastT2V on diffusers' or upstream's module tree, with every cache that the installed diffusers has."""

    called_in_context = False  # whether a cache_context is open

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_cache_config", None) is None:
            return super().forward(hidden_states, *args, **kwargs)
        if torch.is_grad_enabled():
            raise RuntimeError("enable_cache: gradients must be off, as what a cache reuses has none")
        # diffusers' LattePipeline opens no context, without which most caches raise
        with nullcontext() if self.called_in_context else self.cache_context("inference"):
            return super().forward(hidden_states, *args, **kwargs)

    def output(self, sample: Tensor) -> Any:
        kind = getattr(sys.modules.get(type(self).__module__), "Transformer2DModelOutput", None)
        return super().output(sample) if kind is None else kind(sample=sample)

    def stack_runner(self) -> RunBlocks:
        return self.run_blocks if "blocks" not in self._modules else self.run_hooked

    def run_hooked(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Pending | None]:
        """Runs the pairs of blocks that a cache of residuals has hooked."""
        if self.parallel is not None:
            raise ValueError("enable_cache: ranks must not share a clip, as each would decide by its own tokens")
        pairs: Any = self.blocks
        return run_pairs(pairs, partial(self.run_pair, stack=self.stack_for(x, *args, **kwargs)), x)

    def run_pair(self, i: int, x: Tensor, pending: Pending | None, stack: Stack) -> tuple[Tensor, Pending | None]:
        """Runs space block i and, if there is attention over time, time block i."""
        x, pending = self.run_space(i, x, pending, stack)
        return self.run_time(i, x, pending, stack) if stack.temporal else (x, pending)

    @property
    def is_cache_enabled(self) -> bool:
        return super().is_cache_enabled or getattr(self, "_cache_config", None) is not None

    def enable_cache(self, config: Any) -> None:
        """Enables a cache of diffusers, or a latte_fast.StepCache; refuses at once what would do nothing here."""
        own = getattr(self, "_cache_config", None) or self.stack_reuse
        if self.is_cache_enabled:
            raise ValueError(f"Caching has already been enabled with {type(own).__name__}; call disable_cache() first")
        theirs = getattr(super(Caching, self), "enable_cache", None)
        if hasattr(config, "start_steps") or theirs is None:
            super().enable_cache(config)
        else:
            enable(self, config, theirs)

    def disable_cache(self) -> None:
        if getattr(self, "_cache_config", None) is None:
            super().disable_cache()
            return
        super(Caching, self).disable_cache()  # type: ignore[misc]
        hide_pairs(self)

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        super()._reset_stateful_cache(recurse)
        if getattr(self, "_cache_config", None) is not None:
            super(Caching, self)._reset_stateful_cache(recurse)  # type: ignore[misc]

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        theirs: Any = getattr(super(Caching, self), "cache_context", None)  # which 0.33 does not have, nor need
        own = theirs is None or getattr(self, "_cache_config", None) is None
        before, self.called_in_context = self.called_in_context, True
        try:
            with super().cache_context(name) if own else theirs(name, **where):
                yield
        finally:
            self.called_in_context = before

    def set_attention_backend(self, backend: str) -> None:
        """Leaves all attention to a backend of diffusers, unfused; without one each shape gets the fastest of ours."""
        attentions = attentions_of(self)
        before = dispatch(attentions)
        try:
            super().set_attention_backend(backend)  # type: ignore[misc]
        except BaseException:
            for attn, processor in zip(attentions, before, strict=True):
                attn.set_processor(processor)
            raise

    def reset_attention_backend(self) -> None:
        super().reset_attention_backend()  # type: ignore[misc]
        for attn in attentions_of(self):
            if isinstance(attn.processor, DispatchedProcessor):
                attn.set_processor(attn.processor.before)

    def leave(self) -> None:
        """Takes away what its own class can't do; caches of attention go on."""
        if "blocks" in self._modules:
            self.disable_cache()
        forget_pairs(self)


def block_hooks(model: nn.Module) -> str | None:
    """Returns why a model whose blocks have hooks of a cache can't run fast, or None where they have none."""
    for name in ("transformer_blocks", "temporal_transformer_blocks"):
        for i, block in enumerate(getattr(model, name)):
            if has_cache_hooks(block) and not is_predicted(block):
                why = "has cache hooks for blocks that keep the shape of their tokens"
                return f"{name}.{i} {why}; disable the cache, patch, and enable it again"
    return None


def looks_like_t2v(module: nn.Module) -> bool:
    # in _modules, as a compiled model's or LoRA's wrapper shows attributes of the module inside
    return all(name in module._modules for name in _PARTS)


def swaps(model: nn.Module) -> Iterator[tuple[str, nn.Module, type[nn.Module]]]:
    yield "", model, PatchedT2V
    for name in ("transformer_blocks", "temporal_transformer_blocks"):
        for i, block in enumerate(getattr(model, name)):
            yield f"{name}.{i}", block, CalledBlockT2V


def why_not(model: Any) -> str | None:
    """Returns which detail of a text-to-video model would change its results if it were swapped, or None."""
    if len(model.transformer_blocks) != len(model.temporal_transformer_blocks):
        return "it must have as many temporal_transformer_blocks as transformer_blocks"
    reason = block_hooks(model)
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
    called = tuple(f"{name}." for name, child in block.named_children() if runs_itself(child))
    for name, module in block.named_modules():
        if name and list(module.children()) and is_heard(module) and not f"{name}.".startswith(called):
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
    return None


def finish(model: Any) -> None:
    """Prepares a patched model's projections and pairs."""
    hide_pairs(model)
    model.share_projections()


KIND: Kind = Kind(looks_like_t2v, FastT2V, why_not, lambda model: None, swaps, finish, unfused)
