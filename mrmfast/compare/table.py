"""Means over seeds with intervals, and paired differences to the reference, by SciPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """A method in the table of one evaluation.

    Attributes
    ----------
    method : str
    seeds : int
        How many seeds are done.
    mean : float
    interval : (float, float) or None
        Student's t over seeds; None with fewer than two seeds.
    difference : float or None
        Mean difference to the reference over the seeds that both have; None for the reference itself.
    difference_interval : (float, float) or None
    p : float or None
        Two-sided paired t test.
    p_adjusted : float or None
        By Benjamini and Hochberg over the methods of the table.
    """

    method: str
    seeds: int
    mean: float
    interval: tuple[float, float] | None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p: float | None = None
    p_adjusted: float | None = None


def rows(values: dict[str, dict[int, float]], reference: str) -> list[Row]:
    """Summarise the values of all methods.

    Parameters
    ----------
    values : dict
        Method -> seed -> value.
    reference : str
        May be absent from `values`: then there are no differences.

    Returns
    -------
    list of Row
        In the order of `values`.

    Examples
    --------
    >>> table = rows({"a": {0: 0.50, 1: 0.52}, "b": {0: 0.60, 1: 0.64}}, "a")
    >>> [(row.method, round(row.mean, 3), row.difference and round(row.difference, 3)) for row in table]
    [('a', 0.51, None), ('b', 0.62, 0.11)]
    """
    made = [_row(method, by_seed, values.get(reference), method == reference) for method, by_seed in values.items()]
    tested = [row for row in made if row.p is not None]
    adjusted = stats.false_discovery_control([row.p for row in tested]) if tested else []
    by_method = {row.method: float(p) for row, p in zip(tested, adjusted, strict=True)}
    return [Row(**{**vars(row), "p_adjusted": by_method.get(row.method)}) for row in made]


def _row(method: str, by_seed: dict[int, float], reference: dict[int, float] | None, is_reference: bool) -> Row:
    numbers = np.array(list(by_seed.values()))
    row = Row(method, len(numbers), float(numbers.mean()), mean_interval(numbers))
    common = [] if reference is None or is_reference else [seed for seed in by_seed if seed in reference]
    if not common or reference is None:
        return row
    gains = np.array([by_seed[seed] - reference[seed] for seed in common])
    p = None
    if len(gains) > 1 and gains.std() > 0:
        p = float(stats.ttest_1samp(gains, 0.0).pvalue)
    return Row(**{**vars(row), "difference": float(gains.mean()), "difference_interval": mean_interval(gains), "p": p})


def mean_interval(numbers: np.ndarray) -> tuple[float, float] | None:
    """Return the interval of a mean (Student's t); None for fewer than two numbers."""
    if len(numbers) < 2:
        return None
    if numbers.std() == 0:
        return float(numbers[0]), float(numbers[0])
    low, high = stats.ttest_1samp(numbers, 0.0).confidence_interval(CONFIDENCE)
    return float(low), float(high)
