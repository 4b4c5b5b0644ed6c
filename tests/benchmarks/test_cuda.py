"""`make cuda` on a borrowed machine: one archive a call, nothing measured twice, nothing lost; and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import commit as naming
from benchmarks.cuda import archive, plan, shards
from benchmarks.cuda.archive import Refused, State
from benchmarks.cuda.plan import Stage
from benchmarks.cuda.run import Day, run

ROOT = Path(__file__).parents[2]


def stage(name: str, code: str, least: int = 0, **more: bool) -> Stage:
    return Stage(name, least, (("-c", code),), **more)


def counted(name: str) -> Stage:
    """Adds a line to a file of its own each time that it runs."""
    return stage(name, f"print('ran'); open(r'{{work}}/{name}.txt', 'a').write('ran\\n')")


@pytest.fixture
def day(tmp_path: Path):
    """make(stages, ...) is one call on a machine of its own, which keeps nothing but what OUT had."""

    def make(*stages: Stage, archive: Path | None = None, call: int = 1, **more) -> Day:
        more = {"commit": "abc1234", "device": "NVIDIA X-1", "deadline": 60.0} | more
        out = tmp_path / f"out{call}"
        return Day(list(stages), out=out, archive=archive, tiles=tmp_path / f"tiles{call}", say=said.append, **more)

    said: list[str] = []
    make.said = said
    return make


def only(out: Path) -> Path:
    (found,) = out.iterdir()
    return found


def content(path: Path) -> dict[str, bytes]:
    return archive.read(path)[1]


def test_a_second_call_goes_on_where_the_first_was_cut(day, tmp_path: Path) -> None:
    slow = stage("slow", "import time; open(r'{work}/part.txt', 'a').write('half\\n'); time.sleep(60)")
    first = day(counted("quick"), slow, counted("last"), deadline=8.0 + 8.0)
    assert run(first) == 3
    path = only(first.out)
    assert path.name == "cuda-nvidia_x_1-abc1234.tgz"
    state, files = archive.read(path)
    assert {name: entry["status"] for name, entry in state.stages.items()} == {"quick": "done", "slow": "cut"}
    assert files["part.txt"] == b"half\n"  # what a stage left before it was cut
    second = day(counted("quick"), counted("slow"), counted("last"), archive=path, call=2)
    assert run(second) == 0
    files = content(only(second.out))
    assert files["quick.txt"] == files["slow.txt"] == files["last.txt"] == b"ran\n"
    assert files["part.txt"] == b"half\n"
    state, _ = archive.read(only(second.out))
    assert all(entry == entry | {"status": "done", "commit": "abc1234"} for entry in state.stages.values())
    assert [state.stages[name]["calls"] for name in ("quick", "slow", "last")] == [1, 2, 1]


def test_tiles_travel_with_the_archive(day, tmp_path: Path) -> None:
    first = day(counted("tune"))
    first.tiles.mkdir()
    (first.tiles / "nvidia_x_1.json").write_text("tuned")
    (first.tiles / "another.json").write_text("not of this machine")
    assert run(first) == 0
    second = day(counted("tune"), counted("ops"), archive=only(first.out), call=2)
    assert run(second) == 0
    assert {p.name: p.read_text() for p in second.tiles.iterdir()} == {"nvidia_x_1.json": "tuned"}
    assert content(only(second.out))["configs/nvidia_x_1.json"] == b"tuned"


def test_what_fails_is_tried_twice_and_by_name(day) -> None:
    broken, path = stage("broken", "print('why'); raise SystemExit(4)"), None
    for call, status in ((1, 1), (2, 1), (3, 1)):
        today = day(broken, counted("next"), archive=path, call=call)
        assert run(today) == status
        path = only(today.out)
    state, files = archive.read(path)
    assert state.stages["broken"]["calls"] == 2 and files["next.txt"] == b"ran\n"
    assert files["logs/broken.log"] == b"why\n" * 2
    assert any("failed twice before" in line for line in day.said)
    assert run(day(broken, archive=path, call=4, named=True)) == 1
    assert archive.read(only(path.parents[1] / "out4"))[0].stages["broken"]["calls"] == 3


def test_a_stage_that_does_not_fit_is_left_and_a_shorter_one_runs(day) -> None:
    today = day(stage("long", "raise SystemExit(1)", least=500), counted("short"))
    assert run(today) == 3
    assert content(only(today.out))["short.txt"] == b"ran\n"
    assert any(line.startswith("long: needs 500 s") for line in day.said)


def test_the_build_runs_on_every_machine(day) -> None:
    stages = [stage("build", "open(r'{work}/build.txt', 'a').write('ran\\n')", always=True), counted("ops")]
    assert run(day(*stages)) == 0
    assert run(day(*stages, archive=only(day(*stages).out), call=2)) == 0
    assert content(only(day(*stages, call=2).out))["build.txt"] == b"ran\n" * 2


def test_an_end_from_outside_leaves_the_archive(day) -> None:
    pid = os.getpid()
    kill = stage(
        "kill", f"import os, time; open(r'{{work}}/a.txt', 'w'); os.kill({pid}, {signal.SIGTERM:d}); time.sleep(60)"
    )
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    today = day(counted("first"), kill, counted("never"))
    assert run(today) == 3 and time.monotonic() - began < 30
    assert set(content(only(today.out))) >= {"first.txt", "a.txt"}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("limit", "kept"), [(10**6, {"a.json", "a.log", "a.rounds"}), (5000, {"a.json", "a.rounds"}), (2500, {"a.json"})]
)
def test_logs_go_first_then_rounds(tmp_path: Path, limit: int, kept: set[str]) -> None:
    (tmp_path / "work").mkdir()
    for name, size in (("a.json", 1000), ("a.log", 4000), ("a.rounds", 2000)):
        (tmp_path / "work" / name).write_bytes(os.urandom(size))
    path = archive.pack(tmp_path / "work", State("abc", "x"), tmp_path / "out", limit)
    state, files = archive.read(path)
    assert set(files) == kept and path.stat().st_size <= limit
    assert set(state.dropped) == {"a.json", "a.log", "a.rounds"} - kept


def refused(today: Day, match: str) -> None:
    before = {p: p.read_bytes() for p in today.out.glob("*")}
    with pytest.raises(Refused, match=match):
        run(today)
    assert {p: p.read_bytes() for p in today.out.glob("*")} == before and not today.tiles.exists()


def test_what_is_refused_is_named_and_nothing_is_overwritten(day, tmp_path: Path) -> None:
    first = day(counted("ops"))
    first.tiles.mkdir()
    (first.tiles / "nvidia_x_1.json").write_text("tuned")
    assert run(first) == 0
    whole = only(first.out)
    half = tmp_path / "half.tgz"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    foreign = tmp_path / "foreign.tgz"
    with tarfile.open(foreign, "w:gz") as tar:
        tar.add(__file__, "state.json")
    other = counted("other")
    refused(day(other, archive=half, call=2), "half.tgz: half-written")
    refused(day(other, archive=foreign, call=2), "foreign.tgz: no archive of `make cuda`")
    refused(day(other, archive=tmp_path / "none.tgz", call=2), "no such archive")
    refused(day(other, archive=whole, call=2, commit="def5678"), "of commit abc1234, and these sources are def5678")
    refused(day(other, archive=whole, call=2, device="NVIDIA Y"), "measured on NVIDIA X-1, and this is NVIDIA Y")
    refused(day(stage("long", "", least=30), call=2, deadline=20.0), "DEADLINE=20: long alone needs 38 s")
    (tmp_path / "out2").mkdir()
    shutil.copy(whole, tmp_path / "out2")
    refused(day(other, call=2, commit="def5678"), "holds cuda-nvidia_x_1-abc1234.tgz, which is not of")
    # half-written where it would be gone on from
    (tmp_path / "out2" / whole.name).write_bytes(half.read_bytes())
    refused(day(other, call=2), "half-written")


def test_an_archive_left_in_out_is_gone_on_from(day) -> None:
    assert run(day(counted("ops"))) == 0 and run(day(counted("ops"))) == 0
    assert content(only(day(counted("ops")).out))["ops.txt"] == b"ran\n"


def test_names_that_lead_out_of_the_archive_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        state = tmp_path / "state.json"
        state.write_text(json.dumps({"format": archive.FORMAT, "commit": "a", "device": "b"}))
        tar.add(state, "state.json")
        tar.add(state, "../outside.json")
    with pytest.raises(Refused, match="no archive of"):
        archive.read(tmp_path / "a.tgz")


def test_a_stage_that_was_cut_twice_goes_last(day) -> None:
    """One that hangs takes no third call from the others."""
    hangs, path = stage("hangs", "import time; time.sleep(60)"), None
    for call in (1, 2):
        today = day(hangs, counted("next"), archive=path, call=call, deadline=8.0 + 2.0)
        assert run(today) == 3
        path = only(today.out)
        assert "next.txt" not in content(path)
    today = day(hangs, counted("next"), archive=path, call=3, deadline=8.0 + 8.0)
    assert run(today) == 3 and content(only(today.out))["next.txt"] == b"ran\n"


def test_shards_that_passed_do_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a sanitizer every allocation is seen; what failed comes again."""
    tool = tmp_path / "compute-sanitizer"
    record = f'echo "$2 $PYTORCH_NO_CUDA_MEMORY_CACHING" >>{tmp_path}/seen'
    tool.write_text(f"#!/bin/sh\n{record}\n[ -f {tmp_path}/ok ] || [ $2 = memcheck ]\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    count = sum(bool(few) for few in shards.SHARDS.values())
    assert shards.main(tmp_path / "done", ["memcheck", "racecheck"]) == 1
    assert (tmp_path / "seen").read_text().splitlines() == ["memcheck 1"] * count + ["racecheck 1"] * count
    (tmp_path / "ok").touch()
    assert shards.main(tmp_path / "done", ["memcheck", "racecheck"]) == 0
    assert (tmp_path / "seen").read_text().splitlines()[2 * count :] == ["racecheck 1"] * count
    assert all((ROOT / file).is_file() for file in shards.SHARDS)
    rules = subprocess.run(["make", "-n", "sanitize-cuda"], cwd=ROOT, capture_output=True, text=True).stdout
    assert rules.count("PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer") == 2


def test_stages_are_the_most_valuable_first() -> None:
    names = [s.name for s in plan.plan(dry=False)]
    wanted = [
        "build",
        "smoke",
        "checks",
        "gemm",
        "tune",
        "products",
        "ops",
        "model",
        "training",
        "optimizer",
        "t2v",
        "fp8",
        "int8",
        "whole-graph",
    ]
    assert names[: len(wanted)] == wanted and names[-1] == "sanitize"
    assert all(s.least < 500 for s in plan.plan(dry=False))
    assert [s.name for s in plan.chosen(plan.plan(True), ["ops", "gemm"])] == ["gemm", "ops"]
    with pytest.raises(ValueError, match="nothing: no such stage; there are build, smoke"):
        plan.chosen(plan.plan(True), ["nothing"])
    # every test runs in one stage
    files = {part for s in plan.plan(False) for command in s.commands for part in command if part.endswith(".py")}
    here = {f"benchmarks/{p.name}" for p in (ROOT / "benchmarks").glob("test_*.py")}
    assert here - files == {"benchmarks/test_data.py"}  # which reads videos, with no GPU in it


def test_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naming.commit.cache_clear()
    monkeypatch.delenv("COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("1")
    first = naming.commit(tmp_path)
    assert first.startswith("tree-") and len(first) == 13
    naming.commit.cache_clear()
    (tmp_path / "kernels" / "configs").mkdir()
    (tmp_path / "kernels" / "configs" / "gpu.json").write_text("tiles are no part of it")
    assert naming.commit(tmp_path) == first
    naming.commit.cache_clear()
    (tmp_path / "kernels" / "a.py").write_text("2")
    assert naming.commit(tmp_path) != first
    naming.commit.cache_clear()
    (tmp_path / "COMMIT").write_text("abc1234\n")
    assert naming.commit(tmp_path) == "abc1234"
    naming.commit.cache_clear()
    monkeypatch.setenv("COMMIT", "def5678")
    assert naming.commit(tmp_path) == "def5678"
    naming.commit.cache_clear()


def test_tiles_and_results_are_no_change_of_the_sources(tmp_path: Path) -> None:
    def git(*args: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True)

    for name in ("kernels/a.py", "kernels/configs/gpu.json", "benchmarks/results/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = naming.of_git(tmp_path)
    assert len(clean) >= 7
    (tmp_path / "kernels/configs/gpu.json").write_text("2")
    (tmp_path / "benchmarks/results/x.json").write_text("2")
    assert naming.of_git(tmp_path) == clean
    (tmp_path / "kernels/a.py").write_text("2")
    assert naming.of_git(tmp_path) == f"{clean}-changed"
    assert naming.of_git(tmp_path / "kernels") == ""


BLOCKED = """import sys
for name in ("tyro", "av", "diffusers", "flash_attn", "flash_attn_interface"):
    sys.modules[name] = None
"""
# the second test of the last stage never ends in the first call
HANGS = """import os, time

def pytest_runtest_setup(item):
    if "patches per frame" in item.nodeid and "HANG" in os.environ:
        time.sleep(1000)
"""


@pytest.mark.slow  # it waits for a deadline of a minute
def test_two_calls_on_a_bare_machine(tmp_path: Path) -> None:
    """A copy without .git, no git, few packages, 8 files of 16 MB that come back, and another machine next."""
    site, out = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKED)
    (site / "hangs.py").write_text(HANGS)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "bash").symlink_to(shutil.which("bash"))
    kept = ("benchmarks", "kernels", "latte_fast", "csrc")

    def call(number: int, **more: str) -> subprocess.CompletedProcess:
        tree = tmp_path / f"machine{number}"
        for folder in kept:
            shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tree)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        env = {"PATH": str(tools), "PYTHONPATH": os.pathsep.join([str(site), str(tree)]), "PYTHON": sys.executable}
        env |= {
            "PYTEST_ADDOPTS": "-p hangs",
            "DRY": "1",
            "OUT": str(out),
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path),
        }
        done = subprocess.run(
            [tree / "benchmarks" / "cuda.sh", "smoke", "gemm", "tune", "scaling"],
            env=env | more, capture_output=True, text=True,
        )  # fmt: skip
        files = list(out.iterdir())
        assert len(files) == 1, (files, done.stdout, done.stderr)
        assert files[0].stat().st_size < 16e6 and files[0].name.startswith("cuda-dry-tree-")
        return done

    def rows() -> dict[tuple[str, str], float]:
        files = content(only(out))
        found = [row for n, text in files.items() if n.endswith(".json") for row in json.loads(text)["rows"]]
        return {(row["title"], row["contender"]): row["median"] for row in found}

    first = call(1, HANG="1", DEADLINE="60")
    assert first.returncode == 3, first.stdout + first.stderr
    assert "left for the next call" in first.stdout and "scaling" in first.stdout.splitlines()[-1]
    measured = rows()
    given = tmp_path / "given.tgz"
    shutil.copy(only(out), given)
    second = call(2, ARCHIVE=str(given))
    assert second.returncode == 0, second.stdout + second.stderr
    after = rows()
    assert measured and measured.items() <= after.items() and len(after) > len(measured)
    state, files = archive.read(only(out))
    assert {entry["status"] for entry in state.stages.values()} == {"done"}
    for name in ("gemm", "scaling"):
        tests = files[f"{name}.tests"].decode().splitlines()
        assert len(tests) == len(set(tests))
    assert b"needs a GPU, not run" in files["logs/tune.log"]
    # what lies in the archive comes from two machines and one commit
    assert {json.loads(files[f"{name}.json"])["commit"] for name in ("gemm", "scaling")} == {state.commit}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["build", "checks", "ops", "model-one-clip", "t2v", "rest", "ops-B", "memory", "sanitize"]
)
def test_dry_run(name: str, tmp_path: Path) -> None:
    """The stages that compile for minutes, at sizes that take a moment."""
    env = os.environ | {"OUT": str(tmp_path), "DRY": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([ROOT / "benchmarks" / "cuda.sh", name], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
