"""LatteT2V: clips of captions, whose embeddings were written beforehand."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.config import LatteT2VConfig
from latte_fast.data.text import Texts
from latte_fast.models.checkpoint import load_state, read_checkpoint
from latte_fast.models.initialize import initialize_t2v, silence_time
from latte_fast.models.latte_t2v import LatteT2V
from latte_fast.models.pretrained import (
    CLASSES,
    PIXART_CLASSES,
    folder_of,
    read_config,
    read_weights,
    start_from_pixart,
    without_strays,
)
from latte_fast.training.family import Asked


class OfText:
    """See Family; a dropped caption is the empty one under the caption's mask, as the pipeline's negative prompt is.

    Args:
        config: of the model.
        texts: the captions; None for a model that is only built and called.
    """

    def __init__(self, config: LatteT2VConfig, texts: Texts | None):
        self.config, self.texts = config, texts
        self.classes: list[str] = []  # captions stay in their folder
        self.choices = len(texts.captions) if texts else 0

    def build(self, images: int = 0, recompute: str = "none") -> LatteT2V:
        model = LatteT2V(**asdict(self.config), recompute=recompute)
        initialize_t2v(model)
        return model

    def start(self, model: nn.Module, path: str) -> str:
        """Loads a text-to-video model's folder or file strictly, or the space blocks of a PixArt-alpha folder."""
        assert isinstance(model, LatteT2V)
        if Path(path).is_file():
            state = read_checkpoint(path)
        else:
            folder = folder_of(path)
            if read_config(folder, CLASSES + PIXART_CLASSES)["_class_name"] in PIXART_CLASSES:
                report = start_from_pixart(model, folder)
                silence_time(model)
                return f"{path}: {report}"
            state = read_weights(folder)
        state = without_strays(state)
        load_state(model, state, path)
        return f"{path}: {len(state)} tensors taken"

    def drawn(self, item: dict[str, Tensor]) -> dict[str, Tensor]:
        """text (1 + n, T, C) and text_mask (1 + n, T), the clip's first."""
        assert self.texts is not None
        labels = [int(item["label"]), *item.get("image_labels", torch.tensor([], dtype=torch.long)).tolist()]
        text, mask = self.texts.told(labels, item["drop"].tolist() if "drop" in item else ())
        return {"text": text, "text_mask": mask}

    def conditions(self, batch: dict[str, Tensor], images: int = 0) -> dict[str, Any]:
        text, mask = batch["text"], batch["text_mask"]
        if images:
            return {"encoder_hidden_states": text, "encoder_attention_mask": mask, "use_image_num": images}
        return {"encoder_hidden_states": text[:, 0], "encoder_attention_mask": mask[:, 0]}

    def asked(self, labels: Sequence[int], guidable: bool) -> Asked:
        assert self.texts is not None
        text, mask = self.texts.told(labels)
        null = self.texts.null.expand_as(text) if guidable else text
        asked, nothing = ({"encoder_hidden_states": states, "encoder_attention_mask": mask} for states in (text, null))
        return Asked(asked, nothing if guidable else {}, [self.texts.captions[label] for label in labels])

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        # the embeddings as they are where they can be: the model knows their keys by the tensor itself
        conditions["encoder_hidden_states"] = conditions["encoder_hidden_states"].to(x.dtype)
        out: Tensor = model(x.transpose(1, 2), t, **conditions).sample.transpose(1, 2)
        return out
