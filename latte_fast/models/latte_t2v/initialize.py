"""PixArt-alpha's initialisation, and time blocks whose output starts at zero."""

from torch import nn


def initialize(model: nn.Module) -> None:
    """Draws linear layers and patches by Xavier, embedders from N(0, 0.02^2); zeroes cross-attention and the head."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.flatten(1))
    nn.init.zeros_(model.pos_embed.proj.bias)
    single, caption = model.adaln_single, model.caption_projection
    layers = single.emb.timestep_embedder
    for layer in (layers.linear_1, layers.linear_2, single.linear, caption.linear_1, caption.linear_2):
        nn.init.normal_(layer.weight, std=0.02)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)


def silence_time(model: nn.Module) -> None:
    """Zeroes what time blocks add, so that a model started from an image model first computes the same pictures."""
    for block in model.temporal_transformer_blocks:
        for layer in (block.attn1.to_out[0], block.ff.net[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
