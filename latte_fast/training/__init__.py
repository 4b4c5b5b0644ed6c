"""Training: configuration, the loop, checkpoints, and trained models back from them."""

from latte_fast.training.config import DiffusionConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig
from latte_fast.training.load import Trained, load_trained
from latte_fast.training.parallel import Ranks, start
from latte_fast.training.trainer import Trainer
from latte_fast.training.yaml import read_config, write_config

__all__ = [
    "DiffusionConfig",
    "ModelConfig",
    "OptimConfig",
    "Ranks",
    "SampleConfig",
    "TrainConfig",
    "Trained",
    "Trainer",
    "load_trained",
    "read_config",
    "start",
    "write_config",
]
