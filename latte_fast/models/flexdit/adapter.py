"""FlexLatte in training and sampling: Latte's adapter, with the density of each step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor, nn

from latte_fast.config import LatteConfig
from latte_fast.flex_config import FlexLatteConfig, density_schedule
from latte_fast.models.checkpoint import load_state, read_checkpoint
from latte_fast.models.flexdit.authors import from_sparsedit, is_sparsedit
from latte_fast.models.flexdit.from_dense import from_dense, is_flex, kinds_of
from latte_fast.models.flexdit.model import FlexLatte, FlexLatteIMG
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte.from_dit import init_from_dit
from latte_fast.models.latte.model import Latte
from latte_fast.models.latte.published import call_of_load, config_of, image_config_of


class FlexLatteAdapter(LatteAdapter):
    """The Adapter of FlexLatte and FlexLatteIMG; the side of the sparse grid is a keyword of each step."""

    name = "flex_latte"
    config_type = FlexLatteConfig
    config: FlexLatteConfig

    @classmethod
    def of_file(cls, state: dict[str, Tensor], source: str) -> "FlexLatteAdapter":
        """Returns the adapter of a file of clips by its tensors' shapes.

        They do not tell the sides, which are taken as a quarter to half of the grid's. A file of images, as the FlexDiT
        authors' are, is refused: ValueError says what to pass.
        """
        images = "temp_embed" not in state
        base = image_config_of(state, source, any_heads=True) if images else config_of(state, source)
        sides = tuple(range(max(1, base.grid // 4), max(1, base.grid // 2) + 1))
        config = cls.config_type(**asdict(base), layout=kinds_of(state), sides=sides)
        if images:
            rule = "be loaded with a configuration, as its tensors do not tell the sides of its sparse grid"
            raise ValueError(f"{source}: must {rule}, for instance {call_of_load(config)}")
        return cls(config)

    def build(self, images: int = 0, recompute: str = "none") -> FlexLatte:
        """Returns a new model, its own label dropout off: the data drops labels by sample number."""
        model = (FlexLatteIMG if images else FlexLatte)(**asdict(self.config), recompute=recompute)
        if self.choices:
            model.y_embedder.dropout_prob = 0.0
        return model

    def start(self, model: nn.Module, path: str) -> str:
        """Loads a FlexLatte's or the FlexDiT authors' file strictly, or converts a dense Latte's or DiT's by layers."""
        state = read_checkpoint(path)
        if is_sparsedit(state):
            state = from_sparsedit(state)
        if is_flex(state):
            load_state(model, state, path)
            return f"{path}: {len(state)} tensors taken"
        notes = ""
        if self.config.has_time_table and "temp_embed" not in state:
            # an ImageNet DiT: first the dense Latte that the paper makes of it
            dense = Latte(**{f.name: getattr(self.config, f.name) for f in fields(LatteConfig)})
            notes = f"{init_from_dit(dense, path)}\n"
            state = dense.state_dict()
        converted, report = from_dense(state, self.config.kinds)
        load_state(model, converted, path)
        return f"{path}: {notes}{report}"

    def step_keywords(self, steps: int) -> Sequence[Mapping[str, Any]]:
        return [{"side": side} for side in density_schedule(steps, self.config.sides)]
