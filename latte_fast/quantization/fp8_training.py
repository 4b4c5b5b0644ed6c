"""Training in fp8, by torchao."""

from torch import nn


def convert_to_fp8(model: nn.Module) -> None:
    """Converts the blocks' linear layers to fp8 where input and output widths are multiples of 16.

    Keys and values of captions stay: fp8 needs a multiple of 16 rows too, which 120 tokens make only in pairs.
    """
    from torchao.float8 import convert_to_float8_training

    def fits(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or "blocks" not in name.split(".")[0] or "adaLN" in name:
            return False
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            return False
        return module.in_features % 16 == 0 and module.out_features % 16 == 0

    convert_to_float8_training(model, module_filter_fn=fits)
