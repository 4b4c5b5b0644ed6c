"""The C++ kernels whose rows leave as integers, and oneDNN's products of them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import _ext, ops, use_backend
from latte_fast._ext.int8 import bias_gelu_int8_into, empty_rows, scale_rows
from latte_fast.ops import onednn
from latte_fast.reference import functional as ref
from tests.ext.test_rows import DTYPES, case, product
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.guards import poisoned_empty
from tests.helpers.int8 import assert_rounded, check_edges, edge_rows

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))
CELLS = pairwise({
    "width": [72, 1152, 1153], "dtypes": ["fp32", "bf16", "fp16", "fp32+bf16"],
    "layout": ["plain", "strided", "expanded", "slice"], "sizes": [(1, 1, 1), (2, 3, 7), (3, 5, 1)],
    "groups": ["one", "batch", "frames", "rows"], "extras": ["none", "bias", "pos", "both"],
})  # fmt: skip


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with use_backend("cpu"), poisoned_empty():
        yield


@pytest.mark.parametrize("cell", CELLS, ids=cell_id)
def test_every_op_rounds(cell: dict) -> None:
    check(cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", product()[::53], ids=cell_id)
def test_every_op_rounds_on_more_rows(cell: dict) -> None:
    check(cell)


@torch.no_grad()
def check(cell: dict) -> None:
    some = {name: None if t is None else t[0] for name, t in case(cell, 1).items()}
    x, y, pos, bias = some["x"], some["y"], some["pos"], some["y_bias"]
    gate, shift, scale = (some[name] for name in ("gate", "shift", "scale"))
    exact = ref.norm_modulate_ref(x.double(), shift.double(), scale.double())
    for unsigned in (False, True):
        form = {"unsigned": unsigned}
        assert_rounded("rows", *ops.rows_int8(x, **form), x.double())
        assert_rounded("norm", *ops.norm_modulate_int8(x, shift.to(x.dtype), scale.to(x.dtype), **form), exact)
        out, *fused = ops.gate_residual_norm_modulate_int8(x, y, gate, shift, scale, y_bias=bias, pos=pos, **form)
        plain, _ = ops.gate_residual_norm_modulate(x, y, gate, shift, scale, y_bias=bias, pos=pos)
        assert torch.equal(out, plain)
        wanted = ref.norm_modulate_ref(out.double(), shift.double(), scale.double())
        assert_rounded("fused", *fused, wanted)
        added = y.double() if bias is None else y.double() + bias.double()
        gelu = ref.bias_gelu_ref(added, None)
        assert_rounded("gelu", *ops.bias_gelu_int8(y, bias, **form), gelu, slack=1e-5)
        # a modulation and GELU that hold the factor of the next layer's input, in fp32 beside 16 bits
        wide, factor = torch.randn(2, *shift.shape), torch.rand(x.shape[-1])
        wanted = ref.norm_modulate_ref(x.double(), *wide.double())
        assert_rounded("wide norm", *ops.norm_modulate_int8(x, *wide, **form), wanted)
        fused = ops.gate_residual_norm_modulate_int8(x, y, gate, *wide, y_bias=bias, pos=pos, **form)[1:]
        assert_rounded("wide fused", *fused, ref.norm_modulate_ref(out.double(), *wide.double()))
        times = ops.bias_gelu_int8(y, bias, factor=factor, **form)
        assert_rounded("gelu times a factor", *times, gelu * factor, slack=1e-5)


def test_edges_are_the_oracles() -> None:
    for unsigned in (False, True):
        check_edges(*ops.rows_int8(edge_rows(), unsigned=unsigned))
    x, ones = torch.randn(3, 72), torch.ones(1, 72)
    x[1, 71] = float("inf")
    for rows in (ops.norm_modulate_int8(x, ones, ones), ops.bias_gelu_int8(x)):
        assert rows[1].isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=str)
def test_scaled_rows(dtype: torch.dtype) -> None:
    x, scale, bias = torch.randn(5, 77).to(dtype), torch.rand(5, 1), torch.randn(77)
    for b in (bias, bias.bfloat16(), None):
        out = torch.empty_like(x)
        scale_rows(x, scale, b, out)
        want = x.double() * scale.double() + (0 if b is None else b.double())
        assert float((out.double() - want).abs().max()) <= torch.finfo(dtype).eps * float(want.abs().max())
    a, a_scale = empty_rows(x, False)
    bias_gelu_int8_into(x, bias, None, scale, a, a_scale)
    assert_rounded("gelu", a, a_scale, ref.bias_gelu_ref(x.double() * scale.double() + bias.double(), None), slack=1e-5)


def rows_and_weights() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, w = (torch.randint(-127, 128, shape) for shape in ((21, 64), (32, 64)))
    return x, w.to(torch.int8), torch.rand(21, 1) + 0.5, torch.rand(32) + 0.5


@pytest.mark.parametrize("unsigned", [False, True])
def test_products_by_onednn(unsigned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, whose sums are exact on every processor; some rows at a time; weights come back as they were."""
    monkeypatch.setattr(onednn, "served", lambda: onednn.Served(None, unsigned))
    monkeypatch.setattr(onednn, "rows_at_once", lambda dtype: 8)
    x, w, x_scale, w_scale = rows_and_weights()
    rows = (x + 128).to(torch.uint8) if unsigned else x.to(torch.int8)
    packed = onednn.pack(w)
    assert torch.equal(onednn.unpack(packed), w)
    exact = (x.double() @ w.double().t()) * x_scale * w_scale
    bias = torch.randn(32)
    for b, want in ((None, exact), (bias, exact + bias)):
        got = onednn.linear(rows[None], x_scale[None], packed, w_scale, b, torch.bfloat16)
        assert got.shape == (1, 21, 32) and got.dtype == torch.bfloat16
        assert float((got[0].double() - want).abs().max()) < 2.0**-7 * float(want.abs().max())
    # an MLP: GELU's rows are rounded to integers of their own, half a step off at most
    second, scales = torch.randint(-127, 128, (48, 32)).to(torch.int8), torch.rand(48) + 0.5
    for factor in (None, torch.rand(32) + 0.5):
        fc1 = onednn.Layer(packed, w_scale, bias)
        fc2 = onednn.Layer(onednn.pack(second), scales, torch.ones(48), factor)
        got = onednn.mlp(rows[None], x_scale[None] / 1e4, fc1, fc2, torch.bfloat16)
        a = ref.bias_gelu_ref(exact / 1e4 + bias, None) * (1 if factor is None else factor)
        want = (a @ second.double().t()) * scales
        # of 32 roundings, and of 16 bits three times on the way
        step = a.abs().amax(-1, keepdim=True) / 127 + 2.0**-7 * a.abs()
        most = (step @ second.double().abs().t()) * scales + 2.0**-7 * want.abs()
        assert got.shape == (1, 21, 48) and got.dtype == torch.bfloat16
        assert ((got[0].double() - want).abs() <= most).all()
        assert float((got[0].double() - want).norm() / want.norm()) < 0.02


