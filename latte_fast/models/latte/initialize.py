"""DiT's initialisation: a fresh model returns exactly 0."""

import torch
from torch import nn


def initialize(model: nn.Module) -> None:
    """Draws linear layers and patches by Xavier, embedders from N(0, 0.02^2); modulation and output start at zero.

    With compression frames, the transposed convolution starts by copying each latent frame to its s frames.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.x_embedder.proj.weight.flatten(1))
    nn.init.zeros_(model.x_embedder.proj.bias)
    if model.extras == 2:
        nn.init.normal_(model.y_embedder.embedding_table.weight, std=0.02)
    for i in (0, 2):
        nn.init.normal_(model.t_embedder.mlp[i].weight, std=0.02)
    for name, module in model.named_modules():
        if name.endswith("adaLN_modulation"):
            nn.init.zeros_(module[1].weight)
    nn.init.zeros_(model.final_layer.linear.weight)
    if hasattr(model, "upsample"):
        with torch.no_grad():
            weight = model.upsample.weight  # (C, C, s, 1, 1)
            weight.copy_(torch.eye(weight.shape[0]).view(*weight.shape[:2], 1, 1, 1).expand_as(weight))
            model.upsample.bias.zero_()
