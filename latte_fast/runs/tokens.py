"""A trained token transformer: its model, and what its tokens stand for, read from a run or one of its checkpoints."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.data import DataConfig
from latte_fast.models.checkpoint import CheckpointError, load_checkpoint, read_about
from latte_fast.models.tats.transformer import TokenTransformer
from latte_fast.models.tats.transformer_config import TransformerConfig
from latte_fast.models.tats.transformer_files import build
from latte_fast.quantization.convert import quantize_or_refuse
from latte_fast.runs import checkpoint
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.load import check_config
from latte_fast.runs.weights8 import is_8bit_file, load_8bit
from latte_fast.runs.yaml import from_mapping, read_config


@dataclass(frozen=True)
class TokenLayout:
    """What the tokens of a transformer stand for: a condition, then latent frames of side x side codes.

    Args:
        frames: latent frames of a clip that the model sees.
        side: height and width of a latent frame in codes.
        n_codes: number of the VQGAN's codes, which come after the conditions in the vocabulary.
        conditions: number of classes, or of the vocabulary of captions or sounds; 0 for a model without, whose
            condition is token 0, a code's too.
        every: distance of the model's latent frames in the film.
        gap: whether the model fills the frames between the first and the last.
        fingerprint: digits of the VQGAN.
        frame_factor: frames a latent frame.
        factor: pixels a code in height and width.
        words: number of tokens of a caption or sound, which is the condition; 0 for a model without either.
        bpe: digits of the vocabulary of captions.
        sound: digits of the VQGAN of sounds.
        fps: frames a second of the films that the sounds belong to.
        whole: height and width of a film's latent frame, of which the model sees windows; 0 where it sees all.
    """

    frames: int
    side: int
    n_codes: int
    conditions: int
    every: int
    gap: bool
    fingerprint: str
    frame_factor: int
    factor: int
    words: int = 0
    bpe: str = ""
    sound: str = ""
    fps: float = 0.0
    whole: int = 0

    @property
    def given(self) -> int:
        """Number of tokens of a condition."""
        return self.words or 1

    @property
    def sound_per_frame(self) -> int:
        """Number of a sound's tokens for a latent frame."""
        return self.words // self.frames if self.sound else 0

    @property
    def per_frame(self) -> int:
        return self.side * self.side

    @property
    def film_side(self) -> int:
        """Height and width of a film's latent frame in codes."""
        return self.whole or self.side

    def window(self, corner: Tensor) -> Tensor:
        """Returns the places (B, t h w) of windows in a film's codes, whose upper left corners are (B, 2) of (y, x)."""
        at = torch.arange(self.side, device=corner.device)
        rows, columns = corner[:, :1] + at, corner[:, 1:] + at  # (B, side)
        inside = rows[:, :, None] * self.film_side + columns[:, None]  # (B, side, side)
        return self.film_places(inside.flatten(1))

    def film_places(self, inside: Tensor) -> Tensor:
        """Returns the places (B, t n) in all frames of a block, of places (B, n) in one."""
        frames = torch.arange(self.frames, device=inside.device) * self.film_side**2
        return (frames[:, None] + inside[:, None]).flatten(1)

    def model(self, n_layer: int, n_head: int, n_embd: int) -> TransformerConfig:
        """Returns the configuration of a transformer of these sizes; the last code is predicted and never seen.

        With captions or sounds the block has room for it all the same, as the authors' has.
        """
        unmasked = self.per_frame if self.gap else 0
        codes, block = self.conditions + self.n_codes, self.frames * self.per_frame + self.words
        table = (self.frames, self.whole, self.whole) if self.whole else None
        return TransformerConfig(codes, block, n_layer, n_head, n_embd, unmasked, table)

    def sequence(self, tokens: Tensor, given: Tensor | None) -> Tensor:
        """Returns condition and codes (B, n + t h w) as numbers of the vocabulary, of tokens (B, t, h, w).

        The condition is (B,) numbers of classes, (B, n) tokens of captions or sounds, or None.
        """
        codes = tokens.flatten(1) + self.conditions
        given = codes.new_zeros(len(codes)) if given is None else given.to(codes.device, codes.dtype)
        return torch.cat([given.view(len(codes), -1), codes], 1)


