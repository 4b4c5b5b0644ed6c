"""A trained model from a run's folder, one of its checkpoints, or a file of upstream's."""

import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from latte_fast.config import SIZES, LatteConfig, LatteT2VConfig
from latte_fast.models.checkpoint import load_checkpoint, load_state, read_checkpoint
from latte_fast.models.latte import Latte
from latte_fast.models.latte_t2v import LatteT2V
from latte_fast.training import checkpoint
from latte_fast.training.build import CONFIG
from latte_fast.training.config import TrainConfig
from latte_fast.training.of_classes import OfClasses
from latte_fast.training.of_text import OfText
from latte_fast.training.yaml import from_mapping, read_config


@dataclass(frozen=True)
class Trained:
    """A model in evaluation, and what is known of it."""

    model: Latte | LatteT2V
    config: TrainConfig
    classes: list[str]
    step: int


def load_trained(path: str | Path, weights: str = "ema", device: torch.device | str = "cpu") -> Trained:
    """Loads the newest whole checkpoint of a run's folder, the one a checkpoint's folder holds, or a file's weights.

    Args:
        path: the run's folder, runs/x/checkpoints/step-n, or a .pt or .safetensors file under upstream's keys.
        weights: "ema", the average, or "model", the weights themselves.
        device: of the model.
    """
    path = Path(path)
    if weights not in ("ema", "model"):
        raise ValueError(f"load_trained: weights must be ema or model, got {weights!r}")
    if path.is_file():
        state = read_checkpoint(path, weights)
        found_model = OfClasses(config_of(state, str(path)), []).build()
        load_state(found_model, state, str(path))
        return Trained(found_model.to(device).eval(), TrainConfig(), [], 0)
    if path.parent.name == checkpoint.FOLDER:
        folder, run = path, path.parents[1]
        checkpoint.verify(folder)
    else:
        run = path
        if not (run / CONFIG).is_file():
            rule = f"a run's folder with {CONFIG}, a checkpoint's, or a file"
            raise ValueError(f"load_trained: path must be {rule}, got {path}")
        found = checkpoint.latest(run)
        if found is None:
            raise ValueError(f"load_trained: path must have a whole checkpoint in {checkpoint.FOLDER}/, got {path}")
        folder = found
    config = read_config(run / CONFIG, TrainConfig)
    meta = checkpoint.read_meta(folder)
    where = str(folder / "meta.json")
    model: Latte | LatteT2V
    if config.data.text:
        model = OfText(from_mapping(LatteT2VConfig, meta["model"], where), None).build()
    else:
        model = OfClasses(from_mapping(LatteConfig, meta["model"], where), []).build(config.images)
    load_checkpoint(model, folder / f"{weights}.safetensors")
    return Trained(model.to(device).eval(), config, list(meta["classes"]), meta["step"])


def config_of(state: dict[str, Tensor], source: str) -> LatteConfig:
    """The configuration of a published Latte from its tensors' shapes; heads are the preset's of that width."""
    try:
        width, channels, patch = state["x_embedder.proj.weight"].shape[:3]
        side = isqrt(state["pos_embed"].shape[1]) * patch
        frames = state["temp_embed"].shape[1]
        out = state["final_layer.linear.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{source}: must hold {error.args[0]}, as a Latte of one frame a patch does") from None
    heads = {size[1]: size[2] for size in SIZES.values()}
    if width not in heads:
        raise ValueError(f"{source}: width must be one of {', '.join(map(str, sorted(heads)))}, got {width}")
    table = state.get("y_embedder.embedding_table.weight")
    return LatteConfig(
        input_size=side,
        patch_size=patch,
        in_channels=channels,
        hidden_size=width,
        depth=len({match[1] for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}),
        num_heads=heads[width],
        num_frames=frames,
        num_classes=1000 if table is None else table.shape[0] - 1,
        learn_sigma=out == 2 * channels * patch * patch,
        extras=1 if table is None else 2,
    )
