"""Which commit is measured, with git or without: by the environment, a file, git, or the sources themselves."""

import functools
import hashlib
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "csrc", "kernels", "latte_fast")


@functools.cache
def commit(root: Path = ROOT) -> str:
    """COMMIT of the environment, else what the file COMMIT holds, else git's, else a digest of the sources."""
    if name := os.environ.get("COMMIT", "").strip():
        return name
    if (file := root / "COMMIT").is_file():
        return file.read_text().strip()
    return of_git(root) or f"tree-{digest(root)}"


def of_git(root: Path) -> str:
    """The short name of HEAD, with `-changed` where sources differ; empty without git or a repository.

    Tiles and results come of measuring: a run that writes them is still one of its commit.
    """

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True, cwd=root).stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD") if (root / ".git").exists() else ""
    except FileNotFoundError:
        return ""
    sources = ("status", "--porcelain", "--untracked-files=no", "--", ":!kernels/configs", ":!benchmarks/results")
    return name + ("-changed" if name and git(*sources) else "")


def digest(root: Path) -> str:
    """Eight hex digits of what is measured and what measures it; tuned tiles and results are not part of it."""
    found = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".sh", ".h", ".cpp", ".cu", ".cuh") and path.is_file():
                found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:8]
