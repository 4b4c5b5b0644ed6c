"""From a run's configuration to its data, model and VAE; every check comes before any work."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latte_fast.data import open_dataset
from latte_fast.data.vae import VAE, open_vae
from latte_fast.models.pretrained import CLASSES, PIXART_CLASSES, folder_of
from latte_fast.models.pretrained import read_config as read_model_config
from latte_fast.training.config import TrainConfig, require
from latte_fast.training.family import Family
from latte_fast.training.log import summary_writer
from latte_fast.training.of_classes import OfClasses
from latte_fast.training.of_text import OfText
from latte_fast.training.parallel import Ranks
from latte_fast.training.yaml import read_config

CONFIG = "config.yaml"
# what a resumed run may change: none of these changes the numbers of a step, but that a cosine ends with `steps`
FREE = ("out", "steps", "micro_batch", "parallel", "compile", "workers", "log_every", "save_every", "keep", "sample",
        "tensorboard", "pretrained")  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is trained on what: the kind of model, the data, the shape that is noised."""

    family: Family
    dataset: Any
    latent: tuple[int, ...]  # (F+n, C, h, w)
    encoded: bool  # by a VAE whose posterior is sampled


def check_run(config: TrainConfig, ranks: Ranks, resume: bool) -> None:
    """Everything that can be refused without opening the data."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"train: out must be a folder, got the file {out}")
    if out.is_dir() and any(out.iterdir()):
        require(resume, "out", "a new folder, or the run resumed (--resume)", str(out))
        require((out / CONFIG).is_file(), "out", f"a run with {CONFIG} to be resumed", str(out))
        check_same(config, read_config(out / CONFIG, TrainConfig), out)
    require(config.batch % ranks.count == 0, "batch", f"a multiple of the {ranks.count} processes", config.batch)
    share = config.batch // ranks.count
    micro = config.micro_batch or share
    require(share % micro == 0, "micro_batch", f"a divisor of the {share} clips of a process", micro)
    several = ranks.count > 1
    require(config.parallel != "none" or not several, "parallel", f"ddp or fsdp for {ranks.count} processes", "none")
    sharded = config.parallel == "fsdp"
    rule = "fp32, bf16, or used with parallel = fsdp over several processes"
    require(config.precision != "bf16-weights" or not several or sharded, "precision", rule, config.precision)
    if config.pretrained is not None:
        start = Path(config.pretrained)
        rule = "a file, or a model's folder" if config.data.text else "a file"
        require(start.is_file() or (start.is_dir() and bool(config.data.text)), "pretrained", rule, config.pretrained)
    if config.tensorboard:
        summary_writer()
    if config.fp8:
        if importlib.util.find_spec("torchao") is None:
            raise RuntimeError("train: fp8 must have torchao; pip install 'latte_fast[fp8]'")
        require(ranks.device.type == "cuda", "fp8", "used on a CUDA device", config.fp8)


def check_same(config: TrainConfig, before: TrainConfig, out: Path) -> None:
    """A resumed run has the numbers it was started with; the VAE makes them but where latents are read."""
    free = (*FREE, "vae") if config.data.kind == "latents" else FREE
    new, old = asdict(config), asdict(before)
    new["model"].pop("recompute"), old["model"].pop("recompute")
    for name in old:
        if name in free or new[name] == old[name]:
            continue
        if isinstance(old[name], dict):
            inner = next(key for key in old[name] if old[name][key] != new[name][key])
            require(False, f"{name}.{inner}", f"{old[name][inner]!r} as in {out / CONFIG}", new[name][inner])
        require(False, name, f"{old[name]!r} as in {out / CONFIG}", new[name])


def open_task(config: TrainConfig, vae: VAE | None) -> Task:
    """Opens the data, reads one item, and fits the model's configuration to it; latents need no VAE but for samples."""
    dataset = open_dataset(config.data, config.frames, config.size, config.images)
    item = dataset[(0, 0)]
    clip = item["latent" if "latent" in item else "video"]
    frames, channels, height, width = clip.shape
    want = config.frames + config.images
    require(frames == want, "frames", f"with images the {frames} of an item of the data", want)
    require(height == width, "data", "of square clips", (height, width))
    encoded = False
    if "video" in item:
        assert vae is not None
        require(height % vae.factor == 0, "size", f"a multiple of the VAE's {vae.factor}", height)
        channels, height = vae.channels, height // vae.factor
        encoded = vae.random
    elif vae is not None:
        require(vae.channels == channels, "vae", f"of the latents' {channels} channels to show samples", config.vae)
    sizes = {"channels": channels, "side": height, "frames": config.frames}
    family: Family
    if dataset.texts is not None:
        begin = begin_of(config.pretrained)
        captions = dataset.texts.channels
        family = OfText(config.model.latte_t2v(**sizes, caption_channels=captions, begin=begin), dataset.texts)
    else:
        classes = list(dataset.classes) if "label" in item else []
        family = OfClasses(config.model.latte(**sizes, classes=len(classes)), classes)
    return Task(family, dataset, (want, channels, height, height), encoded)


def begin_of(path: str | None) -> dict[str, Any]:
    """The config of the text-to-video or PixArt-alpha folder that is started from."""
    if path is None or not Path(path).is_dir():
        return {}
    return read_model_config(folder_of(path), CLASSES + PIXART_CLASSES)


def new_model(config: TrainConfig, task: Task, say: Callable[[str], None]) -> tuple[nn.Module, float]:
    """A model by the run's seed or what it starts from, and how often labels are dropped, by sample number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = task.family.build(config.images, config.model.recompute)
    if config.pretrained is not None:
        say(task.family.start(model, config.pretrained))
    return model, config.model.class_dropout_prob if task.family.choices else 0.0


def convert_to_fp8(model: nn.Module) -> None:
    """The blocks' linear layers in fp8 where both sides divide by 16, by torchao.

    The text's are left out: fp8 needs a multiple of 16 rows too, and captions of 120 tokens have that only in pairs.
    """
    from torchao.float8 import convert_to_float8_training

    def fits(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or "blocks" not in name.split(".")[0] or "adaLN" in name:
            return False
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            return False
        return module.in_features % 16 == 0 and module.out_features % 16 == 0

    convert_to_float8_training(model, module_filter_fn=fits)


def readers(workers: int | None, device: torch.device) -> int:
    """How many processes read the data: one alone would starve a GPU; on a CPU they would take the model's cores."""
    if workers is not None:
        return workers
    # of the cores that this process may use, those of its share
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(4, share) if device.type == "cuda" else 0


def compile_blocks(model: nn.Module) -> None:
    """Each block by itself; all share their code, and with it dynamo's limit on the graphs of one function.

    It is 8, past which calls run uncompiled: two axes, with and without gradients, in training and for samples. Images
    and other sizes are more.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 64)
    for block in model.blocks:
        block.compile()


def open_run_vae(config: TrainConfig, device: torch.device) -> VAE | None:
    """What encodes clips and shows samples; None where neither is asked for."""
    if config.data.kind == "latents" and not config.sample.every:
        return None
    return open_vae(config.vae, device, torch.float32 if config.precision == "fp32" else torch.bfloat16)
