"""The checks of tests/helpers/suite: what diffusers' own class passes, ours and a patched one pass, and more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.helpers import suite_table
from tests.helpers.suite import CHECKS, Missing
from tests.helpers.suite.kinds import Kind

# beside the caches: the quickest that reach most of the code; the others with `make test-all`
QUICK = ("folders", "kinds_of_files", "layerwise_casting", "checkpointing", "processors", "sampling", "group_offload")
QUICK += ("processors_of_all", "attention_backend", "lora", "adapters")
OURS_ALONE = ("processors_of_all", "adapters")  # bases that diffusers' Latte does not have


def cells() -> list:
    found = []
    for name in CHECKS:
        for kind in ("ours", "patched"):
            if kind == "patched" and name in OURS_ALONE:
                continue
            quick = name in QUICK or CHECKS[name].run.__module__.endswith("caches")
            marks = () if quick else (pytest.mark.slow,)
            found.append(pytest.param(name, kind, id=f"{name}-{kind}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "kind"), cells())
def test_feature(name: str, kind: str) -> None:
    try:
        CHECKS[name].run(Kind(kind))
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.shared])
def test_diffusers_own_class_passes(name: str) -> None:
    """So that a check asks for nothing that diffusers' class does not do."""
    test_feature(name, "theirs")


def test_the_table_is_that_of_the_results() -> None:
    results = json.loads(suite_table.RESULTS.read_text())
    assert set(next(iter(results.values()))) == set(CHECKS)
    assert suite_table.table(results) in suite_table.PAGE.read_text()


@pytest.mark.slow
def test_the_oldest_diffusers(tmp_path: Path) -> None:
    """In a process of its own, with the folder of that release in front of the installed packages."""
    beside = os.environ.get("LATTE_FAST_OLD_DIFFUSERS", str(Path(sys.prefix) / "diffusers-0.32.0"))
    if not Path(beside, "diffusers").is_dir():
        pytest.skip(f"no diffusers 0.32 in {beside}: make diffusers-beside")
    root = Path(__file__).parents[2]
    # PEFT and what else this run has, after that release's own
    path = os.pathsep.join(filter(None, (beside, str(root), os.environ.get("PYTHONPATH", ""))))
    env = os.environ | {"PYTHONPATH": path}
    out = tmp_path / "results.json"
    subprocess.run([sys.executable, "-m", "tests.helpers.suite_table", "--out", out], env=env, cwd=root, check=True)
    (version, results), *_ = json.loads(out.read_text()).items()
    assert version.startswith("0.32")
    for name, found in results.items():
        wanted = (
            {"ours", "patched"} if found["theirs"] == "yes" else {"ours"} - {k for k in found if found[k] == "absent"}
        )
        if name == "offload_of_pipelines" and found["theirs"] == "no":
            continue  # accelerate 1.2.1, of that day, leaves a tensor on meta for diffusers' class as for ours
        assert all(found[kind] == "yes" for kind in wanted), (name, found)
