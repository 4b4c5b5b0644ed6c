"""Reads and writes frozen dataclasses as YAML; errors name an unknown key or a value of the wrong kind."""

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from latte_fast.files import atomic

T = TypeVar("T")
_KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


class _Loader(yaml.SafeLoader):
    """Loads YAML and refuses a key given twice, of which PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            # keys merged by << are meant to be overridden
            if str(key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"{key.value} twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_config(path: str | Path, cls: type[T]) -> T:
    """Reads a dataclass from a YAML file; missing fields keep their defaults."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config: file must exist, got {path}")
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} must be YAML, got {' '.join(str(error).split())}") from None
    return from_mapping(cls, {} if content is None else content, str(path))


def write_config(path: str | Path, config: Any) -> None:
    # atomic, as nothing in a resumed run's folder can be read without its config
    with atomic(path) as partial:
        partial.write_text(yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False))


def from_mapping(cls: type[T], content: Any, where: str, prefix: str = "") -> T:
    """Builds a dataclass from nested mappings; `where` names the file in errors."""
    if not isinstance(content, dict):
        raise ValueError(f"config: {prefix or where} must be a mapping of names to values, got {content!r}")
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = [str(key) for key in content if key not in names]
    if unknown:
        raise ValueError(f"config: {where} must name one of {', '.join(names)}, got {prefix}{unknown[0]}")
    values = {key: _value(hints[key], value, where, prefix + key) for key, value in content.items()}
    try:
        return cls(**values)
    except ValueError as error:  # of a value out of range
        raise ValueError(f"config: {where}: {str(error).removeprefix('train: ')}") from None


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return from_mapping(hint, value, where, name + ".")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where, name)
    if origin is Literal:
        _require(value in args, where, name, f"one of {', '.join(map(str, args))}", value)
        return value
    if origin in (tuple, list):
        _require(isinstance(value, (list, tuple)), where, name, "a list", value)
        kinds = [args[0]] * len(value) if origin is list or args[-1] is Ellipsis else list(args)
        _require(len(kinds) == len(value), where, name, f"a list of {len(kinds)}", value)
        return origin(_value(kind, item, where, name) for kind, item in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, str):
        # YAML reads 1e-4, without a dot, as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        _require(right, where, name, _KINDS[hint], value)
    if hint is Path:
        return Path(value)
    return value


def _require(ok: bool, where: str, name: str, rule: str, value: Any) -> None:
    if not ok:
        raise ValueError(f"config: {where}: {name} must be {rule}, got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
