"""Two runs of one machine: what got slower by more than the noise of both."""

from dataclasses import dataclass

from latte_fast.results.record import Results, Row

OURS = "ours"
LEAST = 0.05  # a change below this share is never called one


@dataclass(frozen=True)
class Change:
    title: str
    before: float
    after: float
    allowed: float  # the share that noise explains
    gone: str = ""  # why the later run has no such row

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def regressed(self) -> bool:
        return bool(self.gone) or self.ratio > 1 + self.allowed


def changes(before: Results, after: Results) -> list[Change]:
    """Ours in every race of `before`. A machine that drifted drifts for all: times are judged relative to the other
    contenders of the race where both runs have one, by the sum of both rows' noise."""
    if before.device != after.device:
        raise ValueError(f"compare: the runs must come from one device, got {before.device!r} and {after.device!r}")
    later = dict(after.races())
    found = []
    for key, race in before.races():
        old = race.get(OURS)
        if old is None or not old.timed:
            continue
        title = " / ".join(key)
        new = later.get(key, {}).get(OURS)
        if new is None or not new.timed:
            why = "not measured" if new is None else new.reason or "not timed"
            found.append(Change(title, old.median, float("nan"), 0.0, why))
            continue
        drift, drift_noise = _drift(race, later[key])
        allowed = max(LEAST, old.noise + new.noise + drift_noise)
        found.append(Change(title, old.median, new.median / drift, allowed))
    return found


def _drift(old: dict[str, Row], new: dict[str, Row]) -> tuple[float, float]:
    """(how much slower the machine was for everyone else, the noise of that); (1, 0) where nobody else ran twice."""
    shared = [n for n, r in old.items() if n != OURS and r.timed and n in new and new[n].timed]
    if not shared:
        return 1.0, 0.0
    quietest = min(shared, key=lambda n: old[n].noise + new[n].noise)
    return new[quietest].median / old[quietest].median, old[quietest].noise + new[quietest].noise


def table(found: list[Change]) -> str:
    lines = [f"{'before':>12} {'after':>12} {'ratio':>7} {'noise':>7}"]
    for change in found:
        if change.gone:
            lines.append(f"{change.before * 1e3:9.2f} ms {'':>12} {'':>7} {'':>7}  {change.title}: {change.gone}")
            continue
        flag = "  REGRESSED" if change.regressed else ""
        lines.append(
            f"{change.before * 1e3:9.2f} ms {change.after * 1e3:9.2f} ms {change.ratio:6.2f}x {change.allowed:6.0%}"
            f"  {change.title}{flag}"
        )
    return "\n".join(lines)
