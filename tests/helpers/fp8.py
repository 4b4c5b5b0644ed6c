"""What is asked of 8-bit rows: half a step from the exact value, and rows at the ends of the format."""

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn


def half_steps(v: Tensor) -> Tensor:
    """Half the distance of neighbouring e4m3 numbers at v, which is 3 bits below the leading one, or 2^-9."""
    exponent = torch.frexp(v.abs().clamp(2.0**-6, 448.0))[1] - 1
    return torch.ldexp(torch.ones_like(v), exponent - 4)


def assert_rounded(name: str, values: Tensor, scale: Tensor, exact: Tensor, slack: float = 2e-6) -> None:
    """values * scale is exact (float64) but for half a step; `slack` is what fp32 may lose of a row's maximum."""
    assert values.dtype == FP8 and scale.dtype == torch.float32 and scale.shape == (*exact.shape[:-1], 1)
    want = exact.abs().amax(-1, keepdim=True) / 448
    assert ((scale.double() - want).abs() <= slack * want).all(), f"{name}: scales"
    assert exact.abs().amax() > 0
    v = exact / scale.double()
    off = (values.double() - v).abs() - half_steps(v) - slack * 448
    assert (off <= 0).all(), f"{name}: {off.max().item()} steps of 1 too far from the exact value"
    # the largest of a row is 448 itself
    assert (values.float().abs().amax(-1) == 448).all(), f"{name}: a row does not use the whole range"


def edge_rows() -> Tensor:
    """Rows (M, 512) of fp32 with: every tie, tiny and huge maxima, subnormal numbers, zeros, NaN, infinities."""
    grid = torch.arange(127, dtype=torch.uint8).view(FP8).float()  # 0 .. 448, all finite magnitudes
    ties = (grid[1:] + grid[:-1]) / 2
    row = torch.cat([grid, ties, -ties, -grid])
    row = torch.nn.functional.pad(row, (0, 512 - row.numel()))
    rows = [row * s for s in (1.0, 2.0**-90, 2.0**100, 1e-38, 1e-44)]
    rows += [torch.zeros(512), torch.full((512,), 3e38), torch.full((512,), -1e-45)]
    for special in (float("nan"), float("inf"), -float("inf")):
        rows.append(row.clone())
        rows[-1][200] = special
    return torch.stack(rows)


def same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    """Equal values, and equal scales; NaN is equal to NaN."""
    (a, s), (b, t) = got, want
    values = torch.where(a.float().isnan(), torch.nan, a.float()), torch.where(b.float().isnan(), torch.nan, b.float())
    return torch.equal(s.nan_to_num(-1), t.nan_to_num(-1)) and torch.equal(*(v.nan_to_num(-1) for v in values))
