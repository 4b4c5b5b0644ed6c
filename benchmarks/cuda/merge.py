"""Puts what an archive brought home into the sources: a results folder with its figures, and the GPU's tiles."""

import subprocess
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.commit import ROOT, commit
from benchmarks.cuda.archive import Refused, read
from benchmarks.report import markdown
from benchmarks.report.run import folder_of, write_report


def merge(archive: Path, root: Path = ROOT) -> int:
    """Everything is read and checked before anything is written."""
    state, files = read(archive)
    here = commit(root)
    if state.commit != here and not _same_sources(state.commit, root):
        raise Refused(f"{archive}: of commit {state.commit}, and these sources are {here}: check it out to merge")
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for name, content in files.items():
            if name.endswith(".json") and "/" not in name:
                path = Path(folder, name)
                path.write_bytes(content)
                parts.append(report.load(path))
    tiles = {name: content for name, content in files.items() if name.startswith("configs/")}
    if not parts and not tiles:
        raise Refused(f"{archive}: nothing was measured")
    if parts:
        run = report.merged(parts)
        target = root / folder_of(run).relative_to(ROOT)
        if target.exists():
            raise Refused(f"{target}: is there already; move it away to merge anew")
        write_report(run, target)
        for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
            page.write_text(markdown.refresh(page, root))
    for name, content in tiles.items():
        place = root / "kernels" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        print(place)
    for stage, entry in state.stages.items():
        print(f"{stage}: {entry['status']}, {entry['seconds']:.0f} s in {entry['calls']} calls")
    return 0


def _same_sources(name: str, root: Path) -> bool:
    """Whether git knows the commit, and kernels and models have not changed since."""
    try:
        command = ["git", "diff", "--quiet", name, "--", "kernels", "latte_fast", "csrc", ":!kernels/configs"]
        return subprocess.run(command, cwd=root, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
