"""Latte in training and sampling: clips with classes, or without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.config import LatteConfig
from latte_fast.models.adapter import Captions, Condition, DataSizes
from latte_fast.models.checkpoint import cast, load_state, read_checkpoint, save_state
from latte_fast.models.config import ModelConfig
from latte_fast.models.latte.from_dit import init_from_dit
from latte_fast.models.latte.model import Latte, LatteIMG
from latte_fast.models.latte.modulation import tabulate
from latte_fast.modules.modulation import ModulationTable

FILES = (".safetensors", ".pt")


class LatteAdapter:
    """The Adapter of Latte and LatteIMG; a dropped label becomes the null class, number num_classes."""

    name, labels = "latte", "classes"
    config_type: type[LatteConfig] = LatteConfig
    starts_from, in_pipelines = "a file", False

    def __init__(self, config: LatteConfig, classes: Sequence[str] = (), captions: Captions | None = None):
        self.config, self.classes = config, list(classes)
        self.choices = config.num_classes if config.extras == 2 else 0

    @classmethod
    def fit(
        cls, model: ModelConfig, sizes: DataSizes, classes: list[str], captions: Captions | None, start: str | None
    ) -> "LatteAdapter":
        """Returns the adapter of a Latte sized for the data; without classes the model is unconditional."""
        own = model.sizes({})
        common = {f.name for f in fields(model)} & {f.name for f in fields(cls.config_type)} - set(own)
        config = cls.config_type(
            **own,
            **{name: getattr(model, name) for name in common},
            in_channels=sizes.channels,
            input_size=sizes.side,
            num_frames=sizes.frames,
            num_classes=max(len(classes), 1),
            extras=2 if classes else 1,
        )
        return cls(config, classes)

    @classmethod
    def can_start(cls, path: Path) -> bool:
        return path.is_file()

    @classmethod
    def check_export(cls, out: Path) -> None:
        if out.suffix not in FILES:
            raise ValueError(f"convert: out must end in {' or '.join(FILES)} for a model of classes, got {out.name}")

    @classmethod
    def export(
        cls, model: nn.Module, out: Path, dtype: torch.dtype | None, about: dict[str, Any] | None = None
    ) -> None:
        save_state(cast(model.state_dict(), dtype), out, about=about)

    def build(self, images: int = 0, recompute: str = "none") -> Latte:
        """Returns a new model, its own label dropout off: the data drops labels by sample number."""
        model = (LatteIMG if images else Latte)(**asdict(self.config), recompute=recompute)
        if self.choices:
            model.y_embedder.dropout_prob = 0.0
        return model

    def start(self, model: nn.Module, path: str) -> str:
        """Loads a Latte's file strictly, or initialises from a DiT's, which has no temporal positions."""
        state = read_checkpoint(path)
        if "temp_embed" in state or state.keys() == model.state_dict().keys():
            load_state(model, state, path)
            return f"{path}: {len(state)} tensors taken"
        return f"{path}: {init_from_dit(model, path)}"

    def read(self, item: Mapping[str, Any]) -> dict[str, Tensor]:
        return {}

    def conditions(self, batch: Mapping[str, Any], images: int = 0) -> dict[str, Any]:
        kwargs: dict[str, Any] = {"use_image_num": images} if images else {}
        if not self.choices:
            return kwargs
        labels = batch["label"][:, None]
        if images:
            labels = torch.cat([labels, batch["image_labels"]], dim=1)
        if "drop" in batch:
            labels = torch.where(batch["drop"], self.choices, labels)
        if images:
            kwargs["y_image"] = labels[:, 1:]
        return kwargs | {"y": labels[:, 0]}

    def condition_for(self, labels: Sequence[int], guidable: bool) -> Condition:
        if not self.choices:
            return Condition({}, {}, [str(label) for label in labels])
        y = torch.tensor(list(labels))
        names = [self.classes[i] if i < len(self.classes) else str(i) for i in labels]
        return Condition({"y": y}, {"y": torch.full_like(y, self.choices)} if guidable else {}, names)

    def label_names(self) -> Sequence[str]:
        return self.classes

    def sample_shape(self, size: int, factor: int) -> tuple[int, int, int, int]:
        config = self.config
        return config.num_frames, config.in_channels, config.input_size, config.input_size

    def guidable(self, dropout: float) -> bool:
        # without dropout the label table has no row for the null class
        return self.config.class_dropout_prob > 0

    def step_keywords(self, steps: int) -> Sequence[Mapping[str, Any]]:
        return ()

    def learns_sigma(self) -> bool:
        return self.config.learn_sigma

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        out: Tensor = model(x, t, **conditions)
        return out

    def tabulate(self, model: nn.Module, times: Tensor, **conditions: Any) -> ModulationTable:
        assert isinstance(model, Latte)
        return tabulate(model, times, conditions.get("y"))
