"""Results files, the comparison of two, tables, pictures, and that README and docs say what the files say."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report as results
from benchmarks.report import Results, Row, changes, load, merged, plots, save
from benchmarks.report.compare import table
from benchmarks.report.markdown import MARK, contenders_table, ratios_table, refresh, report
from benchmarks.report.plots import exponent, save_all

ROOT = Path(__file__).parents[2]


def row(contender: str, seconds: float, spread: float = 0.02, title: str = "a", **kwargs: object) -> Row:
    low, high = seconds * (1 - spread), seconds * (1 + spread)
    return Row("model", title, contender, seconds, low, high, 5, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def run() -> Results:
    rows = (
        row("ours", 1.0, bytes=10**9, flops=10**12),
        row("oracle", 2.0, bytes=10**9, flops=10**12),
        Row("model", "a", "diffusers", reason="diffusers is not installed"),
        Row("memory", "m", "ours", kept_bytes=10**6),
        Row("memory", "m", "oracle", kept_bytes=3 * 10**6),
        *(row("ours", 0.5 * n, title=f"{n} frames", curve="S", axis="frames", at=float(n)) for n in (1, 2, 4)),
    )
    return Results("a CPU", "2026-01-01", "abc", {"torch": "2.13"}, {"copy": 1e10, "gemm": 2e12}, rows)


def test_round_trip(run: Results, tmp_path: Path) -> None:
    save(run, tmp_path / "x" / "r.json")
    again = load(tmp_path / "x" / "r.json")
    assert [r for r in again.rows if r.timed] == [r for r in run.rows if r.timed]
    assert len(again.rows) == len(run.rows) and again.ceilings == run.ceilings
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["r.json"]


@pytest.mark.parametrize("content", ["", "{}", '{"format": 0}', '{"format": 1, "rows": [{"colour": 1}]}', "[1]"])
def test_what_is_no_results_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=r"r\.json: not a results file"):
        load(tmp_path / "r.json")
    with pytest.raises(ValueError, match="no such file"):
        load(tmp_path / "none.json")


def slowed(run: Results, ours: float, others: float = 1.0) -> Results:
    def times(r: Row) -> Row:
        by = ours if r.contender == "ours" else others
        return replace(r, median=r.median * by, low=r.low * by, high=r.high * by)

    return replace(run, rows=tuple(times(r) for r in run.rows))


def test_comparison_knows_noise_and_drift(run: Results) -> None:
    assert not any(c.regressed for c in changes(run, run))
    assert not any(c.regressed for c in changes(run, slowed(run, 1.03)))
    found = {c.title: c for c in changes(run, slowed(run, 1.5))}
    assert found["model / a"].regressed and found["model / a"].ratio == pytest.approx(1.5)
    assert "REGRESSED" in table(list(found.values()))
    # the whole machine is slower: no regression where another contender shows it
    assert not {c.title: c for c in changes(run, slowed(run, 1.5, 1.5))}["model / a"].regressed
    noisy = replace(run, rows=tuple(replace(r, high=r.median * 1.6) for r in run.rows))
    assert not any(c.regressed for c in changes(noisy, slowed(noisy, 1.5)))
    gone = replace(run, rows=tuple(r for r in run.rows if r.title != "a"))
    assert [c.gone for c in changes(run, gone) if c.regressed] == ["not measured"]
    with pytest.raises(ValueError, match="must come from one device"):
        changes(run, replace(run, device="another"))


@pytest.mark.parametrize(
    ("spread", "by", "regressed"), [(0.0, 1.045, False), (0.0, 1.055, True), (0.1, 1.19, False), (0.1, 1.21, True)]
)
def test_least_change_that_is_one(run: Results, spread: float, by: float, regressed: bool) -> None:
    """5 %, or the noise of both runs where that is more."""
    alone = replace(run, rows=(row("ours", 1.0, spread),))
    assert [c.regressed for c in changes(alone, slowed(alone, by))] == [regressed]


@pytest.mark.parametrize(("by", "regressed"), [(1.19, False), (1.21, True)])
def test_noise_of_the_quietest_witness_counts(run: Results, by: float, regressed: bool) -> None:
    """What the machine's drift is read off strays in both runs; a louder contender would excuse more."""
    rows = (row("ours", 1.0, 0.0), row("loud", 1.0, 0.3), row("oracle", 2.0, 0.1))
    before = replace(run, rows=rows)
    assert [c.regressed for c in changes(before, slowed(before, by))] == [regressed]


