"""Mutated inputs of every parser of genetics: a seeded sample of ``python -m benchmarks.robustness.parsers``."""

from __future__ import annotations

import pytest

from benchmarks.robustness.parsers.cases import run_cases
from benchmarks.robustness.parsers.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_end_in_one_line(name):
    """Refused or read; never a traceback, a hang, unbounded memory or the death of the process."""
    valid, *cases = run_cases(name, [None, *(*range(7_000, 7_019), 699)])
    assert valid.kind == "read", valid
    assert not [case for case in cases if case.kind not in ("read", "refused")]
    assert any(case.kind == "refused" for case in cases)