def test_what_this_processor_has_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that saturate, and products that take too long, are not served; rows are signed only where that is fast."""
    slow: dict[Any, float] = {}
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(onednn, "_seconds", lambda x, packed, ones, dtype: slow.get((x.dtype, dtype), 0.0))

    def served(wrong: bool = False) -> onednn.Served:
        def multiply(values: Tensor, packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
            x = values.long() - (128 if values.dtype == torch.uint8 else 0)
            return (x @ onednn.unpack(packed).long().t()).to(dtype) - int(wrong)

        monkeypatch.setattr(onednn, "multiply", multiply)
        return onednn.served.__wrapped__()

    assert served() == (None, False, True)
    assert "saturate" in str(served(wrong=True).why_not)
    slow[torch.int8, torch.float32] = 1.0
    assert served() == (None, True, True)
    slow[torch.uint8, torch.bfloat16] = 1.0
    assert served() == (None, True, False)
    slow[torch.uint8, torch.float32] = 1.0
    assert "reference code" in str(served().why_not)


def test_the_reason_names_onednns(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Tensor:
        raise RuntimeError("no such primitive\nsecond line")

    monkeypatch.setattr(onednn, "pack", fails)
    assert onednn.served.__wrapped__().why_not == "oneDNN: no such primitive"
