"""Finds clips in upstream's folder layouts; the error for another folder shows the expected layout."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from latte_fast.media.formats import PICTURES, VIDEOS

TREES = {
    "videos": """
  path/clip.mp4                 without classes, or
  path/<class>/clip.mp4         one folder a class, clips at any depth in it""",
    "ffs": """
  path/**/clip.mp4              videos at any depth, no classes""",
    "ucf101": """
  path/<class>/clip.avi         one folder a class: path/ApplyLipstick/v_ApplyLipstick_g01_c01.avi""",
    "sky": """
  path/**/<clip>/name_0001.jpg  a folder of numbered pictures a clip, at any depth: path/X/X_1/X_frames_00000001.jpg""",
    "taichi": """
  path/**/<clip>/0000001.png    a folder of numbered pictures a clip, at any depth""",
    "frames": """
  path/<clip>/0001.jpg          without classes, or
  path/<class>/<clip>/0001.jpg  one folder a class""",
}


class LayoutError(ValueError):
    """Raised for a folder without its kind's layout; the message shows the layout and lists what was found."""


@dataclass(frozen=True)
class Place:
    """One clip on disk: a video file, or a folder and its pictures in order; `label` is its class's number."""

    path: Path
    label: int | None = None
    pictures: tuple[str, ...] = ()


# a path that can't be read, and why
Left = list[tuple[Path, str]]


def find(kind: str, path: str | os.PathLike, left: Left | None = None) -> tuple[list[Place], list[str]]:
    """Returns every clip of a data set in a fixed order, and the names of its classes, if it has any.

    Entries that can't be clips, as they are no regular files or their names no UTF-8, are added to `left`, or raise
    where there is none; a folder of pictures with such an entry is left out as a whole.
    """
    root = Path(path)
    if not root.is_dir():
        raise LayoutError(f"{kind}: path must be a folder{TREES[kind]}\ngot {root}, which is no folder")
    search = {"sky": _folders, "taichi": _folders, "frames": _frames, "ffs": _anywhere}.get(kind, _classes)
    unfit: Left = []
    places, classes = search(root, unfit)
    if left is None and unfit:
        raise LayoutError(f"{kind}: {shown(unfit[0][0])} {unfit[0][1]}")
    if left is not None:
        left += unfit
    if not places and unfit:
        got = f"{shown(unfit[0][0])}, which {unfit[0][1]}"
        raise LayoutError(f"{kind}: path must hold a clip that can be read, got {got}")
    if kind == "ucf101" and not classes:
        places = []
    if not places:
        raise wrong_folder(kind, root)
    return places, classes


def listed(places: list[Place], root: Path, split: Path) -> list[Place]:
    """Returns the clips that a text file lists, in the order of the folder; classes keep their numbers."""
    if not split.is_file():
        raise LayoutError(f"data: split must be a text file that lists clips, got {split}, no file")
    names = {words[0] for line in split.read_text().splitlines() if (words := line.split())}
    known: dict[str, Place] = {}
    for place in places:
        path = place.path.relative_to(root)
        known |= {path.as_posix(): place, path.with_suffix("").as_posix(): place}
    missing = sorted(names - known.keys())
    if missing or not names:
        got = f"{missing[0]} ({len(missing)} missing)" if missing else "none"
        raise LayoutError(f"data: clips of split {split} must lie below {root}, got {got}")
    wanted = {known[name].path for name in names}
    return [place for place in places if place.path in wanted]


def wrong_folder(kind: str, root: Path) -> LayoutError:
    return LayoutError(f"{kind}: path must hold{TREES[kind]}\nfound in {root}: {summary(root)}")


def summary(root: Path, limit: int = 20_000) -> str:
    """Describes a folder in a line: its first entries, and counts of the files below it by suffix."""
    entries = sorted(shown(entry.name) + "/" * entry.is_dir() for entry in os.scandir(root))
    if not entries:
        return "nothing"
    kinds: Counter[str] = Counter()
    for _, _, names in os.walk(root):
        kinds.update(Path(name).suffix.lower() or "no suffix" for name in names)
        if kinds.total() > limit:
            break
    files = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common(5)) or "no files"
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    return f"{', '.join(entries[:5])}{more}; below it {files}"


def natural(name: str) -> tuple:
    """Returns a sort key by which frame_10 comes after frame_9, with or without leading zeros."""
    parts = re.split(r"(\d+)", name)
    # the name is an element of its own: in the tuple of parts it could be compared with a number
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def shown(path: str | Path) -> str:
    """Returns a path as it can be printed: by its repr where it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return ascii(str(path))
    return str(path)


def files(root: Path, suffixes: tuple[str, ...], left: Left | None = None) -> list[Path]:
    """Returns files with these suffixes at any depth, sorted; names that start with a dot are skipped.

    What is no regular file (opening a pipe would wait for ever), or has a name that is not UTF-8, is added to `left`,
    or raises where there is none.
    """
    found: list[Path] = []
    unfit: Left = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not _leads_back(Path(folder, n)))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.lower().endswith(suffixes) or name.startswith("."):
                continue
            # a link to nothing is named where it is opened
            if path.exists() and not path.is_file():
                unfit.append((path, "is no regular file"))
            elif shown(path) != str(path):
                unfit.append((path, "must have a name in UTF-8"))
            else:
                found.append(path)
    if left is None and unfit:
        raise LayoutError(f"{shown(unfit[0][0])} {unfit[0][1]}")
    if left is not None:
        left += unfit
    return found


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one of its own parents, whose clips would be found again and again."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    return any(parent.resolve().is_relative_to(target) for parent in folder.parents)


def _anywhere(root: Path, left: Left) -> tuple[list[Place], list[str]]:
    return [Place(path) for path in files(root, VIDEOS, left)], []


def _classes(root: Path, left: Left) -> tuple[list[Place], list[str]]:
    """Finds videos in the folder itself, without classes, or else in its subfolders, which are the classes."""
    found = files(root, VIDEOS, left)
    top = [path for path in found if path.parent == root]
    if top and len(top) < len(found):
        raise LayoutError(
            f"videos: path must hold videos or class folders, not both{TREES['videos']}\n"
            f"found in {root}: {summary(root)}"
        )
    if top:
        return [Place(path) for path in top], []
    names = sorted({path.relative_to(root).parts[0] for path in found})
    number = {name: i for i, name in enumerate(names)}
    return [Place(path, number[path.relative_to(root).parts[0]]) for path in found], names


def _folders(root: Path, left: Left) -> tuple[list[Place], list[str]]:
    """Finds folders that hold pictures, at any depth; each is a clip."""
    places: dict[Path, list[str]] = {}
    unfit: Left = []
    for path in files(root, PICTURES, unfit):
        places.setdefault(path.parent, []).append(path.name)
    for path, why in unfit:
        # a clip with a gap is another clip
        if places.pop(path.parent, None) is not None or path.parent not in [p for p, _ in left]:
            left.append((path.parent, f"has {shown(path.name)}, which {why}"))
    return [Place(f, None, tuple(sorted(names, key=natural))) for f, names in sorted(places.items())], []


def _frames(root: Path, left: Left) -> tuple[list[Place], list[str]]:
    places = [place for place in _folders(root, left)[0] if place.path != root]
    depths = {len(place.path.relative_to(root).parts) for place in places}
    if depths == {1}:
        return places, []
    if depths != {2}:
        return [], []
    names = sorted({place.path.parent.name for place in places})
    return [Place(p.path, names.index(p.path.parent.name), p.pictures) for p in places], names
