"""What diffusers' own suites assert of a Latte, in words of our own: one check a feature, run on each kind of model."""

from tests.helpers.suite import caches, files, pipelines, training, weights
from tests.helpers.suite.kinds import CHECKS, KINDS, Missing

__all__ = ["CHECKS", "KINDS", "Missing", "caches", "files", "pipelines", "training", "weights"]
