"""What is asked of rows of integers: half a step from the exact value, and rows at the ends of what there is."""

import torch
from torch import Tensor


def signed(values: Tensor) -> Tensor:
    """The integers as int32, of uint8 rows less 128."""
    return values.int() - 128 if values.dtype == torch.uint8 else values.int()


def assert_rounded(name: str, values: Tensor, scale: Tensor, exact: Tensor, slack: float = 2e-6) -> None:
    """values * scale is exact (float64) but for half a step; `slack` is what fp32 may lose of a row's maximum."""
    assert values.dtype in (torch.int8, torch.uint8) and scale.dtype == torch.float32
    assert scale.shape == (*exact.shape[:-1], 1)
    want = exact.abs().amax(-1, keepdim=True) / 127
    assert ((scale.double() - want).abs() <= slack * want).all(), f"{name}: scales"
    assert exact.abs().amax() > 0
    off = (signed(values).double() - exact / scale.double()).abs() - 0.5 - slack * 127
    assert (off <= 0).all(), f"{name}: {off.max().item()} steps too far from the exact value"
    assert (signed(values).abs().amax(-1) == 127).all(), f"{name}: a row does not use the whole range"


# all integers, then what lies in the middle of two, and what is next to that, less than an ulp of the largest away
INTEGERS = torch.arange(-127, 128.0)
TIES = torch.arange(-127, 127.0) + 0.5


def edge_rows() -> Tensor:
    """Rows (M, 509) of fp32 with: every tie, tiny and huge maxima, subnormal numbers, zeros, NaN, infinities."""
    row = torch.cat([INTEGERS, TIES])
    rows = [row * s for s in (1.0, 2.0**-90, 2.0**100, 1e-38, 1e-44)]
    rows += [torch.zeros(509), torch.full((509,), 3e38), torch.full((509,), -1e-45)]
    for special in (float("nan"), float("inf"), -float("inf")):
        rows.append(row.clone())
        rows[-1][200] = special
    return torch.stack(rows)


def check_edges(values: Tensor, scale: Tensor) -> None:
    """Ties go to even; a row with a number that is not finite has the scale NaN, and zeros stay zeros."""
    values = signed(values)
    even = torch.where(TIES.floor() % 2 == 0, TIES.floor(), TIES.ceil()).int()
    for i in range(3):  # powers of two change nothing
        assert torch.equal(values[i, :255], INTEGERS.int()) and torch.equal(values[i, 255:], even)
    assert (values[5] == 0).all() and float(scale[5]) == 2.0**-100 and (values[7] == 0).all()
    assert (values[6] == 127).all() and scale[:8].isfinite().all() and scale[8:].isnan().all()
