"""A metric from end to end: checks, features of the real set and of the samples, their comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latte_fast.evaluation import real_stats
from latte_fast.evaluation.config import LEAST, Evaluation
from latte_fast.evaluation.detector import Detector, check_detector, check_device
from latte_fast.evaluation.features import Features, first_size, gather
from latte_fast.evaluation.film_sets import open_real, open_samples
from latte_fast.evaluation.frechet import Moments, frechet_distance, moments_of
from latte_fast.evaluation.inception_score import inception_score
from latte_fast.evaluation.result import Result, check_writable
from latte_fast.evaluation.selection import Choice, choose_real, choose_samples, digest


@dataclass(frozen=True)
class Real:
    """The real side of a comparison: chosen pieces, kept moments, or both."""

    choice: Choice | None
    settings: dict[str, Any]
    stats: Path | None
    about: dict[str, Any]


def evaluate(config: Evaluation) -> Result:
    """Measures one metric; writes nothing but `config.real_stats`, if that file does not exist yet."""
    check_detector(config.metric, Path(config.detector))
    check_device(config.device)
    if config.real_stats and not config.real and not Path(config.real_stats).is_file():
        raise ValueError(f"evaluate: real must be the real set's folder, as {config.real_stats} is not there yet")
    samples = choose_samples(open_samples(config.samples), config)
    detector = Detector(config.metric, Path(config.detector), config.device)
    real = None if config.metric == "is" else prepare_real(config, detector)
    about = about_of(samples) | {"sampled": samples.films.origin, "path": str(samples.films.root)}
    if real is None:
        return score(config, detector, samples, about)
    against, real_about = real_moments(config, detector, real)
    features = Features("samples", samples, detector, config)
    found = moments_of(features)
    about |= {"count": found.count, "sizes": len(features.sizes)}
    value = frechet_distance(against, found)
    return Result(config, value, None, len(found.mean), detector.sha256, about, real_about)


def score(config: Evaluation, detector: Detector, samples: Choice, about: dict[str, Any]) -> Result:
    """Computes the inception score, which needs samples alone."""
    features = Features("samples", samples, detector, config)
    probabilities = gather(features)
    value, spread = inception_score(probabilities)
    about |= {"count": len(probabilities), "sizes": len(features.sizes)}
    return Result(config, value, spread, probabilities.shape[1], detector.sha256, about, {})


def prepare_real(config: Evaluation, detector: Detector) -> Real:
    """Opens the real set, chooses from it, and checks kept moments against it, before anything is measured."""
    choice = choose_real(open_real(config.kind, config.real, config.index), config) if config.real else None
    settings = real_stats.settings_of(config, detector.sha256, digest(choice) if choice else None)
    path = Path(config.real_stats) if config.real_stats else None
    about: dict[str, Any] = {}
    if path and path.exists():
        about = real_stats.read_about(path, settings) | {"kept": str(path)}
    elif choice:
        if path:
            check_writable("real_stats", path)
        about = about_of(choice) | {"path": str(config.real), "kind": config.kind, "set": settings["set"]}
    return Real(choice, settings, path, about)


def real_moments(config: Evaluation, detector: Detector, real: Real) -> tuple[Moments, dict[str, Any]]:
    """Returns the real set's moments, kept or new, and what is known of the set; keeps new ones if asked to."""
    if real.stats and "kept" in real.about:
        held = real_stats.read_stats(real.stats)
        return held, real.about | {"count": held.count}
    assert real.choice is not None
    features = Features("real", real.choice, detector, config)
    found = moments_of(features)
    if found.count < LEAST[config.metric]:
        raise ValueError(
            f"evaluate: real must have {LEAST[config.metric]} {config.unit}s that decode, got {found.count}"
        )
    about = real.about | {"count": found.count, "broken": real.about["broken"] + sorted(set(features.broken))}
    if real.stats:
        real_stats.write_stats(
            real.stats, found, real.settings, {k: about[k] for k in about if k not in ("kind", "set")}
        )
    return found, about


def about_of(choice: Choice) -> dict[str, Any]:
    """Returns what is known of a set before it is measured."""
    films = choice.films
    return {
        "films": len(films.films),
        "short": choice.short,
        "broken": films.broken,
        "pixels": first_size(choice),
        "suffix": films.films[0].place.path.suffix.lower(),
    }
