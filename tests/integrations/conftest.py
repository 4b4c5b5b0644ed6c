"""The fixtures of models' tests: what is patched is compared with the same oracles."""

from tests.models.conftest import inputs, pair, run

__all__ = ["inputs", "pair", "run"]
