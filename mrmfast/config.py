"""YAML plus dotted overrides to dataclasses. Imports nothing of ours but the error type.

A config dataclass lives beside the code that it configures; the root only composes them
(``mrmfast/training/settings.py``). Ranges stand on the fields, in the types below; rules over several fields stand in
``__post_init__``. Unknown or mistyped keys fail with the path of the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import yaml
from annotated_types import Ge, Le
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from mrmfast.errors import UserError

T = TypeVar("T")

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
NonNegative = Annotated[float, AllowInfNan(False), Ge(0)]
Share = Annotated[float, AllowInfNan(False), Ge(0), Le(1)]

# pydantic's names of range errors -> the wording of the message. NaN is not finite.
_RANGES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
}


@dataclass(frozen=True)
class Tagged:
    """Marks a field whose dataclass depends on the ``name`` in its section: ``Annotated[Any, Tagged(...)]``.

    Attributes
    ----------
    schema_of : callable
        Name -> dataclass; raises UserError for a name that is not there.
    default : str
        The name where the section gives none.
    """

    schema_of: Callable[[str], type]
    default: str


def load(schema: type[T], path: str | Path | None, overrides: list[str]) -> T:
    """Read a YAML file, apply ``key.path=value`` overrides, and build `schema`.

    Parameters
    ----------
    schema : type
        The root dataclass; fields may be dataclasses themselves, or sections that are tagged by their name. A class
        attribute ``RENAMED`` maps old keys to new ones: a config with an old key is refused with the remedy.
    path : path or None
        YAML file; None starts from the defaults.
    overrides : list of str
        ``a.b=value``; the value is parsed as YAML, so lists and null work. ``section=NAME`` and ``section.name=NAME``
        choose another dataclass of a tagged section, and drop the keys that the file has for the former one.

    Raises
    ------
    UserError
        No such file, not YAML, an unknown key, or a value of the wrong type or out of range.
    """
    tree = read(path) if path is not None else {}
    where = str(path or "overrides")
    _refuse_renamed(schema, tree, where)
    tagged = _tagged_fields(schema)
    _expand_names(tree, tagged)
    parsed = [_override(text) for text in overrides]
    # A name decides which keys there are, so names go first.
    chooses = [path[0] in tagged and path[1:] in ([], ["name"]) for path, _ in parsed]
    for chosen in (True, False):
        for (keys, value), is_name in zip(parsed, chooses, strict=True):
            if is_name == chosen:
                _set(tree, keys, value, tagged)
    _refuse_renamed(schema, tree, "overrides")
    return build(schema, tree, where)


def build(schema: type[T], tree: dict[str, Any], where: str, path: tuple[str, ...] = ()) -> T:
    """Check a nested dict against `schema` and build it.

    Parameters
    ----------
    schema : type
    tree : dict
    where : str
        Names the source in errors.
    path : tuple of str
        Keys above `tree`.

    Raises
    ------
    UserError
        An unknown key, or a value of the wrong type or out of range.
    """
    _check_keys(schema, tree, [*path], where)
    built = dict(tree)
    for name, tag in _tagged_fields(schema).items():
        section = built.get(name, {})
        if isinstance(section, dict):
            built[name] = build(_schema_of(tag, section, name, where), section, where, (*path, name))
    try:
        return TypeAdapter(schema).validate_python(built)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([*path, *map(str, first["loc"])])
        raise UserError(f"{where}: {_explain(key, first)}") from error


def _explain(key: str, error: Any) -> str:
    """Say in one line what is wrong with a value."""
    value = reprlib.repr(error["input"])
    if error["type"] in _RANGES:
        bounds = {
            name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in error.get("ctx", {}).items()
        }
        return f"{key}={value}: {_RANGES[error['type']].format(**bounds)}"
    if error["type"] == "value_error":  # of a __post_init__, whose message begins with a key of its own section
        message = str(error["ctx"]["error"])
        return message if not key or message.startswith(f"{key}.") else f"{key}.{message}"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]} (got {value})"


def dump(config: Any) -> str:
    """Write a config as YAML that :func:`load` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def read(path: str | Path) -> dict[str, Any]:
    """Read a YAML file as a nested dict.

    Raises
    ------
    UserError
        No such file, or it holds something else.
    """
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


