"""Attention by a backend of diffusers that was asked for by name, which its own Latte would pass over in silence."""

from typing import Any

from torch import Tensor, nn


class DispatchedProcessor:
    """AttnProcessor2_0, its attention left to diffusers' dispatcher, which knows all of its backends."""

    # names that diffusers looks for and sets
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self, before: Any):
        self.before = before  # the processor that the attention gets back

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attends within rows (R, L, D), or to rows of text (R, T, D) under a bias (R, 1, T)."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(rows).unflatten(-1, (attn.heads, -1))  # (R, L, H, K)
            for layer, rows in ((attn.to_q, hidden_states), (attn.to_k, keys), (attn.to_v, keys))
        )
        bias = None if attention_mask is None else attention_mask[:, None]  # (R, 1, 1, T)
        out = dispatch_attention_fn(q, k, v, attn_mask=bias, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def dispatch(attentions: list[Any]) -> list[Any]:
    """Gives attentions a processor that follows diffusers' choice of a backend; returns those that they had."""
    before = [attn.processor for attn in attentions]
    for attn in attentions:
        if not hasattr(attn.processor, "_attention_backend"):
            attn.set_processor(DispatchedProcessor(attn.processor))
    return before


def attentions_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "set_processor") and hasattr(module, "to_q")]
