"""Evaluation of samples: FVD and FID against a real set, the inception score, and a classifier of moving shapes."""

from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.frechet import Moments, frechet_distance, merge, moments, moments_of
from latte_fast.evaluation.inception_score import inception_score
from latte_fast.evaluation.measure import evaluate
from latte_fast.evaluation.result import Result, write_result

__all__ = [
    "Evaluation",
    "Moments",
    "Result",
    "evaluate",
    "frechet_distance",
    "inception_score",
    "merge",
    "moments",
    "moments_of",
    "write_result",
]