def flatten(tree: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a nested dict by dotted key; an empty section has none."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        below = (*path, str(key))
        flat |= flatten(value, below) if isinstance(value, dict) else {".".join(below): value}
    return flat


def nearest(name: str, valid: list[str]) -> str | None:
    """Return the valid name that is most like `name`, None where none is."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return near[0] if near else None


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error


def _override(text: str) -> tuple[list[str], Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"override {text!r} has no '='; write key.path=value")
    return key.strip().split("."), _parse(value, f"override {text!r}")


def _set(tree: dict[str, Any], path: list[str], value: Any, tagged: dict[str, Tagged]) -> None:
    if path[0] in tagged and path[1:] in ([], ["name"]) and isinstance(value, str):
        before = tree.get(path[0], {})
        same = isinstance(before, dict) and before.get("name", tagged[path[0]].default) == value
        tree[path[0]] = {**(before if same else {}), "name": value}
        return
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise UserError(f"override {'.'.join(path)}: {part} is a value, not a section")
        tree = below
    tree[path[-1]] = value


def _tagged_fields(schema: Any) -> dict[str, Tagged]:
    """Return the fields of a dataclass that are tagged by their name."""
    hints = get_type_hints(schema, include_extras=True)
    marks = {field.name: getattr(hints[field.name], "__metadata__", ()) for field in dataclasses.fields(schema)}
    return {name: mark for name, metadata in marks.items() for mark in metadata if isinstance(mark, Tagged)}


def _expand_names(tree: dict[str, Any], tagged: dict[str, Tagged]) -> None:
    """Turn ``section: NAME`` into ``section: {name: NAME}``."""
    for name in tagged:
        if isinstance(tree.get(name), str):
            tree[name] = {"name": tree[name]}


def _schema_of(tag: Tagged, section: dict[str, Any], name: str, where: str) -> type:
    chosen = section.get("name", tag.default)
    if not isinstance(chosen, str):
        raise UserError(f"{where}: {name}.name is a name, not {reprlib.repr(chosen)}")
    return tag.schema_of(chosen)


def _check_keys(schema: Any, tree: dict[str, Any], path: list[str], where: str) -> None:
    """Reject unknown keys with the nearest valid name (pydantic alone names the key, not the remedy)."""
    hints = get_type_hints(schema)
    tagged = _tagged_fields(schema)
    valid = [field.name for field in dataclasses.fields(schema)]
    for key, value in tree.items():
        full = ".".join([*path, str(key)])
        if key not in valid:
            near = nearest(str(key), valid)
            hint = f"did you mean {'.'.join([*path, near])}?" if near else f"valid keys here: {', '.join(valid)}"
            raise UserError(f"{where}: unknown key {reprlib.repr(full)}; {hint}")
        if key in tagged or dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {full} is a section with keys, not the value {reprlib.repr(value)}")
            if key not in tagged:
                _check_keys(hints[key], value, [*path, str(key)], where)


def _refuse_renamed(schema: Any, tree: dict[str, Any], where: str) -> None:
    """Refuse keys of an older version: name the new key, and how to convert a file."""
    renamed: dict[str, str] = getattr(schema, "RENAMED", {})
    for key in flatten(tree):
        if key in renamed:
            raise UserError(f"{where}: {key} is now {renamed[key]}{_how_to_convert(where)}")


def _how_to_convert(where: str) -> str:
    if where == "overrides":
        return ""
    folder = Path(where).parent
    in_run = (folder / "checkpoints").is_dir()
    return f"; convert it with: python -m mrmfast.convert {folder if in_run else f'{where} > NEW.yaml'}"
