"""What the 3D-VQGAN's forward does with each module of its tree."""

from latte_fast.modules.parts import CALLED, SILU, Part

# what has no forward of its own; norms are asked for their scale and shift
_BARE = "Module"
_NORM = Part("inside", ("BatchNorm or GroupNorm", _BARE))
_RES = Part("own", ("ResBlock",), {"norm1": _NORM, "conv1": CALLED, "norm2": _NORM, "conv2": CALLED})
_FINAL = Part("own", ("Final",), {"0": _NORM, "1": SILU})
# called by `padded` on an input without its border
_PADDED = Part("inside", ("Conv",), {"conv": CALLED})
_DOWN = Part("own", ("DownBlock",), {"down": _PADDED, "res": _RES})
_UP = Part("own", ("UpBlock",), {"up": CALLED, "res1": _RES, "res2": _RES})
VQGAN_PARTS = Part(
    "called",
    children={
        "encoder": Part(
            "own",
            ("Encoder",),
            {"conv_first": _PADDED, "conv_blocks": Part("inside", each=_DOWN), "final_block": _FINAL},
        ),
        "decoder": Part(
            "own",
            ("Decoder",),
            {"final_block": _FINAL, "conv_blocks": Part("inside", each=_UP), "conv_last": _PADDED},
        ),
        "pre_vq_conv": CALLED,
        "post_vq_conv": CALLED,
        "codebook": CALLED,
    },
)
