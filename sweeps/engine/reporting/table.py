"""A table as data, which every kind of report shows in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sweeps.engine.formatting import MISSING


@dataclass(frozen=True)
class Table:
    """A table, as text.

    Attributes:
        left: headings of the columns that hold words; all others hold numbers.
        bars: one bar per row, as a share of the longest possible one.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    left: Sequence[str] = ()
    bars: Sequence[float] = ()


def without_empty(table: Table) -> Table:
    """The table without the columns that say nothing in any row."""
    kept = [
        i
        for i in range(len(table.headings))
        if not table.rows or any(row[i] not in ("", MISSING) for row in table.rows)
    ]
    rows = [tuple(row[i] for i in kept) for row in table.rows]
    return replace(table, headings=tuple(table.headings[i] for i in kept), rows=rows)
