"""When the process group goes, nothing that holds it is alive, and the run ends with 0."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trials.endings import RESULTS

ROOT = Path(__file__).parents[2]


def test_two_runs_of_each_kind_end(tmp_path: Path) -> None:
    """Nothing holds the group as it goes, and all exit with 0."""
    command = [sys.executable, "-m", "tests.trials.endings", str(tmp_path / "runs"), "--runs", "2", "--forked"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "runs" / RESULTS).read_text()
    assert done.stdout.count("2 of 2 runs, 2 exit with 0, 0 hang") == 4, done.stdout


CASES = [("ddp",), ("fsdp",), ("ddp", "error")]


@pytest.mark.slow  # the forks above look as well
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_nothing_holds_the_group_as_it_goes(tmp_path: Path, case: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.helpers.ending", str(tmp_path), *case]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.stdout.count("alive: []") == 2, done.stdout + done.stderr
    assert (done.returncode == 0) == ("error" not in case), done.stderr
