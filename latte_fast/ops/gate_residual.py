"""gate_residual: x + gate * y."""

from torch import Tensor

from latte_fast.ops.checks import check_groups, check_like, check_rows, partners
from latte_fast.ops.registration import KernelOp, empty
from latte_fast.reference.functional import gate_residual_ref


def gate_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y, in x's dtype.

    Args:
        x: (..., D), any leading strides; may be fp32 beside a 16-bit y and gate.
        y: as x.
        gate: (G, D), G dividing the rows of x; group g gates the g-th run of rows.
    """
    check_rows("gate_residual", "x", x)
    check_like("gate_residual", "y", y, x)
    check_groups("gate_residual", x, gate=gate)
    y, gate = partners("gate_residual", x, y=y, gate=gate)
    return _OP(x, y, gate)


_OP = KernelOp(
    "gate_residual",
    "(Tensor x, Tensor y, Tensor gate, str backend) -> Tensor out",
    "(Tensor dout, Tensor y, Tensor gate, str backend) -> (Tensor dy, Tensor dgate)",
    fake=lambda x, y, gate: empty(x),
    sums={"x": "dout"},
    reference=gate_residual_ref,
    example=lambda sizes: {"x": sizes.tokens(), "y": sizes.tokens(), **sizes.conditions("gate")},
    elementwise=2,
)
