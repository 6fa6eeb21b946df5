"""How the type of a config's field decides what a YAML scalar is."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mrmfast.errors import UserError
from mrmfast.yaml_text import MERGE, read_as_number, read_as_text


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


def tag_of(hint: Any) -> Tagged | None:
    """Return the mark of a field whose dataclass depends on a name."""
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Tagged)), None)


def is_text(hint: Any) -> bool:
    """Tell whether a field holds text alone, or text or null."""
    return kinds(hint) - {type(None)} == {str}


def fit_types(node: Node, hint: Any) -> None:
    """Mark scalars of a YAML document as what their fields hold.

    A field of text has the text of the file (``20241127``, ``off``); a field of numbers takes neither ``yes`` nor
    ``3:44`` for a number. A key without a field is not changed.
    """
    tag = tag_of(hint)
    if tag is not None:
        hint = _schema_in(node, tag)
    if isinstance(node, MappingNode):
        hints = get_type_hints(hint, include_extras=True) if dataclasses.is_dataclass(hint) else {}
        for key, value in node.value:
            if key.tag == MERGE:
                for merged in value.value if isinstance(value, SequenceNode) else [value]:
                    fit_types(merged, hint)
            elif isinstance(key, ScalarNode) and key.value in hints:
                fit_types(value, hints[key.value])
    elif isinstance(node, SequenceNode):
        for number, child in enumerate(node.value):
            fit_types(child, _element(hint, number))
    elif is_text(hint):
        read_as_text(node)
    elif hint is not None and bool not in kinds(hint):
        read_as_number(node)


def _schema_in(node: Node, tag: Tagged) -> Any:
    """Return the dataclass of a tagged section, None where it has no known name."""
    if not isinstance(node, MappingNode):
        return None
    names = [value.value for key, value in node.value if key.value == "name" and isinstance(value, ScalarNode)]
    try:
        return tag.schema_of(names[0] if names else tag.default)
    except UserError:
        return None


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, without the marks of their ranges."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for part in get_args(hint) for member in _members(part))
    return (hint,)


def kinds(hint: Any) -> set[Any]:
    """Return the Python types of the values of a field."""
    members = _members(hint)
    literal = {type(value) for member in members if get_origin(member) is Literal for value in get_args(member)}
    return literal | {get_origin(member) or member for member in members if get_origin(member) is not Literal}


def _element(hint: Any, number: int) -> Any:
    """Return the type of an element of a list or tuple; None where the field is neither."""
    for member in _members(hint):
        arguments = get_args(member)
        if get_origin(member) is list:
            return arguments[0]
        if get_origin(member) is tuple and number < len(arguments):
            return arguments[number]
    return None
