"""FlexLatteT2V in training and sampling: LatteT2V's adapter, with the density of each step, for images."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from latte_fast.flex_config import FlexT2VConfig, density_schedule
from latte_fast.models.checkpoint import load_state
from latte_fast.models.config import ModelConfig, require
from latte_fast.models.flexdit.from_dense import from_dense_text, is_flex_text
from latte_fast.models.flexdit.text_model import FlexLatteT2V
from latte_fast.models.latte_t2v.adapter import FIXED, LatteT2VAdapter
from latte_fast.models.latte_t2v.initialize import initialize


class FlexLatteT2VAdapter(LatteT2VAdapter):
    """The Adapter of FlexLatteT2V; the frames of a clip are independent images of its caption."""

    name = "flex_latte_t2v"
    config_type = FlexT2VConfig
    in_pipelines = False
    model_type = FlexLatteT2V
    fixed = tuple(name for name in FIXED if name != "layout")
    blocks_each = 1
    starts_with = (*FlexLatteT2V.folder_classes, *LatteT2VAdapter.starts_with)
    config: FlexT2VConfig

    @classmethod
    def more_fields(cls, model: ModelConfig) -> dict[str, Any]:
        return {"layout": model.layout, "sides": model.sides}

    def build(self, images: int = 0, recompute: str = "none") -> FlexLatteT2V:
        rule = "0 for FlexDiT's model of text, whose frames are images already"
        require(images == 0, "images", rule, images)
        model = FlexLatteT2V(**vars(self.config), recompute=recompute)
        initialize(model)
        model.start_modules()
        return model

    def start_from(self, model: nn.Module, state: dict[str, Tensor], path: str) -> str:
        """Loads a FlexLatteT2V's tensors strictly, or converts a LatteT2V's, whose time blocks are left out."""
        if is_flex_text(state):
            return super().start_from(model, state, path)
        converted, report = from_dense_text(state, self.config.kinds)
        load_state(model, converted, path)
        return f"{path}: {report}"

    def step_keywords(self, steps: int) -> Sequence[Mapping[str, Any]]:
        return [{"side": side} for side in density_schedule(steps, self.config.sides)]
