"""Whether two configurations are those of one run: which settings may differ, and which one does."""

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from latte_fast.runs.config import TrainConfig

# settings that a resumed run may change: none changes the result of a step, except that a cosine ends with `steps`
FREE = ("out", "steps", "micro_batch", "parallel", "sequence", "compile", "workers", "log_every", "save_every", "keep",
        "sample", "eval", "tensorboard", "pretrained", "verify", "model.recompute")  # fmt: skip
# where files lie, which may be moved
PLACES = ("vae", "data.path", "data.text", "data.image_path", "data.image_list", "data.index")


def difference(config: TrainConfig, before: TrainConfig, free: Collection[str] = FREE) -> tuple[str, Any, Any] | None:
    """Returns the first setting that differs and is not free: its name, the value before and now."""
    free = [*free, "vae"] if config.data.kind in ("latents", "tokens") else free
    if config.objective == "vqgan" and config.vqgan.model.norm == "batch":
        free = [name for name in free if name != "micro_batch"]  # whose statistics are those of a micro-batch
    new, old = asdict(config), asdict(before)
    for name, was in old.items():
        if name in free or new[name] == was:
            continue
        if not isinstance(was, dict):
            return name, was, new[name]
        for key, value in was.items():
            if f"{name}.{key}" not in free and new[name][key] != value:
                return f"{name}.{key}", value, new[name][key]
    return None
