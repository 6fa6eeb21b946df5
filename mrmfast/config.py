"""YAML plus dotted overrides to dataclasses. Imports nothing of ours but the error type.

A config dataclass lives beside the code that it configures; the root only composes them
(``mrmfast/training/settings.py``). Unknown or mistyped keys fail with the path of the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from mrmfast.errors import UserError

T = TypeVar("T")


def load(schema: type[T], path: str | Path | None, overrides: list[str]) -> T:
    """Read a YAML file, apply ``key.path=value`` overrides, and build `schema`.

    Parameters
    ----------
    schema : type
        The root dataclass; fields may be dataclasses themselves.
    path : path or None
        YAML file; None starts from the defaults.
    overrides : list of str
        ``a.b=value``; the value is parsed as YAML, so lists and null work.

    Raises
    ------
    UserError
        No such file, not YAML, an unknown key, or a value of the wrong type.
    """
    tree = _read(path) if path is not None else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"override {override!r} has no '='; write key.path=value")
        _set(tree, key.strip().split("."), _parse(text, f"override {override!r}"))
    return build(schema, tree, str(path or "overrides"))


def build(schema: type[T], tree: dict[str, Any], where: str) -> T:
    """Check a nested dict against `schema` and build it; `where` names the source in errors."""
    _check_keys(schema, tree, [], where)
    try:
        return TypeAdapter(schema).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{where}: {key}: {first['msg'][0].lower()}{first['msg'][1:]} (got {first['input']!r})"
        ) from error


def dump(config: Any) -> str:
    """Write a config as YAML that :func:`load` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file; see configs/ for the ones that come with mrmfast") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML text file ({type(error).__name__}); give a file as in configs/") from error
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values")
    return tree


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise UserError(f"override {'.'.join(path)}: {part} is a value, not a section")
        tree = below
    tree[path[-1]] = value


def _check_keys(schema: Any, tree: dict[str, Any], path: list[str], where: str) -> None:
    """Reject unknown keys with the nearest valid name (pydantic alone names the key, not the remedy)."""
    hints = get_type_hints(schema)
    valid = [field.name for field in dataclasses.fields(schema)]
    for key, value in tree.items():
        here = ".".join([*path, str(key)])
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
            hint = f"did you mean {'.'.join([*path, near[0]])}?" if near else f"valid keys here: {', '.join(valid)}"
            raise UserError(f"{where}: unknown key {here!r}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {here} is a section with keys, not the value {value!r}")
            _check_keys(hints[key], value, [*path, str(key)], where)