@dataclass(frozen=True)
class TrainedTokens:
    """A token transformer in eval mode, what its tokens stand for, and the configuration and step of its run."""

    model: TokenTransformer
    layout: TokenLayout
    classes: list[str]
    config: TrainConfig
    step: int


def is_token_run(path: str | Path) -> bool:
    """Whether a path is the run of a token transformer, one of its checkpoints, or a file of its weights in 8 bits."""
    run = _run_of(Path(path))
    if run.suffix == ".safetensors" and run.is_file():
        about = read_about(run)
        return is_8bit_file(about) and about is not None and about["family"] == TransformerConfig.family
    return (run / CONFIG).is_file() and read_config(run / CONFIG, TrainConfig).objective == "tokens"


def load_tokens(
    path: str | Path, weights: str = "ema", device: torch.device | str = "cpu", precision: str | None = None
) -> TrainedTokens:
    """Loads a token transformer from a run's folder, whose newest whole checkpoint it takes, or from a checkpoint.

    Args:
        path: folder of the run, or of one of its checkpoints; or a file of `latte-fast quantize`.
        weights: "ema", the EMA of the weights, or "model", the weights themselves.
        device: device of the model.
        precision: "int8" for weights that are rounded when they are loaded, for good.
    """
    path = Path(path)
    if weights not in ("ema", "model"):
        raise ValueError(f"load: weights must be ema or model, got {weights!r}")
    if path.is_file() and is_token_run(path):
        if precision is not None:
            raise ValueError(f"load: precision must be left out for {path}, whose weights have 8 bits, got {precision}")
        return _load_8bit(path, device)
    if not path.is_dir() or not is_token_run(path):
        raise ValueError(f"load: path must be the run of a token transformer (--objective tokens), got {path}")
    run, folder = checkpoint.whole(path)
    config, meta = read_config(run / CONFIG, TrainConfig), checkpoint.read_meta(folder)
    check_config(run, config, folder, meta)
    model = build(from_mapping(TransformerConfig, meta["model"], str(folder / "meta.json")))
    load_checkpoint(model, folder / f"{weights}.safetensors")
    layout = layout_of(meta, folder)
    if precision is not None:
        quantize_or_refuse(model.eval(), precision)
    return TrainedTokens(model.to(device).eval(), layout, list(meta["classes"]), config, meta["step"])


def about_tokens(trained: TrainedTokens) -> dict[str, Any]:
    """Returns what a file of 8-bit weights says of them, without the paths of this machine's data."""
    config = replace(trained.config, out="", data=DataConfig(), pretrained=None)
    known: dict[str, Any] = {"family": TransformerConfig.family, "model": asdict(trained.model.config)}
    known |= {
        "classes": trained.classes,
        "layout": asdict(trained.layout),
        "config": asdict(config),
        "step": trained.step,
    }
    plain: dict[str, Any] = json.loads(json.dumps(known))
    return plain


def _load_8bit(path: Path, device: torch.device | str) -> TrainedTokens:
    about: dict[str, Any] = read_about(path) or {}
    config = from_mapping(TrainConfig, about["config"], str(path))
    with torch.device("meta"):
        model = build(from_mapping(TransformerConfig, about["model"], str(path)))
    load_8bit(model.eval(), path, about)
    return TrainedTokens(model.to(device), layout_of(about, path), list(about["classes"]), config, about["step"])


def layout_of(meta: Mapping[str, Any], folder: Path) -> TokenLayout:
    where = folder if folder.is_file() else folder / "meta.json"
    if "layout" not in meta:
        raise CheckpointError(f"{where}: must say what the tokens stand for, got no layout")
    return from_mapping(TokenLayout, meta["layout"], str(where))


def _run_of(path: Path) -> Path:
    return path.parents[1] if path.parent.name == checkpoint.FOLDER else path
