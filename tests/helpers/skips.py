"""A pytest plugin: what was skipped and why, counted by reason, at the end of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any


def skip_lines(reports: list[Any]) -> list[str]:
    """Return one line per reason, the most frequent first.

    Parameters
    ----------
    reports : list of TestReport or CollectReport
        Of skipped tests and modules; ``longrepr`` is (file, line, reason).
    """
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in reports
    )
    return [f"{count:5d}  {reason}" for reason, count in reasons.most_common()]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section(f"{len(skipped)} skipped: what this machine lacks")
        for line in skip_lines(skipped):
            terminalreporter.write_line(line)
