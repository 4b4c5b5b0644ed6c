"""Compiles the blocks of a model one by one."""

import torch
from torch import nn


def compile_blocks(model: nn.Module) -> None:
    """Compiles each block by itself, and raises dynamo's limit of 8 graphs, past which calls run uncompiled.

    All blocks share one function and its limit: two axes, with and without gradients, in training and in sampling
    make 8 graphs; images and other sizes add more.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 64)
    for block in model.blocks:
        block.compile()
