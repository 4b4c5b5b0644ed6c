"""When the process group goes, nothing that holds it is alive, and the run ends with 0."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


CASES = [("ddp",), ("fsdp",), pytest.param(("ddp", "error"), marks=pytest.mark.slow)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_nothing_holds_the_group_as_it_goes(tmp_path: Path, case: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.helpers.ending", str(tmp_path), *case]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert done.stdout.count("alive: []") == 2, done.stdout + done.stderr
    assert (done.returncode == 0) == ("error" not in case), done.stderr
