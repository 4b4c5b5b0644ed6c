"""Two of one command at once into one place: one does it, the other says so in a line, and no file is overwritten."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.trials.commands import COMMANDS, MORE, begin, contents, prepare, prepare_more

KINDS = [name for name in COMMANDS if name != "plot"]


def raced(folder: Path, name: str, pairs: int) -> Counter:
    counts: Counter = Counter()
    for number in range(pairs):
        out = f"{name.replace(' --', '-')}-{pairs}-{number}"
        if "resume" in name:
            shutil.copytree(folder / "run", folder / out)
        both = [begin(folder, *(COMMANDS | MORE)[name](out)) for _ in range(2)]
        ended = [running.wait() for running in both]
        assert not any(e.crashed for e in ended), [e.said for e in ended]
        codes = sorted(e.code for e in ended)
        assert codes in ([0, 1], [0, 0] if "resume" in name or name in MORE else [0, 1]), [e.said for e in ended]
        if codes == [0, 1]:
            refused = next(e for e in ended if e.code).last
            counts["one writer at a time" if "one writer" in refused else "is there already"] += 1
            assert refused.startswith(name.split()[0] + ": "), refused
        elif name in MORE:
            # a film that is there is not made again, a plan is replaced by its equal
            counts["one after the other"] += 1
        else:
            # the first had ended before the second began, which found nothing left to do
            assert any("nothing is left to do" in e.said for e in ended), [e.said for e in ended]
            counts["nothing is left to do"] += 1
        left = [p for p in contents(folder / out) if ".lock" in p or ".partial" in p] if (folder / out).is_dir() else []
        assert not left, left
        assert not list(folder.glob(".*.lock"))
    print(f"{name}: {pairs} pairs, {dict(counts)}")
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("pairs") / "home")


@pytest.mark.parametrize("name", ["train", "sample", "encode"])
def test_one_pair(folder: Path, name: str) -> None:
    raced(folder, name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_twenty_pairs(folder: Path, name: str) -> None:
    raced(folder, name, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_twenty_more_pairs(folder: Path, name: str) -> None:
    if not (folder / "tokens").exists():
        prepare_more(folder)
    raced(folder, name, 20)
