"""Writes a run as Markdown, and fills the marked places of README and docs."""

import re
from pathlib import Path

from benchmarks.report.compare import OURS
from benchmarks.report.record import Results, Row, load

MARK = re.compile(
    r"(<!-- figures: (?P<name>[\w-]+) from (?P<path>\S+) -->\n)(?P<body>.*?)(<!-- end of figures -->)", re.S
)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def speed(row: Row, results: Results) -> str:
    """Returns GB/s or TFLOP/s, whichever is nearer to its ceiling, and the share of that ceiling of the same run."""
    found = []
    for amount, unit, scale, ceiling in ((row.bytes, "GB/s", 1e9, "copy"), (row.flops, "TFLOP/s", 1e12, "gemm")):
        if amount and row.timed:
            rate, most = amount / row.median, results.ceilings.get(ceiling)
            found.append((rate / most if most else 0.0, f"{rate / scale:.3g} {unit}", most))
    if not found:
        return ""
    share, text, most = max(found)
    return text + (f" ({share:.0%})" if most else "")


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count else ""


def remark(row: Row) -> str:
    """Returns a row's note, and what a call takes the host to queue, where that is not the call's own time."""
    apart = row.timed and row.host and abs(row.host / row.median - 1) > 0.02
    return "; ".join(filter(None, [row.note, f"host {milliseconds(row.host)}" if apart else ""]))


def against(row: Row, ours: Row | None) -> str:
    """Returns a contender's time as a multiple of ours, or its memory if nothing was timed."""
    if ours is None or row is ours:
        return ""
    if row.timed and ours.timed:
        return f"{row.median / ours.median:.2f}x"
    return f"{row.kept_bytes / ours.kept_bytes:.2f}x" if row.kept_bytes and ours.kept_bytes else ""


def contenders_table(results: Results, suite: str) -> str:
    """Tabulates every race of a suite: each contender's median, spread, and time as a multiple of ours."""
    columns = ("race", "contender", "median", "low .. high", "times ours", "speed", "peak", "kept for backward", "")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for (name, title), race in results.races():
        if name != suite:
            continue
        for i, row in enumerate(race.values()):
            head = title if i == 0 else ""
            if not row.ran:
                lines.append(f"| {head} | {row.contender} | did not run: {row.reason} |" + " |" * (len(columns) - 3))
                continue
            time = (milliseconds(row.median), f"{row.low * 1e3:.2f} .. {row.high * 1e3:.2f}") if row.timed else ("", "")
            sizes = (megabytes(row.peak_bytes), megabytes(row.kept_bytes))
            cells = (head, row.contender, *time, against(row, race.get(OURS)), speed(row, results), *sizes, remark(row))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios_table(results: Results, suite: str) -> str:
    """Tabulates every race of a suite in one line: our time, and the others' as multiples of it."""
    races = [(title, race) for (name, title), race in results.races() if name == suite and OURS in race]
    others = list(dict.fromkeys(n for _, race in races for n in race if n != OURS))
    lines = ["| | ours | " + " | ".join(others) + " |", "|---" * (len(others) + 2) + "|"]
    for title, race in races:
        ours = race[OURS]
        first = milliseconds(ours.median) if ours.timed else ours.reason or megabytes(ours.kept_bytes)
        cells = [against(race[n], ours) if n in race else "" for n in others]
        lines.append(f"| {title} | {first} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def about(results: Results) -> str:
    torch = results.versions.get("torch", "?")
    ceilings = {"copy": ("GB/s copied", 1e9), "gemm": ("TFLOP/s of GEMM", 1e12)}
    found = [f"{results.ceilings[k] / s:.3g} {unit}" for k, (unit, s) in ceilings.items() if k in results.ceilings]
    return f"{results.device}; torch {torch}; {results.date}, commit {results.commit}" + "".join(
        f"; {f}" for f in found
    )


def report(results: Results) -> str:
    """Writes the whole run as one page."""
    how = "Medians of interleaved rounds in one process, after a check of every result."
    parts = [f"# Benchmarks\n\n{about(results)}\n\n{how}"]
    for suite in dict.fromkeys(row.suite for row in results.rows):
        parts.append(f"## {suite}\n\n{contenders_table(results, suite)}")
    return "\n\n".join(parts) + "\n"


def figures(name: str, results: Results) -> str:
    """Returns the text of a marked place: `about`, or a suite's name for its ratios_table."""
    if name == "about":
        return about(results) + "\n"
    suites = {row.suite for row in results.rows}
    if name not in suites:
        raise ValueError(f"figures: name must be about or a suite ({', '.join(sorted(suites))}), got {name}")
    return ratios_table(results, name) + "\n"


def refresh(page: Path, root: Path) -> str:
    """Returns the page's text, every marked place made anew from the results file that it names."""

    def remake(match: re.Match) -> str:
        return match[1] + "\n" + figures(match["name"], load(root / match["path"])) + "\n" + match[5]

    return MARK.sub(remake, page.read_text())


def main() -> None:
    """Makes the marked places of README.md and docs/*.md anew, from the folder it is run in."""
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        text = refresh(page, Path())
        if text != page.read_text():
            page.write_text(text)
            print(page)


if __name__ == "__main__":
    main()
