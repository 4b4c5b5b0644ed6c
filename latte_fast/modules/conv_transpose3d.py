"""ConvTranspose3d on the op, with torch.nn.ConvTranspose3d's parameters and names."""

from typing import Any

from torch import Tensor, nn

from latte_fast import ops


class ConvTranspose3d(nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d with `pad_mode`: "zeros", or "replicate" for ops.conv_transpose3d's edges."""

    def __init__(self, *args: Any, pad_mode: str = "zeros", **kwargs: Any):
        if pad_mode not in ("zeros", "replicate"):
            raise ValueError(f"ConvTranspose3d: pad_mode must be 'zeros' or 'replicate', got {pad_mode!r}")
        super().__init__(*args, **kwargs)
        self.pad_mode = pad_mode

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 3, self.dilation)
        window = (self.stride, self.padding, tuple(extra), self.groups, self.dilation)
        return ops.conv_transpose3d(x, self.weight, self.bias, *window, self.pad_mode)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", pad_mode={self.pad_mode}" if self.pad_mode != "zeros" else "")
