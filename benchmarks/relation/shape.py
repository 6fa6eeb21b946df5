"""The shape of one relation, shared by the benchmarks of its CPU and GPU paths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One call: B samples, H heads, N queries, M keys, d width of a head."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int

    def __str__(self) -> str:
        return f"B {self.batch}, H {self.heads}, {self.queries} x {self.keys}, d {self.width}"

    @property
    def entries(self) -> int:
        """Entries of all N x M relations."""
        return self.batch * self.heads * self.queries * self.keys
