"""What Latte's forward does with each module of its tree, upstream's and ours."""

from latte_fast.modules.parts import CALLED, MODULATION, NATIVE_NORM, Part

_ATTENTION = Part("own", ("Attention",), {"qkv": CALLED, "proj": CALLED})
# our Mlp calls an act that is not the tanh GELU
_MLP = Part("own", ("Mlp",), {"fc1": CALLED, "act": CALLED, "fc2": CALLED})
_BLOCK = Part(
    "own",
    ("Block", "TransformerBlock", "PoolBlock", "GenerateBlock", "RecoverBlock"),
    {
        "norm1": NATIVE_NORM,
        "norm2": NATIVE_NORM,
        "attn": _ATTENTION,
        "attn_time": _ATTENTION,
        "mlp": _MLP,
        "adaLN_modulation": MODULATION,
    },
)
LATTE = Part(
    "called",
    children={
        "x_embedder": Part("own", ("PatchEmbed",), {"proj": CALLED}),
        # its mlp is called, its own forward is ours
        "t_embedder": Part("own", ("TimestepEmbedder",), {"mlp": CALLED}),
        "y_embedder": CALLED,
        "text_embedding_projection": CALLED,
        "blocks": Part("inside", each=_BLOCK),
        "final_layer": Part(
            "own",
            ("FinalLayer",),
            {"norm_final": NATIVE_NORM, "linear": CALLED, "adaLN_modulation": MODULATION},
        ),
        "upsample": CALLED,
    },
)
