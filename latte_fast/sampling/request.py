"""Requests: what samples to draw and how, checked before any file is opened."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from latte_fast.diffusion import METHODS
from latte_fast.diffusion.noise import SEEDS
from latte_fast.media.formats import FPS

FORMATS = ("mp4", "gif", "png", "npz")
# those that upstream offers, as diffusers' class names without the ending Scheduler
SCHEDULERS = ("DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep",
              "PNDM", "HeunDiscrete", "DEISMultistep", "KDPM2AncestralDiscrete")  # fmt: skip
# samplers that only the loop over a plan has
PLANNED = ("unipc", "euler", "heun")
# fields whose option has another name
FLAGS = {"count": "samples", "scale": "guidance"}
# number of frames that a VAE, temporal or not, decodes at once, as upstream does
DECODED_AT_ONCE = 14


@dataclass(frozen=True)
class Request:
    """Number of samples and sampling options; `latte-fast sample --help` explains them."""

    count: int = 8
    batch: int = 4
    seed: int = 0
    steps: int = 50
    method: Literal["ddpm", "ddim", "dpm++", "unipc", "euler", "heun"] = "ddim"
    scale: float = 4.0
    eta: float = 0.0
    frames: int | None = None
    format: Literal["mp4", "gif", "png", "npz"] = "mp4"
    fps: float = 8.0
    plan: str = ""  # file of a plan; empty computes every step
    lossless: bool = False  # whether a run without a plan takes its modulations from a table
    precise_steps: tuple[str, ...] = ()  # names of the steps that a model with 8-bit layers runs in 16 bits

    def __post_init__(self) -> None:
        followed = self.followed
        for name in ("count", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"sample: {FLAGS.get(name, name)} must be at least 1, got {getattr(self, name)}")
        for name, known in (("method", (*METHODS, *PLANNED)), ("format", FORMATS)):
            if getattr(self, name) not in known:
                raise ValueError(f"sample: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        rules = (
            ("seed", 0 <= self.seed < SEEDS, "in [0, 2^64)"),
            ("scale", 0 <= self.scale < math.inf, "at least 0, and finite"),
            ("eta", 0 <= self.eta <= 1, "in [0, 1]"),
            ("eta", self.method == "ddim" or not self.eta, f"left out for {self.method}, as it is ddim's"),
            ("method", not followed or self.method != "ddpm", f"other than ddpm with {followed}, which holds no noise"),
            ("eta", not followed or not self.eta, f"left out with {followed}, which holds no noise"),
            ("lossless", not self.lossless or not self.plan, "left out with a plan, whose runs have tables anyway"),
            ("frames", self.frames is None or self.frames >= 1, "at least 1"),
            ("fps", FPS[0] <= self.fps <= FPS[1], f"from {FPS[0]} to {FPS[1]}"),
        )
        for name, ok, rule in rules:
            if not ok:
                raise ValueError(f"sample: {FLAGS.get(name, name)} must be {rule}, got {getattr(self, name)}")

    @property
    def followed(self) -> str:
        """What of a request a plan is needed for, in words; empty for none."""
        named = {"a plan": self.plan, "lossless": self.lossless, "a precision for each step": self.precise_steps}
        return next((name for name, given in named.items() if given), "")

    @property
    def calls(self) -> int:
        """Number of the model's calls for a batch: one a step, of heun two for all steps but the last."""
        return 2 * self.steps - 1 if self.method == "heun" else self.steps


@dataclass(frozen=True)
class TextRequest:
    """Prompts and the options of text to video; `latte-fast sample --help` explains them."""

    prompts: tuple[str, ...]
    negative: str = ""
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    over_time: bool = True
    temporal_decoder: bool = False
    decoded_at_once: int = DECODED_AT_ONCE
    seed_rule: Literal["philox", "old"] = "philox"

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("sample: prompt must not be empty")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"sample: scheduler must be one of {', '.join(SCHEDULERS)}, got {self.scheduler!r}")
        for name in ("height", "width", "frames", "decoded_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sample: {name} must be at least 1, got {value}")


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Reads prompts from a UTF-8 file, one a line; empty lines are skipped."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"sample: prompts must be a file with a prompt a line, got {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise ValueError(f"sample: prompts must be a file in UTF-8, got {path}: {error}") from error
    # at newlines alone, as a prompt may hold other separators of lines
    prompts = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not prompts:
        raise ValueError(f"sample: prompts must hold a prompt, got {path} without any")
    return prompts
