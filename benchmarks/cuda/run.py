"""Runs stages until the deadline; the archive is written after each, on a timer, and when somebody ends the run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from benchmarks.cuda.archive import LIMIT, Refused, State, file_name, pack, stem, unpack
from benchmarks.cuda.plan import NOTHING_SELECTED, Stage

ROOT = Path(__file__).parents[2]
# seconds kept for the last archive and for a stage to end when it is told to
RESERVE, GRACE = 8.0, 4.0
CHECKPOINT = 30.0


@dataclass
class Day:
    """One call: what runs, on what, until when, and where the archive comes from and goes."""

    stages: list[Stage]
    commit: str
    device: str
    out: Path
    archive: Path | None = None
    deadline: float = 560.0
    python: str = sys.executable
    tiles: Path = ROOT / "kernels" / "configs"
    limit: int = LIMIT
    named: bool = False  # the stages were asked for by name, so that one that failed twice runs again
    say: Callable[[str], None] = print
    began: float = field(default_factory=time.monotonic)
    ended: bool = field(default=False, init=False)  # from outside

    def left(self) -> float:
        return 0.0 if self.ended else self.deadline - RESERVE - (time.monotonic() - self.began)


def check(day: Day) -> Path | None:
    """The archive to go on from; Refused where the deadline fits no stage, or what lies in OUT is another's."""
    shortest = min(day.stages, key=lambda stage: stage.least)
    if day.deadline - RESERVE < shortest.least:
        needs = shortest.least + RESERVE
        raise Refused(f"DEADLINE={day.deadline:g}: {shortest.name} alone needs {needs:g} s")
    own = day.out / file_name(State(day.commit, day.device))
    others = [path.name for path in sorted(day.out.glob("cuda-*.tgz")) if path != own]
    if others:
        raise Refused(f"{day.out}: holds {others[0]}, which is not of {day.device} and {day.commit}; move it away")
    return day.archive or (own if own.is_file() else None)


def run(day: Day) -> int:
    """0 where every stage is done, 1 where one failed, 3 where some are left for the next call."""
    source = check(day)
    with tempfile.TemporaryDirectory(prefix="latte-fast-cuda-") as folder:
        work = Path(folder)
        state = State(day.commit, day.device) if source is None else unpack(source, work, day.commit, day.device)
        restore_tiles(day, work)
        before = {s: signal.signal(s, lambda *_: end(day)) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            for stage in sorted(day.stages, key=lambda stage: stuck(state, stage)):
                if not day.ended:
                    _stage(day, stage, state, work)
            path = save(day, state, work)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    left = [s.name for s in day.stages if state.stages.get(s.name, {}).get("status") not in ("done", "failed")]
    failed = [s.name for s in day.stages if state.stages.get(s.name, {}).get("status") == "failed"]
    day.say(f"{path}: {path.stat().st_size} bytes")
    for name in state.dropped:
        day.say(f"  left out for its size: {name}")
    if left:
        day.say(f"left for the next call, which gets ARCHIVE={path.name}: {', '.join(left)}")
    return 3 if left else 1 if failed else 0


def stuck(state: State, stage: Stage) -> bool:
    """Whether it was cut off in two calls: it goes last, for it may never end."""
    known = state.stages.get(stage.name, {})
    return known.get("status") == "cut" and known["calls"] >= 2


def end(day: Day, *_: int | FrameType | None) -> None:
    day.ended = True


def _stage(day: Day, stage: Stage, state: State, work: Path) -> None:
    known = state.stages.get(stage.name, {})
    if known.get("status") == "done" and not stage.always:
        return day.say(f"{stage.name}: done before")
    if known.get("status") == "failed" and known["calls"] >= 2 and not day.named:
        return day.say(f"{stage.name}: failed twice before, not run; name it to run it again")
    if day.left() < stage.least:
        return day.say(f"{stage.name}: needs {stage.least} s, {max(0, day.left()):.0f} s are left")
    began = time.monotonic()
    status, why = "done", ""
    log = work / "logs" / f"{stage.name}.log"
    log.parent.mkdir(exist_ok=True)
    entry = state.stages[stage.name] = {
        "status": "cut",
        "seconds": known.get("seconds", 0.0),
        "calls": known.get("calls", 0) + 1,
        "commit": day.commit,
    }
    for command in stage.commands:
        code = _command(day, [day.python, *(part.replace("{work}", str(work)) for part in command)], log, state, work)
        if code is None:
            status, why = "cut", " by the deadline" if not day.ended else " from outside"
        elif code and not (code == NOTHING_SELECTED and stage.may_be_empty):
            status, why = "failed", f" ({code})"
        if status != "done":
            break
    took = time.monotonic() - began
    entry |= {"status": status, "seconds": round(entry["seconds"] + took, 1)}
    day.say(f"{stage.name}: {status}{why}, {took:.0f} s")
    for line in log.read_text(errors="replace").splitlines()[-3 if status == "done" else -15 :]:
        day.say(f"    {line}")
    save(day, state, work)
    return None


def _command(day: Day, command: list[str], log: Path, state: State, work: Path) -> int | None:
    """The exit status, or None where the time was up; its output is added to the log."""
    with log.open("ab") as output:
        environment = os.environ | {"COMMIT": day.commit}  # one name for all that a day measures
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
    saved = time.monotonic()
    while day.left() > 0:
        try:
            return child.wait(max(0.05, min(0.5, day.left())))
        except subprocess.TimeoutExpired:
            if time.monotonic() - saved > CHECKPOINT:  # the machine may go without a word
                save(day, state, work)
                saved = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        break
    return None


def restore_tiles(day: Day, work: Path) -> None:
    """The tiles that earlier calls tuned, to where the kernels look for them."""
    for path in (work / "configs").glob("*.json"):
        day.tiles.mkdir(exist_ok=True)
        shutil.copyfile(path, day.tiles / path.name)


def save(day: Day, state: State, work: Path) -> Path:
    tuned = day.tiles / f"{stem(day.device)}.json"
    if tuned.is_file():
        (work / "configs").mkdir(exist_ok=True)
        shutil.copyfile(tuned, work / "configs" / tuned.name)
    return pack(work, state, day.out, day.limit)
