"""Preparation of a run: checks of its configuration, the number of loader workers, compiled blocks."""

import importlib.util
import os
from pathlib import Path

import torch

from latte_fast.distributed.ranks import Ranks
from latte_fast.evaluation.during_training import check_eval
from latte_fast.locks import LOCK
from latte_fast.models.config import require
from latte_fast.models.families import family_for
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.log import summary_writer
from latte_fast.runs.same import difference
from latte_fast.runs.tokens_checks import check_tokens
from latte_fast.runs.vqgan_checks import check_vqgan
from latte_fast.runs.yaml import read_config


def check_run(config: TrainConfig, ranks: Ranks, resume: bool) -> None:
    """Refuses every wrong setting that can be seen without opening the data."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"train: out must be a folder, got the file {out}")
    if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
        require(resume, "out", "a new folder, or the run resumed (--resume)", str(out))
        require((out / CONFIG).is_file(), "out", f"a run with {CONFIG} to be resumed", str(out))
        check_same(config, read_config(out / CONFIG, TrainConfig), out)
    require(ranks.count % config.sequence == 0, "sequence", f"a divisor of {ranks.count} processes", config.sequence)
    require(
        config.sequence == 1 or config.objective == "denoising", "sequence", "1 for this objective", config.sequence
    )
    teams = ranks.count // config.sequence
    shared = "processes" if config.sequence == 1 else f"teams of {config.sequence} processes"
    require(config.batch % teams == 0, "batch", f"a multiple of the {teams} {shared}", config.batch)
    share = config.batch // teams
    micro = config.micro_batch or share
    require(share % micro == 0, "micro_batch", f"a divisor of the {share} clips of a process", micro)
    several = ranks.count > 1
    require(config.parallel != "none" or not several, "parallel", f"ddp or fsdp for {ranks.count} processes", "none")
    sharded = config.parallel == "fsdp"
    rule = "fp32, bf16, or used with parallel = fsdp over several processes"
    require(config.precision != "bf16-weights" or not several or sharded, "precision", rule, config.precision)
    rule = "another for this objective, as tokens train a token transformer (--objective tokens)"
    require(config.data.kind != "tokens" or config.objective == "tokens", "data.kind", rule, config.data.kind)
    rule = "another for this objective, as sounds train a VQGAN (--objective vqgan)"
    require(config.data.kind != "sounds" or config.objective == "vqgan", "data.kind", rule, config.data.kind)
    if config.objective == "vqgan":
        check_vqgan(config)
    elif config.objective == "tokens":
        check_tokens(config)
    elif config.pretrained is not None:
        family = family_for(bool(config.data.text), config.model)
        require(family.can_start(Path(config.pretrained)), "pretrained", family.starts_from, config.pretrained)
    check_eval(config)
    if config.tensorboard:
        summary_writer()
    if config.graphs:
        require(ranks.device.type == "cuda" and not several, "graphs", "used by one process on a CUDA device", True)
        require(config.objective == "denoising", "graphs", "used with the objective denoising", True)
    if config.fp8:
        if importlib.util.find_spec("torchao") is None:
            raise RuntimeError("train: fp8 must have torchao; pip install 'latte_fast[fp8]'")
        require(ranks.device.type == "cuda", "fp8", "used on a CUDA device", config.fp8)


def check_same(config: TrainConfig, before: TrainConfig, out: Path) -> None:
    """Refuses a resumed run with another value of a setting that changes its losses; with latents the VAE is free."""
    changed = difference(config, before)
    if changed is not None:
        name, was, got = changed
        require(False, name, f"{was!r} as in {out / CONFIG}", got)


def readers(workers: int | None, device: torch.device) -> int:
    """Returns the number of loader workers: one would starve a GPU; on a CPU they would take the model's cores."""
    if workers is not None:
        return workers
    # this rank's share of the cores that it may use
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(4, share) if device.type == "cuda" else 0