def test_comparison_says_why_a_row_is_gone(run: Results) -> None:
    before = replace(run, rows=(row("ours", 1.0),))
    for reason, said in (("out of memory", "out of memory"), ("", "not timed")):
        (found,) = changes(before, replace(run, rows=(Row("model", "a", "ours", reason=reason),)))
        assert found.regressed and found.gone == said and said in table([found])


def test_comparison_sees_every_policy_of_ours(run: Results) -> None:
    """A policy of ours is judged as ours is; a quiet one that slows with ours is no witness of the machine's drift."""
    remade = row("ours, recompute = block", 1.2, spread=0.0)
    run = replace(run, rows=(*run.rows, remade))
    slower = replace(slowed(run, 1.5), rows=(*slowed(run, 1.5).rows[:-1], replace(remade, median=1.8, high=1.8)))
    found = {c.title: c for c in changes(run, slower)}
    assert found["model / a"].regressed and found["model / a"].ratio == pytest.approx(1.5)
    assert found["model / a / ours, recompute = block"].regressed


def test_comparison_counts_kept_bytes(run: Results) -> None:
    def kept(count: int) -> Results:
        return replace(run, rows=tuple(replace(r, kept_bytes=count) if r.title == "m" else r for r in run.rows))

    (found,) = (c for c in changes(run, kept(10**6 + 1)) if c.title == "memory / m")
    assert found.regressed and "MB" in table([found]) and "REGRESSED" in table([found])
    assert not any(c.regressed for c in changes(run, kept(10**6 - 1)))
    assert [c.gone for c in changes(run, kept(0)) if c.regressed] == ["not counted"]


