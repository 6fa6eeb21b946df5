"""Seeded mutations of files: bits, bytes, holes, copies, numbers, tokens, cuts."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]
TOKENS = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", b"\t", b"\n", b"\n\n", b"\r", b" ", b"#", b"##", b",", b"/", b'"'),
    *(b"-1", b"1e309", b"nan", b"inf", b"99999999999999999999", b"4294967295", b"0", b".", b"*", b"<DEL>", b"<*>"),
    *(b"1/2/3", b"0/9", b"=1+1", b"A" * 5000, b"\t" * 300, b"\xe2\x80\xa8", b"\xc2\xb2", b"1.0", b"chr", b"\x1c"),
)


def bit(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip one bit."""
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def noise(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace 1 to 8 bytes by random ones."""
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 9))
    return data[:at] + rng.bytes(size) + data[at + size :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """End the file early."""
    return data[: int(rng.integers(len(data)))]


def hole(data: bytes, rng: np.random.Generator) -> bytes:
    """Remove a range."""
    first, last = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    return data[:first] + data[last:]


def zeros(data: bytes, rng: np.random.Generator) -> bytes:
    """Fill a range with zeros."""
    first, last = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    return data[:first] + bytes(last - first) + data[last:]


def copy(data: bytes, rng: np.random.Generator) -> bytes:
    """Repeat a range."""
    first, last = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    return data[:last] + data[first:last] + data[last:]


def token(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert a token that parsers treat specially, or put it in place of a word."""
    text = TOKENS[int(rng.integers(len(TOKENS)))]
    words = [match.span() for match in re.finditer(rb"[^\s|,;:/]+", data)] or [(0, 0)]
    first, last = words[int(rng.integers(len(words)))]
    return data[:first] + text + data[first if rng.random() < 0.5 else last :]


def lines(data: bytes, rng: np.random.Generator) -> bytes:
    """Remove, repeat or swap lines, or change the ends of all lines."""
    parts = data.split(b"\n")
    first, last = rng.integers(len(parts), size=2).tolist()
    kind = int(rng.integers(4))
    if kind == 0:
        del parts[first]
    elif kind == 1:
        parts.insert(last, parts[first])
    elif kind == 2:
        parts[first], parts[last] = parts[last], parts[first]
    return (b"\r\n" if kind == 3 else b"\n").join(parts)


MUTATIONS: tuple[Mutation, ...] = (bit, noise, cut, hole, zeros, copy, token, lines)


def mutated(files: dict[str, bytes], seed: int) -> dict[str, bytes]:
    """Change one file of a set by 1 to 3 mutations."""
    rng = np.random.default_rng(seed)
    name = sorted(files)[int(rng.integers(len(files)))]
    data = files[name]
    for _ in range(int(rng.integers(1, 4))):
        if data:
            data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
    return {**files, name: data}
