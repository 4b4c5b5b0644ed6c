"""Weights as others read them: one file under upstream's keys, or a folder for diffusers."""

from pathlib import Path

import torch
from torch import Tensor

from latte_fast.models.checkpoint import read_checkpoint, save_state
from latte_fast.models.latte_t2v import LatteT2V
from latte_fast.training.build import CONFIG
from latte_fast.training.checkpoint import FOLDER
from latte_fast.training.config import TrainConfig
from latte_fast.training.load import load_trained
from latte_fast.training.yaml import read_config

FILES = (".safetensors", ".pt")
# one of them is in a text-to-video model's folder, or in its pipeline's
TEXT_FOLDER = ("config.json", "model_index.json")
# in every file of a model of classes
OF_CLASSES = "x_embedder.proj.weight"


def convert(source: str | Path, out: str | Path, weights: str = "ema", dtype: torch.dtype | None = None) -> Path:
    """Writes the weights of `source` to `out` and returns it.

    A model of classes becomes a file: .safetensors, or the .pt that upstream's scripts load. A text-to-video model
    becomes a folder that diffusers and `LatteT2V.from_pretrained` read.

    Args:
        source: a run's folder or one of its checkpoints, a file of upstream's, a text-to-video model's folder.
        out: must not exist, so that nothing is overwritten.
        weights: "ema", the average, or "model", where a run or a file has both.
        dtype: of the weights written; by default as they are.
    """
    source, out = Path(source), Path(out)
    if weights not in ("ema", "model"):
        raise ValueError(f"convert: weights must be ema or model, got {weights!r}")
    if out.exists():
        raise ValueError(f"convert: out must not exist, got {out}")
    if source.is_file():
        check_out(out, of_text=False)
        state = read_checkpoint(source, weights)
        if OF_CLASSES not in state:
            rule = f"a model of classes, with {OF_CLASSES}; one for text is given by its folder"
            raise ValueError(f"convert: source must hold {rule}, got {source} with {next(iter(state))}")
        save_state(_cast(state, dtype), out)
    elif any((source / name).is_file() for name in TEXT_FOLDER):
        check_out(out, of_text=True)
        LatteT2V.from_pretrained(source, dtype=dtype).save_pretrained(out)
    elif not (source / CONFIG).is_file() and source.parent.name != FOLDER:
        rule = f"a run's folder with {CONFIG}, one of its checkpoints, a {' or '.join(FILES)} file, "
        rule += f"or a text-to-video model's folder with {TEXT_FOLDER[0]}"
        raise ValueError(f"convert: source must be {rule}, got {source}")
    else:
        run = source.parents[1] if source.parent.name == FOLDER else source
        check_out(out, of_text=bool(read_config(run / CONFIG, TrainConfig).data.text))
        model = load_trained(source, weights).model
        if isinstance(model, LatteT2V):
            model.to(dtype).save_pretrained(out)
        else:
            save_state(_cast(model.state_dict(), dtype), out)
    return out


def check_out(out: Path, of_text: bool) -> None:
    if of_text and out.suffix in FILES:
        raise ValueError(f"convert: out must be a folder for a text-to-video model, got {out.name}")
    if not of_text and out.suffix not in FILES:
        raise ValueError(f"convert: out must end in {' or '.join(FILES)} for a model of classes, got {out.name}")


def _cast(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
