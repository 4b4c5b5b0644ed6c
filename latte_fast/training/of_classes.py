"""Latte: clips of classes, or of nothing."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.config import LatteConfig
from latte_fast.models.checkpoint import load_state, read_checkpoint
from latte_fast.models.dit import init_from_dit
from latte_fast.models.latte import Latte, LatteIMG
from latte_fast.training.family import Asked


class OfClasses:
    """See Family; a dropped label is the class after the last."""

    def __init__(self, config: LatteConfig, classes: list[str]):
        self.config, self.classes = config, classes
        self.choices = config.num_classes if config.extras == 2 else 0

    def build(self, images: int = 0, recompute: str = "none") -> Latte:
        """Labels are dropped by sample number before they reach the model, so its own dropout is off."""
        model = (LatteIMG if images else Latte)(**asdict(self.config), recompute=recompute)
        if self.choices:
            model.y_embedder.dropout_prob = 0.0
        return model

    def start(self, model: nn.Module, path: str) -> str:
        """Loads a Latte's file strictly, or initialises from a DiT's, which has no positions in time."""
        state = read_checkpoint(path)
        if "temp_embed" in state or state.keys() == model.state_dict().keys():
            load_state(model, state, path)
            return f"{path}: {len(state)} tensors taken"
        return f"{path}: {init_from_dit(model, path)}"

    def drawn(self, item: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def conditions(self, batch: dict[str, Tensor], images: int = 0) -> dict[str, Any]:
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

    def asked(self, labels: Sequence[int], guidable: bool) -> Asked:
        if not self.choices:
            return Asked({}, {}, [str(label) for label in labels])
        y = torch.tensor(list(labels))
        names = [self.classes[i] if i < len(self.classes) else str(i) for i in labels]
        return Asked({"y": y}, {"y": torch.full_like(y, self.choices)} if guidable else {}, names)

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        out: Tensor = model(x, t, **conditions)
        return out
