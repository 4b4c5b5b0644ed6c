"""The configuration of a tiny run: two blocks of width 16 on 8-pixel shapes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latte_fast import testing
from latte_fast.data import DataConfig
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import ModelConfig, OptimConfig, TrainConfig

MODEL = ModelConfig(patch_size=4, hidden_size=16, depth=2, num_heads=2, class_dropout_prob=0.2)
# FlexDiT on a grid of 4 x 4 patches
FLEX = replace(MODEL, patch_size=2, depth=6, layout="PD GSRD", sides=(1, 2, 3))


def tiny(out: str | Path, **changes: Any) -> TrainConfig:
    """Returns a configuration with eleven clips and batches of four, so that epochs end within a batch."""
    given: dict[str, Any] = {
        "model": MODEL,
        "data": DataConfig(kind="shapes", clips=11),
        "optim": OptimConfig(lr=3e-3, clip=0.5, warmup=5, rate="cosine", ema=0.9),
        "frames": 2,
        "size": 8,
        "steps": 12,
        "batch": 4,
        "log_every": 1,
        "save_every": 4,
    }
    return TrainConfig(out=str(out), **{**given, **changes})


def tiny_flex(out: str | Path, **changes: Any) -> TrainConfig:
    return tiny(out, **{"model": FLEX, **changes})


def stirred(network: nn.Module) -> nn.Module:
    """Gives the layers that start at zero weights of the usual size: a few steps of training leave them near it."""
    names = ("adaLN", "final_layer", "proj_out", "adaln_single.linear")
    with torch.no_grad():
        for name, p in network.named_parameters():
            if any(part in name for part in names):
                p.zero_()
    return testing.refill(network)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_log(out / LOG)]
