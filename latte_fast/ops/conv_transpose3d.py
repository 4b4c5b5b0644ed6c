"""conv_transpose3d: the transposed convolution that restores frames after compression-frame patches."""

from torch import Tensor

from latte_fast.reference.functional import conv_transpose3d_ref

Triple = int | tuple[int, ...]


def conv_transpose3d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Triple = 1,
    padding: Triple = 0,
    output_padding: Triple = 0,
    groups: int = 1,
    dilation: Triple = 1,
) -> Tensor:
    """As torch.nn.functional.conv_transpose3d, which serves it until it has kernels of its own.

    Args:
        x: (B, C, T, H, W) or (C, T, H, W).
        w: (C, C_out / groups, kT, kH, kW).
        b: (C_out,) or None.
        stride: one number or three.
        padding: as stride.
        output_padding: as stride.
        groups: of channels.
        dilation: as stride.
    """
    return conv_transpose3d_ref(x, w, b, stride, padding, output_padding, groups, dilation)
