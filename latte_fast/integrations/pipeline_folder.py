"""Checks a pipeline's folder, and a run that replaces its transformer, before any weight is read."""

import json
from math import lcm
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from latte_fast.config import LatteT2VConfig
from latte_fast.models.latte_t2v.diffusers_folder import STEM
from latte_fast.models.latte_t2v.model import LatteT2V
from latte_fast.runs.load import Trained
from latte_fast.sampling.request import Request, TextRequest

# stems of the weight files of each part of a pipeline
WEIGHTS = {"text_encoder": ("model", "pytorch_model"), "vae": (STEM,), "transformer": (STEM,),
           "vae_temporal_decoder": (STEM,)}  # fmt: skip
# part, its config field, the model's field that must be equal, the default of the part's field
FITS = (("vae", "latent_channels", "in_channels", 4), ("vae_temporal_decoder", "latent_channels", "in_channels", 4),
        ("text_encoder", "d_model", "caption_channels", 512))  # fmt: skip
SIZES = ("in_channels", "out_channels", "patch_size", "sample_size", "video_length", "caption_channels")
# schedulers that take a prediction of x_0
OF_START = ("DDIM", "DDPM", "EulerDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep")
# height and width must be multiples of this for the pipeline, whatever the VAE
PIXELS = 8


def check_folder(folder: str | Path, text: TextRequest, request: Request, trained: Trained | None = None) -> None:
    """Raises ValueError where the folder, or a run that replaces its transformer, can't serve the samples asked for.

    Args:
        folder: folder of the pipeline.
        text: prompts and their options.
        request: sampling options.
        trained: trained model that replaces the transformer.
    """
    folder = Path(folder)
    if request.scale < 1:
        raise ValueError(f"sample: guidance must be at least 1 for text, 1 is no guidance, got {request.scale}")
    if trained is not None and not trained.adapter.in_pipelines:
        raise ValueError("sample: path must hold a text-to-video model beside --pretrained, got one of classes")
    if not folder.is_dir():
        raise ValueError(f"sample: pretrained must be a local folder, got {folder}")
    parts = ["text_encoder", "vae"]
    parts += ["transformer"] if trained is None else []
    parts += ["vae_temporal_decoder"] if text.temporal_decoder else []
    files = {part: f"{part}/config.json" for part in parts}
    needed = ["model_index.json", "tokenizer", "scheduler/scheduler_config.json", *files.values()]
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"sample: pretrained must hold {', '.join(needed)}; {missing[0]} is missing, found {found}")
    index = _read(folder / "model_index.json")
    configs = {part: _read(folder / file) for part, file in files.items()}
    sizes = _folder_sizes(configs["transformer"], folder) if trained is None else _run_sizes(trained)
    _check_fit(configs, sizes, "the run's model" if trained else "transformer", folder)
    length = sizes["video_length"]
    if text.frames not in (None, 1, length):
        raise ValueError(f"sample: frames must be {length} as the model's table, or 1, got {text.frames}")
    _check_side(configs["vae"], sizes, text, trained)
    # the pipeline creates the scheduler class that its index names
    kind = text.scheduler or str((index.get("scheduler") or [""])[-1]).removesuffix("Scheduler")
    _check_scheduler(_read(folder / "scheduler" / "scheduler_config.json"), kind, request, trained)
    for part in parts:
        _check_weights(folder / part, WEIGHTS[part])


def _run_sizes(trained: Trained) -> dict[str, int]:
    config = trained.model.config
    return {name: getattr(config, name) for name in SIZES} | {"out_channels": config.channels_out}


def _folder_sizes(config: dict[str, Any], folder: Path) -> dict[str, int]:
    """Returns the sizes of the folder's transformer; fields that its config leaves out are the published model's.

    Half of its output channels must be the variance, as the pipeline drops that half without a check.
    """
    known = LatteT2V.folder_classes
    if config.get("_class_name") not in known:
        raise ValueError(f"sample: transformer must be a {' or '.join(known)}, got {config.get('_class_name')!r}")
    sizes = {name: config.get(name, getattr(LatteT2VConfig, name)) for name in SIZES}
    if sizes["out_channels"] is None:
        sizes["out_channels"] = sizes["in_channels"]
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"sample: {name} of {folder / 'transformer'} must be a positive integer, got {size!r}")
    twice, got = 2 * sizes["in_channels"], sizes["out_channels"]
    if got != twice:
        rule = f"{twice}, half of them the variance"
        raise ValueError(f"sample: out_channels of {folder / 'transformer'} must be {rule}, got {got}")
    return sizes


def _check_fit(configs: dict[str, dict[str, Any]], sizes: dict[str, int], what: str, folder: Path) -> None:
    """Checks that the model's sizes fit the folder's other parts."""
    for part, theirs, ours, default in FITS:
        if part not in configs:
            continue
        got = configs[part].get(theirs, default)
        if got != sizes[ours]:
            rule = f"{got}, the {theirs} of {folder / part}"
            raise ValueError(f"sample: {ours} of {what} must be {rule}, got {sizes[ours]}")


def _check_side(vae: dict[str, Any], sizes: dict[str, int], text: TextRequest, trained: Trained | None) -> None:
    blocks = vae.get("block_out_channels", [64])
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"sample: block_out_channels of the VAE must be a list, got {blocks!r:.60}")
    factor = 2 ** (len(blocks) - 1)
    side = sizes["sample_size"] * factor if trained is None else trained.config.size
    of = lcm(PIXELS, factor * sizes["patch_size"])
    for name in ("height", "width"):
        pixels = getattr(text, name) or side
        if pixels % of:
            raise ValueError(f"sample: {name} must be a multiple of {of} pixels, as VAE and patch need, got {pixels}")


def _check_scheduler(config: dict[str, Any], name: str, request: Request, trained: Trained | None) -> None:
    process = None if trained is None else trained.config.diffusion
    steps = config.get("num_train_timesteps", 1000) if process is None else process.steps
    if request.steps > steps:
        raise ValueError(f"sample: steps must be in [1, {steps}], got {request.steps}")
    if process is not None and process.prediction == "flow":
        raise ValueError("sample: --pretrained must be left out for rectified flow, which these schedulers do not have")
    if process is not None and process.prediction == "start_x" and name not in OF_START:
        rule = f"one of {', '.join(OF_START)} for a run that predicts start_x"
        raise ValueError(f"sample: scheduler must be {rule}, got {name!r}")


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"sample: {file} must be a JSON object, got {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"sample: {file} must be a JSON object, got {config!r:.60}")
    return config


def _check_weights(folder: Path, stems: tuple[str, ...]) -> None:
    """Checks that a weight file or all its shards exist, and that safetensors are not cut short."""
    files = _weights(folder, stems)
    for file in files:
        if not file.is_file():
            raise ValueError(f"sample: {folder} must hold {len(files)} files of weights, {file.name} is missing")
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"sample: {file} must be whole, got {error}") from error


def _weights(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    names = [f"{stem}.{suffix}" for suffix in ("safetensors", "bin") for stem in stems]
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            places = _read(index).get("weight_map")
            if not isinstance(places, dict) or not places:
                raise ValueError(f"sample: {index} must hold a weight_map, got {places!r:.60}")
            return [folder / str(place) for place in sorted(set(places.values()))]
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:6])
    raise ValueError(f"sample: {folder} must hold {' or '.join(names)}, or an index of shards, found {found}")
