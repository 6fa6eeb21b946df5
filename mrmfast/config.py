"""YAML plus dotted overrides to dataclasses. Imports nothing of ours but the error type.

A config dataclass lives beside the code that it configures; the root only composes them
(``mrmfast/training/settings.py``). Ranges stand on the fields, in the types below; rules over several fields stand in
``__post_init__``. Unknown or mistyped keys fail with the path of the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import yaml
from annotated_types import Ge, Le
from pydantic import AllowInfNan, TypeAdapter, ValidationError

from mrmfast import yaml_text
from mrmfast.config_messages import explain, flatten, refuse_characters
from mrmfast.config_types import Tagged, fit_types, is_text, tag_of
from mrmfast.errors import UserError
from mrmfast.redact import redact
from mrmfast.yaml_text import shown

# `flatten` and `Tagged` belong to the module's interface.
__all__ = ["NonNegative", "NonNegativeInt", "PositiveInt", "Share", "Tagged"]
__all__ += ["build", "dump", "flatten", "load", "nearest", "read"]

T = TypeVar("T")


@functools.cache  # an adapter is built from the type hints, which takes longer than to validate
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


# Larger numbers are typing errors, and arithmetic on them overflows.
MOST = 10**9
PositiveInt = Annotated[int, Ge(1), Le(MOST)]
NonNegativeInt = Annotated[int, Ge(0), Le(MOST)]
NonNegative = Annotated[float, AllowInfNan(False), Ge(0), Le(float(MOST))]
Share = Annotated[float, AllowInfNan(False), Ge(0), Le(1)]


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
    tree = read(path, schema) if path is not None else {}
    where = str(path or "overrides")
    _refuse_renamed(schema, tree, where)
    tagged = _tagged_fields(schema)
    _expand_names(tree, tagged)
    pairs = [_split(text) for text in overrides]
    # A name decides which keys there are, so names go first.
    chooses = [keys[0] in tagged and keys[1:] in ([], ["name"]) for keys, _ in pairs]
    for chosen in (True, False):
        for (keys, text), is_name in zip(pairs, chooses, strict=True):
            if is_name == chosen:
                _set(tree, keys, _value(schema, tree, keys, text), tagged)
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
    if not path:
        refuse_characters(tree, where)
    built = dict(tree)
    for name, tag in _tagged_fields(schema).items():
        section = built.get(name, {})
        if isinstance(section, dict):
            built[name] = build(_schema_of(tag, section, name, where), section, where, (*path, name))
    try:
        built_config: T = _adapter(cast(Any, schema)).validate_python(built)
        return built_config
    except ValidationError as error:
        raise UserError(f"{where}: {explain(schema, path, error.errors())}") from error


def dump(config: Any) -> str:
    """Write a config as YAML that :func:`load` reads back; URLs are without credentials."""
    return yaml.safe_dump(_redacted(dataclasses.asdict(config)), sort_keys=False)


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(below) for below in value]
    return redact(value) if isinstance(value, str) else value


def read(path: str | Path, schema: type | None = None) -> dict[str, Any]:
    """Read a YAML file as a nested dict.

    Parameters
    ----------
    path : str or Path
    schema : type, optional
        Dataclass of the file. What the file has for a field of text is then read as it stands there: ``20241127``,
        ``2024-11-27`` and ``off`` are text.

    Raises
    ------
    UserError
        No such file, or it holds something else.
    """
    try:
        with open(path, "rb") as file:  # never more than a config can be: the path may be that of a device
            text = file.read(yaml_text.MOST_BYTES + 1).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file; see configs/ for the ones that come with mrmfast") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML text file ({type(error).__name__}); give a file as in configs/") from error
    node = yaml_text.compose(text, str(path))
    if node is not None and schema is not None:
        fit_types(node, schema)
    tree = yaml_text.construct(node, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values")
    return tree


def nearest(name: str, valid: list[str]) -> str | None:
    """Return the valid name that is most like `name`, None where none is."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return near[0] if near else None


def _split(text: str) -> tuple[list[str], str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"override {shown(text)} has no '='; write key.path=value")
    return key.strip().split("."), value.strip()


def _value(schema: Any, tree: dict[str, Any], keys: list[str], text: str) -> Any:
    """Read the value of an override: text as it stands there, anything else as YAML."""
    hint = _hint_at(schema, tree, keys)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if is_text(hint) and not quoted:
        optional = type(None) in getattr(hint, "__args__", ())
        return None if optional and text in ("", "~", "null") else text
    where = f"override {'.'.join(keys)}={shown(text)}"
    node = yaml_text.compose(text, where)
    if node is not None:
        fit_types(node, hint)
    return yaml_text.construct(node, where)


def _hint_at(schema: Any, tree: dict[str, Any], keys: list[str]) -> Any:
    """Return the type of the field at a path of keys, None where there is none."""
    hint: Any = schema
    for number, key in enumerate(keys):
        hint = get_type_hints(hint, include_extras=True).get(key) if dataclasses.is_dataclass(hint) else None
        tag = tag_of(hint)
        if tag is not None and number + 1 < len(keys):
            section = tree.get(key, {})
            name = section.get("name", tag.default) if isinstance(section, dict) else tag.default
            hint = tag.schema_of(name) if isinstance(name, str) else None
    return hint


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
    tags = {field.name: tag_of(hints[field.name]) for field in dataclasses.fields(schema)}
    return {name: tag for name, tag in tags.items() if tag is not None}


def _expand_names(tree: dict[str, Any], tagged: dict[str, Tagged]) -> None:
    """Turn ``section: NAME`` into ``section: {name: NAME}``."""
    for name in tagged:
        if isinstance(tree.get(name), str):
            tree[name] = {"name": tree[name]}


def _schema_of(tag: Tagged, section: dict[str, Any], name: str, where: str) -> type:
    chosen = section.get("name", tag.default)
    if not isinstance(chosen, str):
        raise UserError(f"{where}: {name}.name is a name, not {shown(chosen)}")
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
            raise UserError(f"{where}: unknown key {shown(full)}; {hint}")
        if key in tagged or dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {full} is a section with keys, not the value {shown(value)}")
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
