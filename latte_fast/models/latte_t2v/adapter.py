"""LatteT2V in training and sampling: clips with captions that were embedded beforehand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.config import LatteT2VConfig
from latte_fast.files import atomic
from latte_fast.models.adapter import Captions, Condition, DataSizes
from latte_fast.models.checkpoint import CheckpointError, load_state, read_checkpoint
from latte_fast.models.config import ModelConfig, require
from latte_fast.models.latte_t2v.diffusers_folder import (
    PIXART_CLASSES,
    folder_of,
    read_config,
    read_weights,
    start_from_pixart,
    without_strays,
)
from latte_fast.models.latte_t2v.initialize import initialize, silence_time
from latte_fast.models.latte_t2v.model import LatteT2V
from latte_fast.models.latte_t2v.modulation import tabulate
from latte_fast.modules.modulation import ModulationTable

FILES = (".safetensors", ".pt")
# options of ModelConfig that have one value in this family
FIXED = ("variant", "layout", "patch_frames", "conditioning", "time_pos", "full_attention", "mlp_ratio")
# file in an exported folder that says what run its weights are of
ABOUT_FILE = "latte_fast.json"


def read_about_folder(path: Path) -> dict[str, Any] | None:
    """Returns what a converted folder says of its weights, or None."""
    file = path / ABOUT_FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
        found["config"], found["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: must be as `latte-fast convert` wrote it, got {error!r}") from error
    known: dict[str, Any] = found
    return known


class LatteT2VAdapter:
    """The Adapter of LatteT2V; a dropped caption is the empty caption's embedding under the dropped one's mask."""

    name, labels = "latte_t2v", "captions"
    config_type: type[LatteT2VConfig] = LatteT2VConfig
    starts_from, in_pipelines = "a file, or a model's folder", True
    model_type: type[LatteT2V] = LatteT2V
    starts_with = LatteT2V.folder_classes  # classes of the folders to start from, PixArt-alpha's besides
    blocks_each = 2  # blocks that a layer of the config stands for
    fixed: tuple[str, ...] = FIXED

    def __init__(self, config: LatteT2VConfig, classes: Sequence[str] = (), captions: Captions | None = None):
        self.config, self.captions = config, captions
        self.classes: list[str] = []  # captions stay in their folder and are not saved with the weights
        self.choices = len(captions.captions) if captions else 0

    @classmethod
    def fit(
        cls, model: ModelConfig, sizes: DataSizes, classes: list[str], captions: Captions | None, start: str | None
    ) -> "LatteT2VAdapter":
        """Returns the adapter of a LatteT2V sized for the data.

        Weights of a folder keep its norm_eps, attention_bias and sample_size; the position table is stretched to the
        data's side, so that training starts from the same function.
        """
        assert captions is not None
        for name in cls.fixed:
            only = getattr(ModelConfig, name)
            require(getattr(model, name) == only, f"model.{name}", f"{only} for text to video", getattr(model, name))
        known: dict[str, int] = {}
        kept: dict[str, Any] = {"sample_size": sizes.side}
        begin = cls.start_config(start)
        if begin:
            begin = asdict(LatteT2VConfig()) | begin
            kept = {name: begin[name] for name in ("sample_size", "norm_eps", "attention_bias")}
            heads = int(begin["num_attention_heads"])
            known = {"patch_size": int(begin["patch_size"]), "hidden_size": heads * int(begin["attention_head_dim"]),
                     "depth": cls.blocks_each * int(begin["num_layers"]), "num_heads": heads}  # fmt: skip
        own = model.sizes(known)
        width, heads, depth, patch = (own[name] for name in ("hidden_size", "num_heads", "depth", "patch_size"))
        require(width % heads == 0, "model.hidden_size", f"a multiple of the {heads} heads", width)
        require(depth % cls.blocks_each == 0, "model.depth", "even, a space and a time block a pair", depth)
        require(sizes.side % patch == 0, "model.patch_size", f"a divisor of the data's side of {sizes.side}", patch)
        config = cls.config_type(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            cross_attention_dim=width,
            num_layers=depth // cls.blocks_each,
            patch_size=patch,
            in_channels=sizes.channels,
            out_channels=sizes.channels * (1 + model.learn_sigma),
            caption_channels=captions.channels,
            video_length=sizes.frames,
            **kept,
            **cls.more_fields(model),
        )
        return cls(config, classes, captions)

    @classmethod
    def more_fields(cls, model: ModelConfig) -> dict[str, Any]:
        """Returns the fields that a family's configuration has besides LatteT2VConfig's."""
        return {}

    @classmethod
    def start_config(cls, path: str | None) -> dict[str, Any]:
        """Reads the config of a text-to-video or PixArt-alpha folder to start from; {} for anything else."""
        if path is None or not Path(path).is_dir():
            return {}
        return read_config(folder_of(path), (*cls.starts_with, *PIXART_CLASSES))

    @classmethod
    def can_start(cls, path: Path) -> bool:
        return path.is_file() or path.is_dir()

    @classmethod
    def check_export(cls, out: Path) -> None:
        if out.suffix in FILES:
            raise ValueError(f"convert: out must be a folder for a text-to-video model, got {out.name}")

    @classmethod
    def export(
        cls, model: nn.Module, out: Path, dtype: torch.dtype | None, about: dict[str, Any] | None = None
    ) -> None:
        assert isinstance(model, LatteT2V)
        model.to(dtype).save_pretrained(out)
        if about is not None:
            with atomic(out / ABOUT_FILE) as partial:
                partial.write_text(json.dumps(about, indent=1) + "\n")

    def build(self, images: int = 0, recompute: str = "none") -> LatteT2V:
        model = self.model_type(**asdict(self.config), recompute=recompute)
        initialize(model)
        return model

    def start(self, model: nn.Module, path: str) -> str:
        """Loads a text-to-video model's folder or file strictly, or the space blocks of a PixArt-alpha folder."""
        if Path(path).is_file():
            return self.start_from(model, without_strays(read_checkpoint(path)), path)
        folder = folder_of(path)
        if read_config(folder, (*self.starts_with, *PIXART_CLASSES))["_class_name"] in PIXART_CLASSES:
            report = start_from_pixart(model, folder)
            silence_time(model)
            return f"{path}: {report}"
        return self.start_from(model, without_strays(read_weights(folder)), path)

    def start_from(self, model: nn.Module, state: dict[str, Tensor], path: str) -> str:
        load_state(model, state, path)
        return f"{path}: {len(state)} tensors taken"

    def read(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns text (1 + n, T, C) and text_mask (1 + n, T): the clip's caption, then those of its n images."""
        assert self.captions is not None
        labels = [int(item["label"]), *item.get("image_labels", torch.tensor([], dtype=torch.long)).tolist()]
        text, mask = self.captions.embeddings(labels, item["drop"].tolist() if "drop" in item else ())
        return {"text": text, "text_mask": mask}

    def conditions(self, batch: Mapping[str, Any], images: int = 0) -> dict[str, Any]:
        text, mask = batch["text"], batch["text_mask"]
        if images:
            return {"encoder_hidden_states": text, "encoder_attention_mask": mask, "use_image_num": images}
        return {"encoder_hidden_states": text[:, 0], "encoder_attention_mask": mask[:, 0]}

    def condition_for(self, labels: Sequence[int], guidable: bool) -> Condition:
        assert self.captions is not None
        text, mask = self.captions.embeddings(labels)
        null = self.captions.null.expand_as(text) if guidable else text
        given, nothing = ({"encoder_hidden_states": states, "encoder_attention_mask": mask} for states in (text, null))
        return Condition(given, nothing if guidable else {}, [self.captions.captions[label] for label in labels])

    def label_names(self) -> Sequence[str]:
        return self.captions.captions if self.captions else []

    def sample_shape(self, size: int, factor: int) -> tuple[int, int, int, int]:
        # not config.sample_size, which may be that of the model this one started from
        side = size // factor
        return self.config.video_length, self.config.in_channels, side, side

    def guidable(self, dropout: float) -> bool:
        return dropout > 0

    def step_keywords(self, steps: int) -> Sequence[Mapping[str, Any]]:
        return ()

    def learns_sigma(self) -> bool:
        return self.config.channels_out > self.config.in_channels

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        # .to() copies nothing where the dtype fits: the prompt cache finds keys and values by the tensor's identity
        conditions["encoder_hidden_states"] = conditions["encoder_hidden_states"].to(x.dtype)
        out: Tensor = model(x.transpose(1, 2), t, **conditions).sample.transpose(1, 2)
        return out

    def tabulate(self, model: nn.Module, times: Tensor, **conditions: Any) -> ModulationTable:
        assert isinstance(model, LatteT2V)
        return tabulate(model, times)
