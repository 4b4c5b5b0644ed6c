"""`make cuda-merge`: results with their figures, and tiles, from an archive of the same commit alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import commit as naming
from benchmarks import report
from benchmarks.cuda import archive, merge
from benchmarks.cuda.archive import Refused, State


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sources at commit abc1234 with a page that quotes no run."""
    naming.commit.cache_clear()
    monkeypatch.delenv("COMMIT", raising=False)
    root = tmp_path / "sources"
    (root / "docs").mkdir(parents=True)
    (root / "COMMIT").write_text("abc1234")
    (root / "README.md").write_text("nothing measured\n")
    yield root
    naming.commit.cache_clear()


def brought_home(folder: Path, commit: str = "abc1234", measured: bool = True) -> Path:
    """An archive with two results files of one run, tiles and a log."""
    work = folder / "work"
    (work / "logs").mkdir(parents=True, exist_ok=True)
    (work / "logs" / "ops.log").write_text("log")
    if measured:
        (work / "configs").mkdir(exist_ok=True)
        (work / "configs" / "nvidia_x_1.json").write_text('{"configs": {}}')
        for suite in ("ops", "gemm"):
            rows = tuple(report.Row(suite, "a race", who, 1.0, 0.9, 1.1, 3) for who in ("ours", "torch eager"))
            ceilings = {"copy": 1e12, "gemm": 1e14}
            report.save(report.Results("NVIDIA X-1", "2026-01-02", commit, {}, ceilings, rows), work / f"{suite}.json")
    state = State(commit, "NVIDIA X-1", {"ops": {"status": "done", "seconds": 9.0, "calls": 1}})
    return archive.pack(work, state, folder / "out")


def test_results_and_tiles_go_into_the_sources(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert merge.merge(brought_home(tmp_path), root) == 0
    folder = root / "benchmarks" / "results" / "nvidia-x-1" / "2026-01-02-abc1234"
    assert {row["suite"] for row in json.loads((folder / "results.json").read_text())["rows"]} == {"ops", "gemm"}
    assert (folder / "report.md").is_file() and list(folder.glob("*.png"))
    assert (root / "kernels" / "configs" / "nvidia_x_1.json").read_text() == '{"configs": {}}'
    assert "ops: done, 9 s in 1 calls" in capsys.readouterr().out
    with pytest.raises(Refused, match="is there already"):
        merge.merge(brought_home(tmp_path), root)


def test_figures_are_made_anew(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "benchmarks/results/nvidia-x-1/2026-01-02-abc1234/results.json"
    page = root / "docs" / "performance.md"
    page.write_text(f"<!-- figures: ops from {place} -->\nold\n<!-- end of figures -->\n")
    merge.merge(brought_home(tmp_path), root)
    assert "a race" in page.read_text() and "old" not in page.read_text()


def test_what_is_refused_leaves_the_sources_as_they_were(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    with pytest.raises(Refused, match="of commit def5678, and these sources are abc1234: check it out to merge"):
        merge.merge(brought_home(tmp_path / "a", commit="def5678"), root)
    whole = brought_home(tmp_path / "b")
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(Refused, match="half-written"):
        merge.merge(whole, root)
    with pytest.raises(Refused, match="nothing was measured"):
        merge.merge(brought_home(tmp_path / "c", measured=False), root)
    assert sorted(root.rglob("*")) == before
