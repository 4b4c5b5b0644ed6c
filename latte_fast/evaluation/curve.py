"""The picture of a metric over time: a value for each window of the films."""

from pathlib import Path
from typing import Any

from latte_fast.evaluation.result import Result
from latte_fast.files import atomic


def plot_curve(path: Path, result: Result) -> Path:
    """Draws the windows' values and, where there are any, their intervals."""
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("evaluate: matplotlib must be installed; pip install 'latte_fast[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure: Any
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    at = list(range(1, len(result.curve) + 1))
    axis.plot(at, [score.value for score in result.curve], marker="o", linewidth=1.5)
    bounds = [score.interval for score in result.curve]
    if all(bounds):
        low, high = ([pair[i] for pair in bounds if pair] for i in (0, 1))
        axis.fill_between(at, low, high, alpha=0.2, linewidth=0)
    axis.set_title(result.title)
    axis.set_xlabel("window, from the films' start to their end")
    axis.grid(alpha=0.3)
    try:
        with atomic(path) as partial:
            figure.savefig(partial, dpi=100, format="png")
    finally:
        plt.close(figure)
    return path
