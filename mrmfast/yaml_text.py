"""YAML as configs use it: bounded in size, depth and aliases, without dates; every error is one line.

PyYAML alone resolves aliases without a limit (a file of 480 bytes can stand for gigabytes), recurses with the depth
of the text, and raises other errors than its own for some scalars (``0x_``, ``!!int "x"``).
"""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mrmfast.errors import UserError
from mrmfast.redact import redact

MOST_BYTES = 1 << 18
MOST_NODES = 10_000  # with every alias counted as what it stands for
MOST_DEPTH = 32
_TAG = "tag:yaml.org,2002:"
TEXT, MERGE = f"{_TAG}str", f"{_TAG}merge"
_PLAIN = tuple(f"{_TAG}{name}" for name in ("int", "float", "bool"))
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 3, 3, 60, 60, 40


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without dates: no key is one, and ``2024-11-27`` is a good name for a run."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def shown(value: object) -> str:
    """Return a short repr of a value for a message, without credentials of URLs."""
    if isinstance(value, dict):
        return f"a mapping of {len(value)} keys"
    try:
        text = _REPR.repr(redact(value) if isinstance(value, str) else value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        return "a number with thousands of digits"
    return redact(text) if len(text) <= 120 else f"{redact(text)[:117]}..."


def compose(text: str, where: str) -> Node | None:
    """Parse YAML into PyYAML's nodes, before any value is built; None for an empty text.

    Raises
    ------
    UserError
        Not YAML, or above the limits of this module.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"{where}: has more than {MOST_BYTES} characters; a config is smaller")
    try:
        _check_events(text, where)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _not_yaml(where, error) from error
    if node is not None and _count(node, {}) > MOST_NODES:
        raise UserError(f"{where}: its aliases stand for more than {MOST_NODES} values; write them out")
    return node


def construct(node: Node | None, where: str) -> Any:
    """Build the values of nodes.

    Raises
    ------
    UserError
        A scalar does not fit its tag, or a mapping has a key twice.
    """
    if node is None:
        return None
    _refuse_repeated_keys(node, where)
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, OverflowError, LookupError) as error:
        raise _not_yaml(where, error) from error
    finally:
        loader.dispose()


def is_null(node: Node) -> bool:
    """Tell whether a node is a plain null: ``null``, ``~`` or nothing."""
    return isinstance(node, ScalarNode) and node.tag == f"{_TAG}null"


def read_as_text(node: Node) -> None:
    """Let a plain scalar be the text that stands in the file: ``20241127`` is no number then."""
    if isinstance(node, ScalarNode) and node.style is None and node.tag in _PLAIN:
        node.tag = TEXT


def read_as_number(node: Node) -> None:
    """Let YAML 1.1's numbers to base 60 (``3:44``) and words for truth (``yes``) be text, which is no number."""
    if isinstance(node, ScalarNode) and (
        node.tag == f"{_TAG}bool" or (node.tag in (f"{_TAG}int", f"{_TAG}float") and ":" in node.value)
    ):
        node.tag = TEXT


def _check_events(text: str, where: str) -> None:
    """Count nodes and depth from the parser's events, which need no recursion."""
    depth = count = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        count += isinstance(event, yaml.NodeEvent)
        if depth > MOST_DEPTH:
            raise UserError(f"{where}: has more than {MOST_DEPTH} levels; a config has fewer")
        if count > MOST_NODES:
            raise UserError(f"{where}: has more than {MOST_NODES} values; a config has fewer")


def _count(node: Node, counts: dict[int, float]) -> float:
    """Count the nodes below a node, an alias as often as it is used; infinite for one that contains itself."""
    if isinstance(node, ScalarNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until it is counted: an alias inside refers to the node itself
        counts[id(node)] = 1 + sum(_count(child, counts) for child in _children(node))
    return counts[id(node)]


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _refuse_repeated_keys(node: Node, where: str) -> None:
    """PyYAML takes the last of two equal keys without a word."""
    if isinstance(node, MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, ScalarNode) and key.tag != MERGE]
        for key, count in Counter(keys).items():
            if count > 1:
                raise UserError(f"{where}: key {shown(key)} stands there {count} times; keep one of them")
    for child in _children(node):
        _refuse_repeated_keys(child, where)


def _not_yaml(where: str, error: Exception) -> UserError:
    if not isinstance(error, yaml.YAMLError):  # Python's words for it say nothing about the file
        return UserError(f"{where}: not valid YAML (a value does not fit its type, such as 0x_ or !!int with a word)")
    text = redact(" ".join(str(error).split()))
    return UserError(f"{where}: not valid YAML ({text if len(text) <= 160 else f'{text[:157]}...'})")
