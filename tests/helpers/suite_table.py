"""Runs the suite's checks on all kinds of models and writes their table into docs/text-to-video.md.

python -m tests.helpers.suite_table --out new.json     # what the installed diffusers gives
python -m tests.helpers.suite_table --merge new.json   # into the stored results, and the page's table
"""

import argparse
import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "fixtures" / "diffusers_suite.json"
PAGE = ROOT / "docs" / "text-to-video.md"
BEGIN, END = "<!-- diffusers suite -->\n", "<!-- end of diffusers suite -->\n"
HEADS = {"theirs": "its class", "ours": "ours", "patched": "patched"}

Results = dict[str, dict[str, dict[str, str]]]


def measure(names: Sequence[str] = ()) -> Results:
    """Runs the checks, or some of them -> {version: {check: {kind: yes, no or absent}}}, and prints the reasons."""
    import diffusers

    from tests.helpers.suite import CHECKS, KINDS, Missing
    from tests.helpers.suite.kinds import Kind

    found: dict[str, dict[str, str]] = {}
    for name in names or CHECKS:
        check, found[name] = CHECKS[name], {}
        for kind in KINDS:
            try:
                check.run(Kind(kind))
                found[name][kind] = "yes"
            except Missing as reason:
                print(f"{name}, {kind}: {reason}")
                found[name][kind] = "absent"
            except BaseException as error:
                print(f"{name}, {kind}: {''.join(traceback.format_exception_only(error)).strip()}")
                found[name][kind] = "no"
    return {diffusers.__version__: found}


def table(results: Results) -> str:
    """Returns the table: a row a feature, a column a kind and release; a dash where the release lacks the feature."""
    from tests.helpers.suite import CHECKS

    columns = [(version, kind) for version in sorted(results) for kind in HEADS]
    heads = [f"{version}: {HEADS[kind]}" for version, kind in columns]
    lines = ["| diffusers | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name, check in CHECKS.items():
        cells = [results[version][name][kind].replace("absent", "-") for version, kind in columns]
        lines.append(f"| {check.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(results: Results) -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + table(results) + "\n" + END + after)


def main(given: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--merge", type=Path, nargs="*", default=[])
    asked = parser.parse_args(given)
    if asked.out:
        asked.out.write_text(json.dumps(measure(asked.only), indent=1) + "\n")
    if asked.merge:
        results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for file in asked.merge:
            for version, found in json.loads(file.read_text()).items():
                results.setdefault(version, {}).update(found)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        write(results)


if __name__ == "__main__":
    main()
