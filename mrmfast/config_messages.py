"""What a config says about a wrong value."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator
from typing import Any, get_type_hints

from mrmfast.errors import UserError
from mrmfast.yaml_text import shown

# pydantic's names of range errors -> the wording of the message. NaN is not finite.
_RANGES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
}

# Control characters, surrogates (bytes that are not UTF-8), line and paragraph separators.
_UNUSABLE = ("Cc", "Cs", "Zl", "Zp")
_DIRECTION = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def explain(schema: Any, path: tuple[str, ...], errors: list[Any]) -> str:
    """Say in one line what is wrong with the first value that is wrong."""
    keys = [".".join([*path, *_keys(schema, error["loc"])]) for error in errors]
    key = keys[0]
    # A field of several types has an error for each; a value out of range has the right type.
    same = [error for error, other in zip(errors, keys, strict=True) if other == key]
    error = next((error for error in same if error["type"] in _RANGES), errors[0])
    value = shown(error["input"])
    if error["type"] in _RANGES:
        bounds = {
            name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in error.get("ctx", {}).items()
        }
        return f"{key}={value}: {_RANGES[error['type']].format(**bounds)}"
    if error["type"] == "value_error":  # of a __post_init__, whose message begins with a key of its own section
        message = str(error["ctx"]["error"])
        return message if not key or message.startswith(f"{key}.") else f"{key}.{message}"
    messages = dict.fromkeys(f"{error['msg'][0].lower()}{error['msg'][1:]}" for error in same)
    return f"{key}: {', or '.join(messages)} (got {value})"


def _keys(schema: Any, location: tuple[Any, ...]) -> Iterator[str]:
    """Yield the parts of pydantic's location that are keys or positions, without its names of a union's members."""
    for part in location:
        if isinstance(part, int):
            yield str(part)
        elif dataclasses.is_dataclass(schema) and part in (hints := get_type_hints(schema)):
            schema = hints[part]
            yield part


def flatten(tree: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a nested dict by dotted key; an empty section has none."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        below = (*path, str(key))
        flat |= flatten(value, below) if isinstance(value, dict) else {".".join(below): value}
    return flat


def refuse_characters(tree: dict[str, Any], where: str) -> None:
    """Refuse texts with characters that break a path or a line, or turn the direction of what follows."""
    for key, value in flatten(tree).items():
        for text in value if isinstance(value, list) else [value]:
            for character in text if isinstance(text, str) else ():
                if unicodedata.category(character) in _UNUSABLE or unicodedata.bidirectional(character) in _DIRECTION:
                    hint = "; names must be UTF-8" if unicodedata.category(character) == "Cs" else ""
                    raise UserError(
                        f"{where}: {key}={shown(text)}: holds the character U+{ord(character):04X}; remove it{hint}"
                    )
