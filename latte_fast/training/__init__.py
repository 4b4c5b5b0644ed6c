"""Training: the trainer, with what it needs from runs/ and distributed/ under the names that users import."""

from latte_fast.distributed.ranks import Ranks, alone, start
from latte_fast.runs.config import DiffusionConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig
from latte_fast.runs.load import Trained
from latte_fast.runs.load import load as load_trained
from latte_fast.runs.yaml import read_config, write_config
from latte_fast.training.trainer import Trainer

__all__ = [
    "DiffusionConfig",
    "ModelConfig",
    "OptimConfig",
    "Ranks",
    "SampleConfig",
    "TrainConfig",
    "Trained",
    "Trainer",
    "alone",
    "load_trained",
    "read_config",
    "start",
    "write_config",
]
