"""Choosing a backend: forced, automatic, refused with its reason."""

import logging

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
            assert backends._forced == {"axis_attention": "sdpa"}
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
