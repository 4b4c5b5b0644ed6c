"""The cost of a clip that GPUs share: exchanges, bytes, and when it pays."""

import pytest

from latte_fast.config import PRESETS, LatteConfig
from latte_fast.parallel_cost import Links, exchanges_of, sent_by_first, shared_cost

XL = LatteConfig(**PRESETS["Latte-XL/2"])
LINKS = Links(450e9, 50e9)


@pytest.mark.parametrize(("variant", "exchanges"), [(0, 0), (1, 28), (2, 2), (3, 56), (4, 56)])
def test_exchanges(variant: int, exchanges: int) -> None:
    assert exchanges_of(LatteConfig(**{**PRESETS["Latte-XL/2"], "variant": variant})) == exchanges


def test_bytes_are_the_formula() -> None:
    """(P - 1) / P^2 of B * F * N * D values where P divides both axes."""
    for gpus in (2, 4, 8, 16):
        whole = 3 * 16 * 256 * 1152 * 2
        assert sent_by_first(XL, 3, 16, 256, gpus, 2) == 28 * whole * (gpus - 1) // gpus**2


def test_machines_and_waits_cost() -> None:
    one, two, eight = (shared_cost(XL, 1, 64, 256, n, LINKS, 0.02) for n in (1, 2, 8))
    assert one.seconds == 0.02 and one.exchanges == 0
    assert two.compute == pytest.approx(0.01) and eight.compute == pytest.approx(0.0025)
    # the output: 32 frames of 32 x 32 x 8 to the other
    assert two.sent == sent_by_first(XL, 1, 64, 256, 2, 2) + 32 * 32 * 32 * 8 * 2
    assert two.exchange == pytest.approx(two.sent / 450e9) and two.waiting == pytest.approx(29 * 30e-6)
    away = shared_cost(XL, 1, 64, 256, 16, LINKS, 0.02)
    assert away.exchange == pytest.approx(away.sent * (7 / 15 / 450e9 + 8 / 15 / 50e9))
    # 17 frames on 2 GPUs: one has 9
    uneven = shared_cost(XL, 1, 17, 256, 2, LINKS, 0.02)
    assert uneven.compute == 0.01 and uneven.seconds - uneven.exchange == pytest.approx(0.02 * 9 / 17 + 29 * 30e-6)


def test_too_many_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gpus must be in \[1, 16\]"):
        shared_cost(XL, 1, 16, 256, 17, LINKS, 0.02)
