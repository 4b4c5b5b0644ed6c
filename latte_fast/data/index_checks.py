"""Checks of an index that was edited or damaged: every field, and that the fields agree with each other."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

Fields = dict[str, tuple[str, Callable[[Any], bool]]]
DTYPES = ("float16", "float32")


def is_count(x: Any, least: int = 0) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def is_size(x: Any) -> bool:
    return is_count(x, 1)


def is_positive(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < float("inf")


def is_flag(x: Any) -> bool:
    return isinstance(x, bool)


def is_text(x: Any) -> bool:
    """Whether a value is text that can be written as UTF-8: half of a surrogate pair can't."""
    if not isinstance(x, str):
        return False
    try:
        x.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_name(x: Any) -> bool:
    """Whether a value is a path below a folder."""
    return is_text(x) and x != "" and not PurePosixPath(x).is_absolute() and ".." not in PurePosixPath(x).parts


def are(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Returns the test of a list whose items all pass."""
    return lambda x: isinstance(x, list) and all(test(item) for item in x)


def are_distinct_texts(x: Any) -> bool:
    return are(is_text)(x) and len({*x}) == len(x)


def is_row(x: Any) -> bool:
    """[name of the clip, class or none, frames, shard]."""
    return (
        isinstance(x, list)
        and len(x) == 4
        and is_name(x[0])
        and (x[1] is None or is_count(x[1]))
        and is_size(x[2])
        and is_count(x[3])
    )


LATENT_FIELDS: Fields = {
    "videos": ("a number of videos", is_count),
    "kind": ("text", is_text),
    "size": ("a positive number of pixels", is_size),
    "every": ("a positive number of frames", is_size),
    "flip": ("true or false", is_flag),
    "dtype": (" or ".join(DTYPES), lambda x: x in DTYPES),
    "vae": ("text", is_text),
    "channels": ("a positive number", is_size),
    "factor": ("a positive number of pixels", is_size),
    "random": ("true or false", is_flag),
    "classes": ("a list of distinct names", are_distinct_texts),
    "broken": ("a list of names", are(is_text)),
    "clips": ("a list of [path below the data set, class, frames, shard]", are(is_row)),
}
TEXT_FIELDS: Fields = {
    "encoder": ("text", is_text),
    "channels": ("a positive number", is_size),
    "tokens": ("a positive number", is_size),
    "dtype": (" or ".join(DTYPES), lambda x: x in DTYPES),
    "cut": ("a number of captions", is_count),
    "firsts": ("a list of captions' numbers", are(is_count)),
    "captions": ("a list of distinct texts", are_distinct_texts),
    "clips": (
        "an object of captions' numbers by clip",
        lambda x: isinstance(x, dict) and all(is_text(name) and is_count(n) for name, n in x.items()),
    ),
}


def require_setting(name: str, value: Any, ok: bool, rule: str) -> None:
    """Raises ValueError where a setting does not fit stored tokens."""
    if not ok:
        raise ValueError(f"tokens: {name} must be {rule}, got {value}")


def check_fields(index: dict[str, Any], fields: Fields, where: str) -> None:
    """Raises ValueError naming the first field that is missing or not what it must be."""
    for name, (rule, test) in fields.items():
        if name not in index:
            raise ValueError(f"{where} must hold {name}, got an index without")
        if not test(index[name]):
            raise ValueError(f"{where}: {name} must be {rule}, got {index[name]!r:.80}")


def check_latents(index: dict[str, Any], where: str) -> None:
    """Raises ValueError where the fields of latents contradict each other."""

    def require(ok: bool, rule: str, got: Any) -> None:
        if not ok:
            raise ValueError(f"{where}: {rule}, got {got!r:.80}")

    require(index["size"] % index["factor"] == 0, "size must be a multiple of factor", (index["size"], index["factor"]))
    require(index["done"] <= index["videos"], f"done must be at most videos = {index['videos']}", index["done"])
    whole = index["done"] == index["videos"]
    require(whole or not index["complete"], "complete must be false until all videos are done", index["done"])
    shards, classes, names = len(index["shards"]), len(index["classes"]), set()
    before = 0
    for row in index["clips"]:
        name, label, _, shard = row
        require(name not in names, "clips must have distinct names", name)
        names.add(name)
        require(before <= shard < shards, f"clips must be in order in the {shards} shards", row)
        before = shard
        right = label is None if not classes else label is not None and label < classes
        require(right, f"clips must have one of the {classes} classes" if classes else "clips must have no class", row)
    require(shards == len({row[3] for row in index["clips"]}), "every shard must hold a clip", index["shards"])


def check_text(index: dict[str, Any], where: str) -> None:
    """Raises ValueError where the fields of embedded captions contradict each other."""

    def require(ok: bool, rule: str, got: Any) -> None:
        if not ok:
            raise ValueError(f"{where}: {rule}, got {got!r:.80}")

    total, firsts = len(index["captions"]), index["firsts"]
    require(index["done"] <= total, f"done must be at most the {total} captions", index["done"])
    whole = index["done"] == total
    require(whole or not index["complete"], "complete must be false until all captions are done", index["done"])
    rising = all(a < b for a, b in zip(firsts, [*firsts[1:], index["done"]], strict=True))
    right = rising and len(firsts) == len(index["shards"]) and firsts[:1] in ([], [0])
    require(right, f"firsts must rise from 0, one for each of the {len(index['shards'])} shards", firsts)
    worst = max(index["clips"].values(), default=-1)
    require(worst < total and index["clips"], f"clips must have one of the {total} captions", worst)
