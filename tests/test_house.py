"""The house rules: short files, short functions, and the field's own words.

The list below holds the exceptions, and only those.
"""

from __future__ import annotations

import pytest

from tests.helpers import house

# Functions over 60 lines, and why. No file is over 300 lines.
LONG_FUNCTIONS = {
    "mrmfast/ops/relation_masking/triton_kernels.py::query_gradient_kernel": "one kernel: Triton inlines what it calls",
}


def test_files_are_short() -> None:
    assert not house.long_files()


def test_functions_are_short() -> None:
    assert sorted(house.long_functions()) == sorted(LONG_FUNCTIONS)


def test_code_and_docs_speak_the_words_of_the_field() -> None:
    offences = house.offences()
    assert not offences, "\n".join(f"{name}: {', '.join(places)}" for name, places in offences.items())


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("or mend the path", "fix"),
        ("training goes on from step 3", "resumes from"),
        ("the newest whole checkpoint", "latest complete checkpoint"),
        ("a file in excess", "unexpected file"),
        ("and says so", "state the fact itself"),
        ("what was used longest ago", "least recently used"),
        ("3 files set aside", "skipped or excluded"),
        ("raise SetAside(fault)", "skipped or excluded"),
        ("masks are left out", "skipped, excluded or without"),
        ("two pictures", "image"),
        ("class Fed:", "DecodeRequest"),
        ("self.lanes = 2", "streams of the sampler, by a name of the field"),
        ("import harm", "annotations"),
        ("width = -(-count // 4)", "ceil_div(a, b)"),
    ],
)
def test_each_word_is_caught(text: str, instead: str) -> None:
    assert [word for _, word in house.dialect(f"first line\n{text}\n")] == [instead]


def test_plain_english_passes() -> None:
    text = "fed by the loader; amend; command on from; the planes; sums of squares; -(a // b); sayso; harmful; no room"
    assert not house.dialect(text)


def test_variables_are_nouns() -> None:
    source = "def f(wanted, count):\n    found = count\n    return [one for one in found] + [place := 3]\n"
    assert [name for _, name in house.names_that_are_no_nouns(source)] == ["wanted", "found", "one", "place"]
    assert not house.names_that_are_no_nouns("import one\nfound.append(count)\nf(here=3)\n")
