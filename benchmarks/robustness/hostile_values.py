"""Wrong, extreme and hostile values for every key of the config, from its own schema, and mutations of its files."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mrmfast.config_types import kinds, tag_of
from mrmfast.objectives import OBJECTIVES

# What each type of field is given, as the text after "key=".
TEXTS = (
    "20241127", "2024-11-27", "2026-13-45", "0x_", "off", "", "~", "'unclosed", "a #b", "a: b", "[a, b]",
    "{a: b}", "*x",
    "&x", "!x y", "!!int x", "!!binary x", "!!python/object/apply:os.getpid []", "%TAG", "a\0b", "\ud800", "a\nb",
    "a\u202eb", "../../x", "/proc", "/dev/null/x", "x" * 300, "$HOME", "http://user:SECRET@127.0.0.1:9/ds",
    "s3://AKIA:SEC/RET@bucket/ds", "https://127.0.0.1:9/ds?X-Amz-Signature=SECRET", "hf-hub:a/b", "nosuch://x/y",
)  # fmt: skip
INTEGERS = (
    "-1", "0", "1.5", "100000000000000000000000", "1e26", "100000", "1000000000", "many", "yes",
    "3:44", "0x_", "0b_",
    ".nan", ".inf", "2026-13-45", '!!int "x"', "!!timestamp x", "[1]", "{a: 1}", "9" * 5000,
    "0x" + "f" * 9000, "\u0663",
)  # fmt: skip
NUMBERS = (
    "-1", "0", "1e300", "-1e300", "1.0e-300", "1e400", ".nan", "-.inf", ".inf", "much", "yes", "1:30.5", '!!float "x"',
    "[0.1]", "{}", "null", "1_0.5", "2026-13-45", "1" * 400,
)  # fmt: skip
TRUTHS = ("maybe", "2", "-1", "null", "[true]", "yes", "1.5", "!!bool x", "\0")
CHOICES = ("wrong", "5", "null", "[train]", "yes", "", "x" * 10_000, "a\nb", "{a: b}")
LISTS = (
    "5",
    "x",
    "[[1]]",
    "[.nan, .nan]",
    "[1, 2, 3, 4]",
    "null",
    "[]",
    "[-1, 5]",
    "[1e300, 1e300]",
    "{a: 1}",
    "[0x_, 1]",
)
SECTIONS = ("5", "null", "[]", "x", "{x: 1}", "{<<: [1]}", "{? [a] : b}", "{a: 1, a: 2}")


def values() -> Iterator[tuple[str, str]]:
    """Yield (key, value) for every key of every objective."""
    from mrmfast.training.settings import TrainConfig

    yield from _section(TrainConfig, "")


def _section(schema: Any, path: str) -> Iterator[tuple[str, str]]:
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if name not in {field.name for field in dataclasses.fields(schema)}:
            continue
        key, tag = f"{path}{name}", tag_of(hint)
        if tag is not None:
            yield from ((key, value) for value in (*SECTIONS, *CHOICES))
            for objective in OBJECTIVES:
                for inner, value in _section(tag.schema_of(objective), f"{key}."):
                    yield f"objective={objective} {inner}", value
        elif dataclasses.is_dataclass(hint):
            yield from ((key, value) for value in SECTIONS)
            yield from _section(hint, f"{key}.")
        else:
            yield from ((key, value) for value in _of_type(hint))


def _of_type(hint: Any) -> tuple[str, ...]:
    types = kinds(hint) - {type(None)}
    if list in types or tuple in types:
        return LISTS
    literal = get_origin(hint) is Literal or any(get_origin(member) is Literal for member in get_args(hint))
    if literal:
        return CHOICES if types == {str} else (*CHOICES, *INTEGERS)
    return {str: TEXTS, int: INTEGERS, float: NUMBERS, bool: TRUTHS}[next(iter(types))]


def documents() -> dict[str, bytes]:
    """Return files that are no configs, by what is wrong with them."""
    bombs = {f"alias bomb of {levels} levels": _bomb(levels).encode() for levels in (3, 4, 5, 6, 9)}
    return {
        **bombs,
        "alias bomb of mappings": _mapping_bomb(9).encode(),
        "contains itself": b"run: &a {name: *a}\n",
        "list that contains itself": b"data: {modalities: &a [*a]}\n",
        "merge key that contains itself": b"run: &a\n  <<: *a\n  name: x\n",
        "10,000 brackets deep": b"run: " + b"[" * 10_000 + b"]" * 10_000,
        "2,000 braces deep": b"run: " + b"{a: " * 2000 + b"}" * 2000,
        "deep by blocks": b"".join(b" " * depth + b"a:\n" for depth in range(500)),
        "1 MB of text": b"run: {name: " + b"x" * (1 << 20) + b"}\n",
        "200,000 values": b"data: {modalities: [" + b"a," * 200_000 + b"]}\n",
        "50,000 keys": b"".join(b"k%d: 1\n" % number for number in range(50_000)),
        "a key twice": b"seed: 1\nseed: 2\n",
        "a section twice": b"run: {name: a}\nrun: {name: b}\n",
        "tabs": b"run:\n\tname: x\n",
        "not UTF-8": b"run: {name: Jos\xe9}\n",
        "UTF-16": "run: {name: x}\n".encode("utf-16"),
        "a NUL": b"run: {name: a\0b}\n",
        "an escaped NUL": b'run: {name: "a\\0b"}\n',
        "an escaped surrogate": b'run: {name: "\\ud800"}\n',
        "empty": b"",
        "a list": b"- 1\n",
        "a number": b"5\n",
        "two documents": b"seed: 1\n---\nseed: 2\n",
        "python tag": b"seed: !!python/object/apply:os.system [id]\n",
        "unknown tag": b"seed: !secret x\n",
        "unknown alias": b"seed: *nowhere\n",
        "keys that are no text": b"? [a, b]\n: 1\n",
        "key null": b"~: 1\n",
        "binary of 100 kB": bytes(random.Random(0).randbytes(100_000)),
        "date": b"run: {name: 2024-11-27}\nseed: 2024-11-27\n",
        "impossible date": b"seed: 2026-13-45\n",
        "%YAML 9.9": b"%YAML 9.9\n---\nseed: 1\n",
    }  # fmt: skip


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"seed: *a{levels - 1}", ""])


def _mapping_bomb(levels: int) -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(10))}}}" for n in range(1, levels)]
    return "\n".join([*lines, f"run: *a{levels - 1}", ""])


TOKENS = (
    "[", "]", "{", "}", ":", "- ", "&a ", "*a", "!!int ", "!!timestamp ", "? ", "| ", "> ", "'", '"', "#",
    "%", "@", "`", "\t",
    "\n", "\0", "\u202e", "\ud800", "0x_", "2026-13-45", ".nan", "1e400", "<<: ", "---\n", "...\n", "~",
    "\ufeff", "9" * 400,
)  # fmt: skip


def mutations(seed: int, count: int, folder: Path) -> Iterator[str]:
    """Yield `count` texts: configs of a folder with bytes, lines and tokens of YAML changed."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.yaml"))]
    draw = random.Random(seed)
    for _ in range(count):
        text = draw.choice(texts)
        for _ in range(draw.randint(1, 6)):
            start = draw.randrange(len(text) + 1)
            stop = min(len(text), start + draw.choice((0, 0, 1, 3, 20)))
            part = draw.choice((draw.choice(TOKENS), chr(draw.randrange(1, 0x300)), text[start:stop] * 2, ""))
            text = text[:start] + part * draw.choice((1, 1, 1, 3)) + text[stop:]
        yield text
