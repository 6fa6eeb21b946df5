"""The reference pages are what the code says today; how types, ranges and sections are written."""

import importlib.util
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le
from pydantic import Field

from tests.helpers.common import ROOT


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(reference):
    for path, text in reference.pages().items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run python scripts/reference.py"


def test_every_command_and_section_is_there(reference):
    pages = {path.name: text for path, text in reference.pages().items()}
    for name in ("preprocess fundus", "preprocess pgs", "check", "train", "completion"):
        assert f"\n## mrmfast {name}\n" in pages["cli.md"]
    assert "`--participant-pattern REGEX`" in pages["cli.md"]
    for key in ("seed", "data.path", "data.fetch.stall", "optimiser.lr", "engine.zero_stage", "run.keep"):
        assert f"\n| `{key}` | " in pages["config.md"]


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "integer"),
        (Annotated[float, Ge(0), Le(1)], "number, 0 to 1"),
        (Annotated[int, Ge(1)] | None, "integer, at least 1, or null"),
        (Annotated[float, Gt(0), Le(1)], "number, above 0, at most 1"),
        (Annotated[int, Field(ge=2, lt=5)], "integer, at least 2, below 5"),
        (Literal["a", "b"], "`a` or `b`"),
        (list[str] | None, "list of text, or null"),
        (tuple[float, float], "list of 2, each: number"),
    ],
)
def test_types_and_ranges_in_words(reference, hint, text):
    assert reference.type_text(hint) == text


@dataclass(frozen=True)
class Inner:
    """Inner keys.

    Attributes
    ----------
    low, high : float
        Both ends <x>, as in :func:`numpy.clip` and ``np``.
    """

    name: Literal["inner"] = "inner"
    low: float = 0.0
    high: Annotated[float, Le(9)] = 1.0


@dataclass(frozen=True)
class Undocumented:
    """No attribute has a text."""

    low: float = 0.0


@dataclass(frozen=True)
class Tag:
    schema_of: Any


@dataclass(frozen=True)
class Root:
    """Root keys."""

    inner: Inner = field(default_factory=Inner)
    chosen: Annotated[Any, Tag(lambda name: Inner)] = None


def test_sections(reference, monkeypatch):
    monkeypatch.setattr(reference, "OBJECTIVES", ["one", "two"])
    page = "\n".join(reference._section(Root, ""))
    row = "Both ends &lt;x>, as in `numpy.clip` and `np`. |"
    assert "## `inner`\n\nInner keys. Declared in `tests/test_reference.py`.\n\n| key" in page
    assert f"| `inner.low` | number | `0.0` | {row}" in page
    assert f"| `inner.high` | number, at most 9 | `1.0` | {row}" in page
    # A section that a name chooses is written once for each name, without the name itself.
    assert "## `chosen: one`" in page
    assert page.count("| `chosen.low` |") == 2
    assert "name` |" not in page


def test_a_key_without_a_text_is_refused(reference):
    with pytest.raises(ValueError, match="Undocumented does not document low"):
        list(reference._section(Undocumented, ""))
