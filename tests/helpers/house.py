"""What the house rules measure: lines of files and functions, words and names that are not the field's.

``python -m tests.helpers.house`` prints what breaks a rule today.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator

from tests.helpers.common import ROOT

PACKAGES = ("mrmfast", "preprocess", "benchmarks")
PYTHON, NATIVE, PROSE = (".py",), (".c", ".cpp", ".cu", ".h"), (".md", ".yaml", ".sh", ".j2", ".toml")
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
# History tells what was said at the time.
HISTORY = ("CHANGELOG.md", "docs/log.md", "docs/decisions/", "benchmarks/results/")

# What to say instead -> what must not be said.
DIALECT = {
    "fix": r"\bmend(s|ed|ing)?\b",
    "resumes from": r"\b(go|goes|going|went|gone) on (from|where)\b",
    "latest complete checkpoint": r"\bnewest whole\b",
    "unexpected file": r"\bin excess\b",
    "state the fact itself": r"\bsa(y|ys|id) so\b",
    "least recently used": r"\blongest ago\b",
    "are evicted": r"\bmakes? room\b",
    "skipped or excluded": r"\bset[ _]aside\b|\bSetAside\b",
    "skipped, excluded or without": r"\b(left|leave|leaves|leaving)[ _]out\b|\bpassed over\b",
    "image": r"\bpictures?\b|\bPICTURE",
    "DecodeRequest": r"\bFed\b",
    "streams of the sampler, by a name of the field": r"\blanes?\b",
    "annotations": r"\bharm\b",
    "score_pass": r"\bpgs[./]sums\b|\bimport sums\b",
    "dali.py": r"\bdata[./]pipeline\b",
    "a command's helper, by what it does": r"\bcommand\.target\b",
    "searched recursively": r"\bsearched through\b",
    "maximum number of": r"\bat most so many\b",
    "seed or fraction of the test split": r"\bwho is held out\b|\bshare held out\b",
    "ceil_div(a, b)": r"-\(-[\w.\[\]()+*, ]+//",
}
# Variables are nouns.
NOT_NOUNS = frozenset({"one", "found", "mine", "said", "here", "wanted", "place"})


def files(*suffixes: str, folders: tuple[str, ...] = PACKAGES) -> list[str]:
    """Return the tracked and the new files below folders, as paths relative to the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({name for name in listed if name.endswith(suffixes) and (ROOT / name).is_file()})


def long_files() -> dict[str, int]:
    """Return the files over the limit, and their lines."""
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in files(*PYTHON, *NATIVE)}
    return {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def long_functions() -> dict[str, int]:
    """Return the Python functions over the limit as ``file::Class.function``, and their lines."""
    lengths = {}
    for name in files(*PYTHON):
        for qualified, node in functions(ast.parse((ROOT / name).read_text())):
            lengths[f"{name}::{qualified}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    return {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION}


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the functions of a module with their qualified names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", child
        name = getattr(child, "name", None)
        yield from functions(child, f"{prefix}{name}." if name else prefix)


def dialect(text: str) -> list[tuple[int, str]]:
    """Return (line, what to say instead) of each place in a text that speaks the dialect."""
    places = []
    for instead, pattern in DIALECT.items():
        flags = 0 if instead == "DecodeRequest" else re.IGNORECASE
        for match in re.finditer(pattern, text, flags):
            places.append((text.count("\n", 0, match.start()) + 1, instead))
    return sorted(places)


def names_that_are_no_nouns(source: str) -> list[tuple[int, str]]:
    """Return (line, name) of each variable, argument or loop target of Python source that is no noun."""
    places = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if name in NOT_NOUNS:
            places.append((node.lineno, name))
    return sorted(places)


@functools.cache
def offences() -> dict[str, list[str]]:
    """Return each file of code and docs that speaks the dialect, with line and remedy."""
    prose = [name for name in files(*PROSE, folders=(".",)) if not name.startswith((*HISTORY, "tests/"))]
    by_file = {}
    for name in sorted({*files(*PYTHON, *NATIVE), *prose} - {"mrmfast/arithmetic.py"}):  # where ceil_div is defined
        text = (ROOT / name).read_text()
        lines = [f"line {line}: {instead}" for line, instead in dialect(text)]
        if name.endswith(PYTHON):
            lines += [f"line {line}: {word} is no noun" for line, word in names_that_are_no_nouns(text)]
        if lines:
            by_file[name] = lines
    return by_file


def main() -> None:
    """Print what breaks a rule."""
    for name, lines in {**long_files(), **long_functions()}.items():
        print(f"{name}: {lines} lines")
    for name, places in offences().items():
        print(name, *places, sep="\n    ")


if __name__ == "__main__":
    main()
