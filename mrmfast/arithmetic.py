"""Integer arithmetic that Python lacks a name for."""

from __future__ import annotations


def ceil_div(dividend: int, divisor: int) -> int:
    """Return ``dividend / divisor`` rounded up; exact for integers of any size.

    >>> ceil_div(9, 4)
    3
    """
    return -(-dividend // divisor)
