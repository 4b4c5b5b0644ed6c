"""Edits of an index and of a run's folder, one at a time: each is answered in one line before the first step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trials.commands import prepare, run

WRONG: dict[str, list[Any]] = {
    "version": [9, None, "2"],
    "done": [-1, 2, 99, "six"],
    "complete": [False, None, 1],
    "shards": [[], None, [["../run/config.yaml", 5, "x"]], [["/etc/passwd", 5, "x"]], [["00000.safetensors", -5, "x"]]],
    "digest": [None, 5],
    "videos": [-1, 3, "x"],
    "kind": [5],
    "size": [32, 0, "16", 16.5],
    "every": [0, 2, -3, "1"],
    "flip": [True, "no"],
    "dtype": ["float32", "int8", None],
    "vae": [None, 7],
    "channels": [4, 0, "3"],
    "factor": [8, 0, 3],
    "random": [True, None],
    "classes": [["a"], "ab", ["a", "a"], [3]],
    "broken": [None, [5]],
    "clips": [[], None, [["x", None, 12, 0]], [["../../etc/x", None, 12, 0]]],
}
LIES: dict[str, Callable[[list], None]] = {
    "frames of a clip": lambda rows: rows[0].__setitem__(2, 13),
    "no frames": lambda rows: rows[0].__setitem__(2, 0),
    "shard of a clip": lambda rows: rows[0].__setitem__(3, 1),
    "class of a clip": lambda rows: rows[0].__setitem__(1, 0),
    "name of a clip": lambda rows: rows[0].__setitem__(0, "other.mp4"),
    "a name twice": lambda rows: rows[0].__setitem__(0, rows[1][0]),
    "a clip left out": lambda rows: rows.pop(),
    "a row too short": lambda rows: rows[0].pop(),
}
TRAIN = ("train", "--config", "x.yaml", "--size", "16", "--steps", "1", "--data.kind", "latents", "--data.path",
         "edited", "--data.interval", "1", "--out", "new")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("edits") / "home")


def refused(folder: Path, what: str, place: str, *args: str) -> None:
    ended = run(folder, *args)
    assert ended.code == 1 and not ended.crashed, f"{what}: {ended.said}"
    lines = [line for line in ended.said.splitlines() if line.strip() and "older checkpoint" not in line]
    assert len(lines) == 1 and place in lines[0], f"{what}: {ended.said}"
    assert not (folder / "new").exists(), what


def edits_of_an_index() -> list[tuple[str, Callable[[dict[str, Any]], Any]]]:
    found: list[tuple[str, Callable[[dict[str, Any]], Any]]] = []
    for name, values in WRONG.items():
        found.append((f"no {name}", lambda index, name=name: index.pop(name)))  # type: ignore[misc]
        found += [(f"{name} = {v!r:.30}", lambda index, name=name, v=v: index.update({name: v})) for v in values]  # type: ignore[misc]
    found += [(what, lambda index, lie=lie: lie(index["clips"])) for what, lie in LIES.items()]  # type: ignore[misc]
    return found


def edit_index(folder: Path, every: int) -> int:
    count = 0
    for number, (what, edit) in enumerate(edits_of_an_index()):
        if number % every:
            continue
        shutil.copytree(folder / "latents", folder / "edited")
        file = folder / "edited" / "index.json"
        index = json.loads(file.read_text())
        edit(index)
        file.write_text(json.dumps(index))
        try:
            refused(folder, what, "edited", *TRAIN)
        finally:
            shutil.rmtree(folder / "edited")
        count += 1
    print(f"{count} edits of an index, each refused in one line")
    return count


def test_index_some(folder: Path) -> None:
    edit_index(folder, 12)


@pytest.mark.slow
def test_index(folder: Path) -> None:
    assert edit_index(folder, 1) >= 40


FILE_EDITS: dict[str, Callable[[Path], Any]] = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b" "),
    "flipped": lambda file: flip(file),
    "other": lambda file: file.write_bytes(b"{}"),
}
CONFIG_EDITS = (
    ("hidden_size: 16", "hidden_size: 32"),
    ("depth: 2", "depth: 4"),
    ("lr: 0.0001", "lr: 0.1"),
    ("seed: 0", "seed: 1"),
    ("schedule: linear", "schedule: squaredcos_cap_v2"),
    ("prediction: epsilon", "prediction: v"),
    ("size: 8", "size: 16"),
    ("steps: 1000", "steps: 500"),
    ("precision: fp32", "precision: bf16"),
    ("batch: 2", "batch: two"),
    ("frames: 2", "frames: 0"),
    ("clips: 11", "clips: 12"),
    ("variant: 1", "variant: 9"),
    ("ema: 0.9999", "ema: 2.0"),
    ("model:", "modle:"),
    ("optim:", "optim: 5 #"),
)


def edits_of_a_run(run: Path) -> list[tuple[str, Callable[[Path], Any]]]:
    """Edits of every file of a run's only checkpoint, and of its configuration."""
    found: list[tuple[str, Callable[[Path], Any]]] = []
    for file in sorted(p.relative_to(run) for p in (run / "checkpoints").rglob("*") if p.is_file()):
        for what, edit in FILE_EDITS.items():
            found.append((f"{file} {what}", lambda run, file=file, edit=edit: edit(run / file)))  # type: ignore[misc]
    for a, b in CONFIG_EDITS:
        found.append((f"{a} -> {b}", lambda run, a=a, b=b: rewrite(run / "config.yaml", a, b)))  # type: ignore[misc]
    found.append(("config.yaml empty", lambda run: (run / "config.yaml").write_text("- 1")))
    found.append(("config.yaml bytes", lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00")))
    return found


def flip(file: Path) -> None:
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)


def rewrite(file: Path, a: str, b: str) -> None:
    text = file.read_text()
    assert a in text, f"{file} has no {a}"
    file.write_text(text.replace(a, b, 1))


def edit_run(folder: Path, every: int) -> int:
    """Each for a resumed run and for samples of it."""
    only = folder / "only"
    if not only.exists():
        shutil.copytree(folder / "run", only)
        for old in sorted((only / "checkpoints").iterdir())[:-1]:
            shutil.rmtree(old)
    count = 0
    for number, (what, edit) in enumerate(edits_of_a_run(only)):
        if number % every:
            continue
        for args in (
            ("train", "--out", "edited", "--resume", "--steps", "9"),
            ("sample", "edited", "--out", "new", "--samples", "1", "--steps", "2", "--weights", "model"),
        ):
            shutil.copytree(only, folder / "edited")
            log = (folder / "edited" / "log.jsonl").read_bytes()
            edit(folder / "edited")
            try:
                refused(folder, f"{args[0]}, {what}", "edited", *args)
                assert (folder / "edited" / "log.jsonl").read_bytes() == log, "the log is changed"
            finally:
                shutil.rmtree(folder / "edited")
        count += 1
    print(f"{count} edits of a run's folder, each refused in one line by train --resume and by sample")
    return count


def test_run_some(folder: Path) -> None:
    edit_run(folder, 14)


@pytest.mark.slow
def test_run(folder: Path) -> None:
    assert edit_run(folder, 1) >= 40
