"""What LatteT2V's forward does with each module of its tree, diffusers' and ours."""

from torch import nn

from latte_fast.modules.hooks import runs_itself
from latte_fast.modules.parts import ANY_BARE_NORM, BARE_NORM, CALLED, NOTHING, SILU, TANH_GELU, Part

# what has no forward of its own, as our holders of parameters
_BARE = "Module"
_ATTENTION = Part(
    "inside",
    ("Attention", _BARE),
    {
        "to_q": CALLED,
        "to_k": CALLED,
        "to_v": CALLED,
        "to_out": Part("inside", children={"0": CALLED, "1": NOTHING}),
    },
    watched=("heads", "scale", "processor", "residual_connection", "rescale_output_factor", "upcast_attention",
             "upcast_softmax", "is_causal"),
    alone=runs_itself,
)  # fmt: skip
_FEED_FORWARD = Part(
    "inside",
    ("FeedForward", _BARE),
    {
        "net": Part(
            "inside",
            children={
                "0": Part("inside", ("GELU", "Gelu", _BARE), {"proj": CALLED}, watched=("approximate",)),
                "1": NOTHING,
                "2": CALLED,
            },
        )
    },
    alone=runs_itself,
)


def no_backward_hooks(block: nn.Module) -> str | None:
    """Refuses backward hooks, to which the text and its gradient would not be shown."""
    held = block.__dict__
    heard = held["_backward_hooks"] or held["_backward_pre_hooks"]
    why = "has backward hooks, which would not see the gradient of the text; hook attn2.to_k and to_v"
    return why if heard else None


_BLOCK = Part(
    "own",
    ("BlockT2V", "RecoverBlockT2V", "Block", "BasicTransformerBlock", "BasicTransformerBlock_"),
    {
        "norm1": ANY_BARE_NORM,
        "norm2": ANY_BARE_NORM,
        "norm3": ANY_BARE_NORM,
        "attn1": _ATTENTION,
        "attn2": _ATTENTION,
        "ff": _FEED_FORWARD,
    },
    rule=no_backward_hooks,
)


def waves(module: nn.Module) -> str | None:
    """Accepts the sin-cos table of time steps with the published settings."""
    held = {"num_channels": 256, "flip_sin_to_cos": True, "downscale_freq_shift": 0, "scale": 1}
    wrong = next((name for name, want in held.items() if getattr(module, name, want) != want), None)
    return None if wrong is None else f"must have {wrong} = {held[wrong]}, got {getattr(module, wrong)}"


_TIME = Part(
    "inside",
    ("TimestepEmbedding", _BARE),
    {"linear_1": CALLED, "act": SILU, "linear_2": CALLED},
    watched=("post_act", "cond_proj"),
)
LATTE_T2V = Part(
    "called",
    children={
        "pos_embed": Part("inside", ("PatchEmbed", _BARE), {"proj": CALLED}, watched=("norm", "pos_embed_type")),
        "transformer_blocks": Part("inside", each=_BLOCK),
        "temporal_transformer_blocks": Part("inside", each=_BLOCK),
        # for caches: they call blocks of the two lists, and own nothing
        "blocks": Part("inside", each=CALLED),
        "norm_out": BARE_NORM,
        "proj_out": CALLED,
        "adaln_single": Part(
            "inside",
            ("AdaLayerNormSingle", "Timestep", _BARE),
            {
                "emb": Part(
                    "inside",
                    (
                        "PixArtAlphaCombinedTimestepSizeEmbeddings",
                        "CombinedTimestepSizeEmbeddings",
                        "Timestep",
                        _BARE,
                    ),
                    {
                        "time_proj": Part(
                            "inside",
                            ("Timesteps",),
                            rule=waves,
                            watched=("num_channels", "flip_sin_to_cos", "downscale_freq_shift", "scale"),
                        ),
                        "timestep_embedder": _TIME,
                    },
                    watched=("use_additional_conditions",),
                ),
                "silu": SILU,
                "linear": CALLED,
            },
        ),
        "caption_projection": Part(
            "inside",
            ("PixArtAlphaTextProjection", "CaptionProjection", "Caption", _BARE),
            {"linear_1": CALLED, "act_1": TANH_GELU, "linear_2": CALLED},
        ),
    },
)
