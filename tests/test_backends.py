"""Choosing a backend: forced, automatic, refused with its reason."""

import logging
from collections.abc import Iterator

import pytest
import torch

from latte_fast import backends, ops, use_backend


def test_forced_backend_that_cannot_serve_raises_with_the_reason() -> None:
    x, g = torch.randn(2, 8), torch.randn(2, 8)
    with use_backend(norm_modulate="triton"), pytest.raises(backends.BackendUnavailable, match=r"triton cannot serve"):
        ops.norm_modulate(x, g, g)


def test_forced_by_name_leaves_others_on_auto_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    backends._said.clear()
    for _ in range(2):
        with use_backend("sdpa"):
            assert backends._forced == {"axis_attention": "sdpa", "causal_attention": "sdpa"}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "leaves" in record.message and "norm_modulate" in record.message
    assert backends._forced == {}


def test_nested_choices_restore() -> None:
    with use_backend("reference"):
        with use_backend(axis_attention="sdpa"):
            assert backends._forced["axis_attention"] == "sdpa"
            assert backends._forced["norm_modulate"] == "reference"
        assert backends._forced["axis_attention"] == "reference"
        with use_backend("auto"):
            assert set(backends._forced.values()) == {"auto"}
    assert backends._forced == {}


def test_one_instance_nests_in_itself() -> None:
    choice = use_backend("reference")
    with choice:
        with choice:
            assert backends._forced["norm_modulate"] == "reference"
        assert backends._forced["norm_modulate"] == "reference"
    assert backends._forced == {}


@pytest.mark.parametrize(
    ("args", "kwargs"), [(("nope",), {}), ((), {"nope": "sdpa"}), ((), {"norm_modulate": "sdpa"})], ids=str
)
def test_unknown_names_are_refused(args: tuple, kwargs: dict) -> None:
    with pytest.raises(ValueError, match="use_backend"):
        use_backend(*args, **kwargs)


def test_why_not_is_none_or_a_sentence() -> None:
    from latte_fast import info

    for op, backend, answer in info.table(torch.device("cpu")):
        assert answer, (op, backend)
    assert all(any(r[0] == op and r[2] == "yes" for r in info.table(torch.device("cpu"))) for op in backends.ops())


def test_why_not_of_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"why_not: op must be one of .*norm_modulate.*, got 'nope'"):
        backends.why_not("nope", "reference")
    assert backends.why_not("norm_modulate", "sdpa") == "norm_modulate has no backend sdpa"
    assert backends.why_not("norm_modulate", "reference") is None


def test_auto_is_no_choice_by_name() -> None:
    assert not backends.is_forced("bias_gelu")
    with use_backend("reference"):
        assert backends.is_forced("bias_gelu")
        with use_backend(bias_gelu="auto"):
            assert not backends.is_forced("bias_gelu") and backends.is_forced("norm_modulate")


@pytest.fixture
def picky() -> Iterator[str]:
    """An op whose first backend takes even numbers, its second those below 10."""
    backends.register(
        "picky", {"cpu": lambda n: "odd" if n % 2 else None, "sdpa": lambda n: None if n < 10 else "large"}
    )
    yield "picky"
    del backends._probes["picky"]


def test_first_that_can_serves_and_the_others_say_why_once(picky: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "latte_fast")
    backends._said.clear()
    assert backends.candidates(picky) == ("cpu", "sdpa", "reference") and picky in backends.ops()
    assert [backends.choose(picky, n) for n in (2, 12, 3, 13, 15)] == ["cpu", "cpu", "sdpa", "reference", "reference"]
    assert [record.message for record in caplog.records] == ["picky: not on cpu: odd", "picky: not on sdpa: large"]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    with use_backend(picky="sdpa"):
        assert backends.choose(picky, 2) == "sdpa"
        with pytest.raises(backends.BackendUnavailable, match="picky: backend sdpa cannot serve this call: large"):
            backends.choose(picky, 12)
