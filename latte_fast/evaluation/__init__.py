"""Evaluation of samples: distances from a real set, scores of pairs and of single films, a classifier of shapes."""

from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.frechet import Moments, frechet_distance, merge, moments, moments_of
from latte_fast.evaluation.inception_score import inception_score
from latte_fast.evaluation.kernel_distance import mmd
from latte_fast.evaluation.manifold import manifold_scores
from latte_fast.evaluation.measure import evaluate
from latte_fast.evaluation.metrics import METRICS, PRESETS
from latte_fast.evaluation.result import Result, write_result
from latte_fast.evaluation.score import Score

__all__ = [
    "METRICS",
    "PRESETS",
    "Evaluation",
    "Moments",
    "Result",
    "Score",
    "evaluate",
    "frechet_distance",
    "inception_score",
    "manifold_scores",
    "merge",
    "mmd",
    "moments",
    "moments_of",
    "write_result",
]
