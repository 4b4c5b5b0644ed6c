"""What keeps diffusers' model from being patched: each detail that the fast blocks would compute otherwise."""

from typing import Any

import pytest
from torch import nn

from latte_fast import patch
from tests.helpers.pipelines import transformer


def space(model: Any) -> Any:
    return model.transformer_blocks[0]


def over_time(model: Any) -> Any:
    return model.temporal_transformer_blocks[0]


def plain_norm(eps: float, affine: bool) -> nn.LayerNorm:
    return nn.LayerNorm(72, eps=eps, elementwise_affine=affine)


SPOILED = {
    "hook": (lambda m: m.transformer_blocks[1].ff.net[0].register_forward_hook(print), "ff.net.0 has hooks"),
    "hook on the caption": (
        lambda m: m.caption_projection.register_forward_hook(print),
        "caption_projection has hooks",
    ),
    "hook on the time": (lambda m: m.adaln_single.emb.register_forward_hook(print), "adaln_single.emb has hooks"),
    "hook on the patches": (lambda m: m.pos_embed.register_forward_pre_hook(print), "pos_embed has hooks"),
    "hook on the last norm": (lambda m: m.norm_out.register_forward_hook(print), "norm_out has hooks"),
    "caption": (lambda m: setattr(m.caption_projection, "act_1", nn.SiLU()), "act_1 must be the tanh GELU"),
    "norm": (lambda m: setattr(m.temporal_transformer_blocks[0], "norm1", nn.RMSNorm(72)), "norm1 must be"),
    "upcast": (lambda m: setattr(m.transformer_blocks[0].attn2, "upcast_attention", True), "upcast_attention must be"),
    "chunks": (lambda m: m.transformer_blocks[0].set_chunk_feed_forward(2, 1), "feed-forward chunks must be None"),
    "count": (lambda m: m.temporal_transformer_blocks.append(nn.Identity()), "as many temporal_transformer_blocks"),
    "affine norm": (lambda m: setattr(space(m), "norm1", plain_norm(1e-6, True)), "norm1 must be a LayerNorm without"),
    "affine last norm": (lambda m: setattr(m, "norm_out", plain_norm(1e-6, True)), "norm_out must be a LayerNorm"),
    "eps of the last norm": (lambda m: setattr(m, "norm_out", plain_norm(1e-5, False)), "and with eps 1e-6, got"),
    "kind of norm": (lambda m: setattr(space(m), "norm_type", "ada_norm"), "must be 'ada_norm_single', got 'ada_norm'"),
    "positions": (lambda m: setattr(space(m), "pos_embed", nn.Identity()), "pos_embed and feed-forward chunks must be"),
    "erf GELU": (lambda m: setattr(space(m).ff.net[0], "approximate", "none"), "ff must be a tanh-GELU MLP"),
    "other MLP": (lambda m: space(m).ff.net.insert(0, nn.Linear(72, 72)), "ff must be a tanh-GELU MLP, got Linear"),
    "dropout": (lambda m: setattr(space(m).ff.net[1], "p", 0.1), "ff.net.1 must not drop anything, got p = 0.1"),
    "norm of queries": (lambda m: setattr(space(m).attn1, "norm_q", nn.LayerNorm(24)), "norm_q must be None"),
    "residual": (lambda m: setattr(over_time(m).attn1, "residual_connection", True), "must be False, got True"),
    "rescaled": (lambda m: setattr(space(m).attn1, "rescale_output_factor", 2.0), "must be 1.0, got 2.0"),
    "causal": (lambda m: setattr(over_time(m).attn1, "is_causal", True), "is_causal must be False, got True"),
    "softmax": (lambda m: setattr(space(m).attn2, "upcast_softmax", True), "upcast_softmax must be False, got True"),
    "conditions": (
        lambda m: setattr(m.adaln_single.emb, "use_additional_conditions", True),
        "conditions of resolution",
    ),
    "no text": (lambda m: setattr(space(m), "attn2", None), "attn2 must be an attention"),
    "text over time": (lambda m: setattr(over_time(m), "attn2", space(m).attn2), "attn2 must be None in a time block"),
    "projections": (lambda m: delattr(space(m).attn1, "to_out"), "must have heads, to_q, to_k, to_v and to_out"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_would_change_the_numbers_is_left(name: str) -> None:
    spoil, reason = SPOILED[name]
    theirs = transformer()
    kind = type(theirs)
    spoil(theirs)
    report = patch(theirs)
    assert not report.swapped and reason in report.kept[""]
    assert type(theirs) is kind
