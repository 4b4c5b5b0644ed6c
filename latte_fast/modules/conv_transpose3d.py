"""ConvTranspose3d on the op, with torch.nn.ConvTranspose3d's parameters and names."""

from torch import Tensor, nn

from latte_fast import ops


class ConvTranspose3d(nn.ConvTranspose3d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = self._output_padding(
            x,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            3,
            self.dilation,
        )
        return ops.conv_transpose3d(
            x, self.weight, self.bias, self.stride, self.padding, tuple(extra), self.groups, self.dilation
        )
