"""FlexDiT on Latte and DiT: the model, its blocks and densities, its adapter, and weights from dense models."""

from latte_fast.models.flexdit.authors import from_sparsedit
from latte_fast.models.flexdit.model import FlexLatte, FlexLatteIMG

__all__ = ["FlexLatte", "FlexLatteIMG", "from_sparsedit"]
