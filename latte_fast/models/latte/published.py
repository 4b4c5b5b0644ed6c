"""The configuration of a published Latte, from the shapes of its tensors."""

import re
from dataclasses import fields
from math import isqrt

from torch import Tensor

from latte_fast.config import SIZES, LatteConfig

# a tensor of every Latte file, and of no text-to-video one
MARK = "x_embedder.proj.weight"


def config_of(state: dict[str, Tensor], source: str, any_heads: bool = False) -> LatteConfig:
    """Derives a published Latte's configuration from its tensors' shapes; heads come from the preset of that width.

    With `any_heads` another width gets some number of heads, which no shape depends on.
    """
    without = "temp_embed" not in state
    config = image_config_of(state, source, any_heads or without)
    if without:
        rule = "temp_embed, as a Latte of one frame a patch does"
        raise ValueError(f"{source}: must hold {rule}; a DiT is loaded by {call_of_load(config)}")
    table = state["temp_embed"]
    if table.dim() != 3:
        raise ValueError(f"{source}: temp_embed must be (1, F, D), got {tuple(table.shape)}")
    return LatteConfig(**vars(config) | {"variant": 1, "num_frames": table.shape[1]})


def call_of_load(config: LatteConfig) -> str:
    """Returns the call that loads a file by this configuration, as text, with the defaults left out."""
    given = [f"{f.name}={getattr(config, f.name)!r}" for f in fields(config) if getattr(config, f.name) != f.default]
    return f"latte_fast.load(path, config={type(config).__module__}.{type(config).__name__}({', '.join(given)}))"


def image_config_of(state: dict[str, Tensor], source: str, any_heads: bool = False) -> LatteConfig:
    """Derives the configuration of a DiT, a Latte of variant 0 and one frame, as `config_of` does."""
    try:
        width, channels, patch = state["x_embedder.proj.weight"].shape[:3]
        side = isqrt(state["pos_embed"].shape[1]) * patch
        out = state["final_layer.linear.weight"].shape[0]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{source}: must hold {error.args[0]}, as a Latte of one frame a patch does") from None
    except (ValueError, IndexError) as error:
        raise ValueError(f"{source}: must hold a Latte's tensors, got one with fewer axes ({error})") from None
    heads = {size[1]: size[2] for size in SIZES.values()}
    if any_heads and width not in heads:
        heads[width] = next((width // k for k in (64, 72, 32, 16, 8) if width % k == 0), width)
    if width not in heads:
        raise ValueError(f"{source}: width must be one of {', '.join(map(str, sorted(heads)))}, got {width}")
    table = state.get("y_embedder.embedding_table.weight")
    return LatteConfig(
        variant=0,
        input_size=side,
        patch_size=patch,
        in_channels=channels,
        hidden_size=width,
        depth=len({match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}),
        num_heads=heads[width],
        mlp_ratio=hidden / width,
        num_frames=1,
        num_classes=1000 if table is None else table.shape[0] - 1,
        learn_sigma=out == 2 * channels * patch * patch,
        extras=2 if table is not None else 78 if "text_embedding_projection.1.weight" in state else 1,
    )
