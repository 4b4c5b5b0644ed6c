"""PixArt-alpha's initialisation, and time blocks that begin silent."""

from torch import nn


def initialize(model: nn.Module) -> None:
    """PixArt-alpha's: Xavier linear layers and patches, N(0, 0.02) embedders, text and output that start at 0."""
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
    """Time blocks that add nothing yet, so that a model of pictures goes on as what it was."""
    for block in model.temporal_transformer_blocks:
        for layer in (block.attn1.to_out[0], block.ff.net[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
