"""The report on a terminal: tables as wide as it is, or 140 characters without one."""

from __future__ import annotations

import io
import shutil
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable

from ali.output import console
from sweeps.engine.formatting import HYPERPARAMETERS, varied
from sweeps.engine.reporting import evidence, findings, tables
from sweeps.engine.reporting.findings import Findings
from sweeps.engine.reporting.table import Table
from sweeps.engine.tracking import runs

WIDTH = 140  # characters of a report that is not printed to a terminal
OPTIONAL_WIDTH = 6  # more for each hyperparameter that is not searched by default
WORDS = 30  # characters; a narrower column of words goes to the next block
BAR = 40  # characters of the longest bar
GAP = 2  # characters between columns
LABEL = 20  # characters of a command's purpose, in front of it


def report_width(found: Findings) -> int:
    """Characters per line: the terminal's ($COLUMNS), if any, and never more than needed."""
    optional = len(varied([trial.config for trial in found.trials])) - len(HYPERPARAMETERS)
    natural = WIDTH + OPTIONAL_WIDTH * optional
    return min(natural, max(40, shutil.get_terminal_size((natural, 0)).columns))


def as_text(found: Findings, width: int | None = None) -> str:
    """The report as text: the verdict, tables, and the commands that come next."""
    width = width or report_width(found)
    out = io.StringIO()
    text = console(file=out, width=width, color_system=None)

    def show(what: Table | str | None) -> None:
        if isinstance(what, Table):
            text.print(what.title + "\n" + "\n\n".join(tables_of(what, width)), soft_wrap=True)
            text.print(f"{what.caption}\n" if what.caption else "")
        elif what:
            text.print(f"{what}\n")

    if found.parent:
        for sentence in findings.verdict(found):
            show(sentence)
        if found.complete:
            show(tables.best_table(found))
        for line in findings.notes(found):
            show(f"{line[:1].upper()}{line[1:]}.")
        show(tables.pareto(found))
        if again := found.again:
            show(evidence.confirmation_table(again, found.estimates, found.by_id, found.frozen))
    show(tables.ends_table(found.trials))
    show(evidence.importance_table(found.importance))
    show(tables.cost_table(found))
    show(tables.slot_use(found))
    show(runs.lost_records(found.runs))
    text.print("Next:")
    for what, line in found.next_commands:
        gap = "  " if len(what) <= LABEL else "\n" + " " * (LABEL + 4)
        text.print(f"  {what:<{LABEL}}{gap}{line}", soft_wrap=True)
    return out.getvalue()


def tables_of(table: Table, width: int) -> list[str]:
    """The table, in as many blocks of columns as needed to cut none; each block begins with the
    first column, and columns of words are wrapped."""
    sizes = []
    for heading, cells in zip(table.headings, _columns(table), strict=True):
        size = max(cell_len(line) for text in (heading, *cells) for line in text.split("\n"))
        words = heading in table.left
        sizes.append(min(size, max(WORDS, cell_len(heading))) if words else size)
    parts: list[list[int]] = [[0]]
    for column in range(1, len(sizes)):
        taken = sum(sizes[i] + GAP for i in parts[-1])
        if taken + sizes[column] > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(column)
    last = parts[-1]
    room = width - sum(sizes[i] + GAP for i in last)
    return [_block(table, part, width, room if part is last else 0) for part in parts]


def _columns(table: Table) -> list[list[str]]:
    return [[row[i] for row in table.rows] for i in range(len(table.headings))]


def _block(table: Table, part: list[int], width: int, room: int) -> str:
    """Some columns of a table, and its bars where there is room for them."""
    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i in part:
        words = table.headings[i] in table.left
        justify: Literal["left", "right"] = "left" if words else "right"
        shown.add_column(table.headings[i], justify=justify, no_wrap=not words, overflow="fold")
    longest = min(BAR, room) if table.bars else 0
    if longest > 0:
        shown.add_column("", no_wrap=True)
    for number, row in enumerate(table.rows):
        bar = ["█" * max(1, round(longest * table.bars[number]))] if longest > 0 else []
        shown.add_row(*(row[i] for i in part), *bar)
    out = io.StringIO()
    console(file=out, width=width, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