def test_bench_compares_and_refuses(run: Results, tmp_path: Path) -> None:
    save(run, tmp_path / "a.json")
    save(slowed(run, 1.5), tmp_path / "b.json")

    def bench(*args: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", "from latte_fast.cli import main; main()", "bench", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True)

    same = bench("--compare", tmp_path / "a.json", tmp_path / "a.json")
    assert same.returncode == 0, same.stderr
    worse = bench("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert worse.returncode == 1 and "REGRESSED" in worse.stdout
    wrong = bench("--suites", "opps")
    assert wrong.returncode == 1 and "suites must be of" in wrong.stderr
    out = bench("--merge", tmp_path / "a.json", "--out", tmp_path / "out")
    assert out.returncode == 0, out.stderr
    assert {"results.json", "report.md"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_parts_merge(run: Results) -> None:
    part = replace(
        run, date="2026-01-02", ceilings={"copy": 2e10}, rows=(row("ours", 3.0), row("ours", 1.0, title="new"))
    )
    whole = merged([run, part])
    assert whole.date == "2026-01-02" and whole.ceilings == {"copy": 2e10, "gemm": 2e12}
    assert {(r.title, r.contender): r.median for r in whole.rows}["a", "ours"] == 3.0
    assert len(whole.rows) == len(run.rows) + 1
    with pytest.raises(ValueError, match="one machine and commit"):
        merged([run, replace(part, commit="other")])


def test_report_has_every_row(run: Results) -> None:
    text = report(run)
    found = ("did not run: diffusers is not installed", "| 2.00x |", "3.00x", "1 TFLOP/s (50%)", "## memory", "abc")
    for words in found:
        assert words in text, words


def test_report_tables(run: Results) -> None:
    """What README quotes; bytes are no multiple of ours where ours were not counted."""
    uncounted = (Row("memory", "n", "ours"), Row("memory", "n", "oracle", kept_bytes=10**6))
    slow_copy = row("copies", 0.05, title="4 frames", bytes=4 * 10**8, flops=10**9, peak_bytes=2 * 10**6, note="hot")
    full = replace(run, rows=(*run.rows, *uncounted, slow_copy))
    assert contenders_table(full, "memory").splitlines()[2:] == [
        "| m | ours |  |  |  |  |  | 1 MB |  |",
        "|  | oracle |  |  | 3.00x |  |  | 3 MB |  |",
        "| n | ours |  |  |  |  |  |  |  |",
        "|  | oracle |  |  |  |  |  | 1 MB |  |",
    ]
    lines = contenders_table(full, "model").splitlines()
    assert lines[2] == "| a | ours | 1000 ms | 980.00 .. 1020.00 |  | 1 TFLOP/s (50%) |  |  |  |"
    assert lines[3] == "|  | oracle | 2000 ms | 1960.00 .. 2040.00 | 2.00x | 0.5 TFLOP/s (25%) |  |  |  |"
    assert lines[-1] == "|  | copies | 50.00 ms | 49.00 .. 51.00 | 0.03x | 8 GB/s (80%) | 2 MB |  | hot |"
    assert {line.count("|") for line in lines} == {10}
    assert ratios_table(full, "memory").splitlines()[2:] == ["| m | 1 MB | 3.00x |", "| n |  |  |"]


def test_plots(run: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = save_all(run, tmp_path)
    assert [p.name for p in made] == ["bars-model.png", "roofline.png", "scaling.png"]
    assert all(p.read_bytes()[:4] == b"\x89PNG" and p.stat().st_size > 5000 for p in made)
    assert exponent([(1, 2.0), (2, 8.0), (4, 32.0)]) == pytest.approx(2.0)


def test_plots_show_the_numbers(run: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn = {}
    monkeypatch.setattr(plots, "finish", lambda plt, figure, path: drawn.update({path.name: figure.axes}) or path)
    save_all(run, tmp_path)
    (bars,), (roof,), (curves,) = (drawn[f"{name}.png"] for name in ("bars-model", "roofline", "scaling"))
    assert [bar.get_width() for bar in bars.patches] == [2.0]
    # 1e12 FLOP on 1e9 bytes, in one second and in two
    assert [tuple(points.get_offsets()[0]) for points in roof.collections] == [(1000, 1000), (1000, 500)]
    assert [tuple(point) for point in roof.lines[0].get_xydata()[1:2]] == [(200, 2000)]
    assert [tuple(point) for point in curves.lines[0].get_xydata()] == [(1, 0.5), (2, 1), (4, 2)]
    assert curves.lines[0].get_label() == "ours, exponent 1.00"


def test_marked_places_are_made_from_files(run: Results, tmp_path: Path) -> None:
    save(run, tmp_path / "r.json")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures: model from r.json -->\nold\n<!-- end of figures -->\nafter\n")
    text = refresh(page, tmp_path)
    assert "old" not in text and "| a | 1000 ms | 2.00x |" in text and text.startswith("before\n<!--")
    page.write_text(text)
    assert refresh(page, tmp_path) == text
    page.write_text(text.replace("figures: model", "figures: nothing"))
    with pytest.raises(ValueError, match="figures: name must be about or a suite"):
        refresh(page, tmp_path)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_pages_say_what_the_files_say(page: str) -> None:
    """`python -m benchmarks.report.markdown` makes the marked places anew."""
    assert refresh(ROOT / page, ROOT) == (ROOT / page).read_text()


def test_kept_results_are_readable() -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("*/*/results.json")):
        found = results.load(path)
        assert found.rows and found.ceilings, path
        assert path.parent.name == f"{found.date}-{found.commit}"
        assert "NaN" not in json.dumps(found.versions)
    assert MARK.pattern
