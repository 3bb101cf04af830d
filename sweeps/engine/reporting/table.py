"""A table as data, which every kind of report shows in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table, as text.

    Attributes:
        left: headings of the columns that hold words; all others hold numbers.
        bars: a bar a row, as a share of the longest possible one.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    left: Sequence[str] = ()
    bars: Sequence[float] = ()
