"""A contender with a check of its own is timed only where that holds, and takes nobody with it where it does not."""

from benchmarks.contenders import gated


def fail(error: Exception) -> None:
    raise error


def test_a_contender_whose_check_fails_is_its_reason() -> None:
    assert gated(lambda: None, int) is int
    assert gated(lambda: fail(AssertionError("output: 2 > 1\nmore")), int) == "its check failed: output: 2 > 1"
    assert gated(lambda: fail(RuntimeError()), int) == "its check failed: RuntimeError()"
