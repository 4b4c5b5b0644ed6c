"""Compares two runs of one machine: where ours got slower by more than the noise of both, or keeps more memory."""

import math
from dataclasses import dataclass

from benchmarks.report.record import Results, Row

OURS = "ours"
LEAST = 0.05  # a slowdown by less than this share is never reported


@dataclass(frozen=True)
class Change:
    title: str
    before: float
    after: float
    allowed: float  # the share that noise explains
    gone: str = ""  # why the later run has no such row
    unit: str = "ms"  # "MB" where bytes kept for a backward are compared

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def regressed(self) -> bool:
        return bool(self.gone) or self.ratio > 1 + self.allowed


def is_ours(contender: str) -> bool:
    """Returns whether a contender is ours, under any recompute policy: `ours, recompute = block`."""
    return contender == OURS or contender.startswith(OURS + ",")


def changes(before: Results, after: Results) -> list[Change]:
    """Returns the changes of time and kept bytes of each of our contenders in every race of `before`.

    A machine that got slower is slower for all: times are judged relative to another contender of the race, if both
    runs have one, and by the sum of the rows' noise.
    """
    if before.device != after.device:
        raise ValueError(f"compare: the runs must come from one device, got {before.device!r} and {after.device!r}")
    later = dict(after.races())
    found = []
    for key, race in before.races():
        for name, old in race.items():
            if is_ours(name) and old.ran:
                title = " / ".join(key if name == OURS else (*key, name))
                found += _row_changes(title, old, later.get(key, {}).get(name), *_drift(race, later.get(key, {})))
    return found


def _row_changes(title: str, old: Row, new: Row | None, drift: float, drift_noise: float) -> list[Change]:
    why = "not measured" if new is None else new.reason or "not timed"
    found = []
    if old.timed and (new is None or not new.timed):
        found.append(Change(title, old.median * 1e3, math.nan, 0.0, why))
    elif old.timed and new is not None:
        allowed = max(LEAST, old.noise + new.noise + drift_noise)
        found.append(Change(title, old.median * 1e3, new.median * 1e3 / drift, allowed))
    if old.kept_bytes:
        # a count has no noise; a missing row is reported once, by its time
        if new is not None and new.kept_bytes:
            found.append(Change(title, old.kept_bytes / 1e6, new.kept_bytes / 1e6, 0.0, unit="MB"))
        elif not found or not found[0].gone:
            found.append(Change(title, old.kept_bytes / 1e6, math.nan, 0.0, "not counted", unit="MB"))
    return found


def _drift(old: dict[str, Row], new: dict[str, Row]) -> tuple[float, float]:
    """Returns (slowdown of the quietest other contender, its noise), or (1, 0) if no other one ran in both."""
    shared = [n for n, r in old.items() if not is_ours(n) and r.timed and n in new and new[n].timed]
    if not shared:
        return 1.0, 0.0
    quietest = min(shared, key=lambda n: old[n].noise + new[n].noise)
    return new[quietest].median / old[quietest].median, old[quietest].noise + new[quietest].noise


def table(found: list[Change]) -> str:
    lines = [f"{'before':>12} {'after':>12} {'ratio':>7} {'noise':>7}"]
    for change in found:
        if change.gone:
            lines.append(f"{change.before:9.2f} {change.unit} {'':>12} {'':>7} {'':>7}  {change.title}: {change.gone}")
            continue
        flag = "  REGRESSED" if change.regressed else ""
        lines.append(
            f"{change.before:9.2f} {change.unit} {change.after:9.2f} {change.unit} {change.ratio:6.2f}x"
            f" {change.allowed:6.0%}  {change.title}{flag}"
        )
    return "\n".join(lines)
