"""FlexDiT on Latte and DiT: the model, its blocks and densities, its adapter, and weights from dense models."""

from latte_fast.models.flexdit.authors import from_sparsedit
from latte_fast.models.flexdit.model import FlexLatte, FlexLatteIMG
from latte_fast.models.flexdit.text_model import FlexLatteT2V

__all__ = ["FlexLatte", "FlexLatteIMG", "FlexLatteT2V", "from_sparsedit"]
