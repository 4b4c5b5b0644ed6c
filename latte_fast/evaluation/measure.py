"""A metric from end to end: checks, rows of the real set and of the samples, their comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latte_fast.distributed.ranks import Ranks, alone
from latte_fast.evaluation import real_stats
from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.detector import Detector, check_detector, check_device
from latte_fast.evaluation.feature_file import read_features
from latte_fast.evaluation.features import Features, first_size, gather
from latte_fast.evaluation.film_sets import open_real, open_samples
from latte_fast.evaluation.frechet import Moments, frechet_distance, moments, moments_of
from latte_fast.evaluation.pairs import Films, choose_pairs
from latte_fast.evaluation.parts import Collected, Source, fill_all
from latte_fast.evaluation.result import Result, check_writable
from latte_fast.evaluation.score import Score, replicates, resampled
from latte_fast.evaluation.selection import Choice, choose_real, choose_samples, digest


@dataclass(frozen=True)
class Real:
    """The real side of a comparison: chosen pieces, kept moments, or both."""

    choice: Choice | None
    settings: dict[str, Any]
    stats: Path | None
    about: dict[str, Any]

    @property
    def kept(self) -> bool:
        return "kept" in self.about


def evaluate(config: Evaluation, ranks: Ranks | None = None) -> Result:
    """Measures one metric; writes nothing but `config.parts`, and `config.real_stats` if that file is not there yet.

    Args:
        config: settings of the measurement.
        ranks: processes that share the work, which all get the result; by default this one alone.
    """
    ranks = ranks or alone()
    if config.of_files:
        return ranks.from_first(lambda: score_files(config))
    if ranks.count > 1 and not config.parts:
        raise ValueError(f"evaluate: parts must be a folder that all {ranks.count} processes reach, got none")
    detector = open_detector(config)
    samples = [choose_samples(open_samples(config.samples), config)]
    samples += [choose_samples(samples[0].films, config, window) for window in range(1, config.windows)]
    real = prepare_real(config, detector) if config.row.against == "real" else None
    pairs = open_samples(config.real) if config.row.against == "pairs" else None
    sources: list[Source] = []
    for choice in samples:
        other = choose_pairs(choice, pairs) if pairs else None
        measured = config.row.against == "pairs" or detector is None
        rows = Films("samples", choice, other, detector, config) if measured else None
        sources.append(rows or Features("samples", choice, needed(detector), config))
    found = [Collected(source, ranks, config.parts) for source in sources]
    against = None
    if real is not None and not real.kept:
        assert real.choice is not None
        against = Collected(Features("real", real.choice, needed(detector), config), ranks, config.parts)
    if config.parts:
        fill_all([*([against] if against else []), *found], ranks)
    about = about_of(samples[0]) | {"sampled": samples[0].films.origin, "path": str(samples[0].films.root)}
    of_pairs = {"path": str(config.real), "films": len(pairs.films)} if pairs else {}
    return ranks.from_first(lambda: finish(config, detector, found, real, against, about, of_pairs))


def open_detector(config: Evaluation) -> Detector | None:
    """Opens the detector, after all that is known to be wrong without it; returns None where pixels are measured."""
    if config.row.call is not None:
        check_detector(config.metric, config.detector)
    check_device(config.device)
    if config.real_stats and not config.real and not Path(config.real_stats).is_file():
        raise ValueError(f"evaluate: real must be the real set's folder, as {config.real_stats} is not there yet")
    # the sets are opened first, as a network takes longer
    return Detector(config.metric, config.detector, config.device) if config.row.call is not None else None


def needed(detector: Detector | None) -> Detector:
    assert detector is not None
    return detector


def finish(
    config: Evaluation,
    detector: Detector | None,
    found: Sequence[Collected],
    real: Real | None,
    against: Collected | None,
    about: dict[str, Any],
    real_about: dict[str, Any],
) -> Result:
    """Compares the rows of each window with those of the real set."""
    held: Moments | Tensor | None = None
    if real is not None:
        held, real_about = real_rows(config, real, against)
    scores, width = [], 1
    for i, collected in enumerate(found):
        if config.row.moments and not config.bootstrap:
            assert isinstance(held, Moments)
            own = moments_of(collected)
            count, width = own.count, len(own.mean)
            scores.append(Score(frechet_distance(held, own)))
        else:
            rows = gather(collected)
            count, width = rows.shape
            check_left(config, "samples", count)
            if config.row.against == "start":
                held = rows if i == 0 else held
                check_start(config, found[0].broken, collected.broken)
            scores.append(score_rows(config, rows, held))
        if i == 0:
            check_left(config, "samples", count)
            about |= {"count": count, "sizes": len(collected.sizes)}
        about["broken"] = sorted({*about["broken"], *collected.broken})
    if config.row.against == "pairs":
        real_about |= {"count": about["count"]}
    sha256, network = (detector.sha256, detector.name) if detector else ("", "")
    published = detector is None or detector.published
    curve = tuple(scores) if config.windows > 1 else ()
    first = scores[0]
    if config.row.against == "start":
        # the first window is compared with itself
        first = Score(sum(score.value for score in scores[1:]) / (len(scores) - 1))
    return Result(config, first, width, sha256, about, real_about, network, published, curve)


def score_rows(config: Evaluation, rows: Tensor, real: Moments | Tensor | None) -> Score:
    """Scores rows against those of the real set, or against its moments where its rows were not kept."""
    if not isinstance(real, Moments):
        return config.row.score(rows, real, config.settings)
    value = frechet_distance(real, moments(rows))
    again = replicates(config.settings, lambda draw: frechet_distance(real, moments(resampled(rows, draw))))
    return Score(value).bounded(again)


def score_files(config: Evaluation) -> Result:
    """Scores files of features, which need neither films nor a detector."""
    rows, real = read_features("samples", config.samples), None
    about = {"path": str(config.samples), "count": len(rows), "features": True}
    real_about: dict[str, Any] = {}
    check_left(config, "samples", len(rows))
    if config.row.against == "real":
        real = read_features("real", config.real)
        check_left(config, "real", len(real))
        if rows.shape[1] != real.shape[1]:
            raise ValueError(f"evaluate: features must have one width, got {rows.shape[1]} and {real.shape[1]}")
        real_about = {"path": str(config.real), "count": len(real), "features": True}
    score = config.row.score(rows, real, config.settings)
    return Result(config, score, rows.shape[1], "", about, real_about)


def prepare_real(config: Evaluation, detector: Detector | None) -> Real:
    """Opens the real set, chooses from it, and checks kept moments against it, before anything is measured."""
    choice = choose_real(open_real(config.kind, config.real, config.index), config) if config.real else None
    settings = real_stats.settings_of(config, needed(detector).sha256, digest(choice) if choice else None)
    path = Path(config.real_stats) if config.real_stats else None
    about: dict[str, Any] = {}
    if path and path.exists():
        about = real_stats.read_about(path, settings) | {"kept": str(path)}
    elif choice:
        if path:
            check_writable("real_stats", path)
        about = about_of(choice) | {"path": str(config.real), "kind": config.kind, "set": settings["set"]}
    return Real(choice, settings, path, about)


def real_rows(config: Evaluation, real: Real, against: Collected | None) -> tuple[Moments | Tensor, dict[str, Any]]:
    """Returns the real set's rows or moments, kept or new, and what is known of the set; keeps new ones if asked to."""
    if against is None:
        assert real.stats is not None
        held = real_stats.read_stats(real.stats)
        return held, real.about | {"count": held.count}
    rows: Moments | Tensor
    if config.row.moments and not config.bootstrap:
        rows = found = moments_of(against)
        count = found.count
    else:
        rows = gather(against)
        count = len(rows)
    check_left(config, "real", count)
    about = real.about | {"count": count, "broken": real.about["broken"] + sorted(set(against.broken))}
    if real.stats:
        kept = rows if isinstance(rows, Moments) else moments(rows)
        known = {k: about[k] for k in about if k not in ("kind", "set")}
        real_stats.write_stats(real.stats, kept, real.settings, known)
    return rows, about


def check_left(config: Evaluation, name: str, count: int) -> None:
    least = config.row.least
    if count < least:
        raise ValueError(f"evaluate: {name} must have {least} {config.unit}s that decode, got {count}")


def check_start(config: Evaluation, first: list[str], later: list[str]) -> None:
    """Refuses films that decode in one of two windows alone, as rows would be compared with those of other films."""
    apart = sorted({*first} ^ {*later})
    if config.unit == "clip" and apart:
        rule = f"decode from start to end for {config.metric}, which compares each film with its start"
        raise ValueError(f"evaluate: samples must {rule}, got {', '.join(apart)}")


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
