"""What a sweep found: as text, as a page of HTML, and as figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ali.files import atomic_write
from sweeps.engine.options import Location
from sweeps.engine.reporting.evidence import has_collapsed
from sweeps.engine.reporting.findings import Findings, find
from sweeps.engine.reporting.text import WIDTH, as_text
from sweeps.engine.results import load_study
from sweeps.engine.retry import ask_mlflow
from sweeps.engine.saved_options import saved_options
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import connect

__all__ = ["WIDTH", "Findings", "ReportOptions", "as_text", "find", "has_collapsed", "show_report"]


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Location):
    """Options of sweeps/report.py."""

    html: Path | None = None
    """File to write the report to as a page for a browser, with figures and pictures; without it,
    tables are printed."""


def show_report(asked: ReportOptions) -> None:
    """Prints the report of a sweep, or writes it as a page. Raises UserError if it cannot."""
    options = saved_options(asked)
    study = load_study(options)
    client = connect(options.uri, existing=True)
    name = options.name
    found = ask_mlflow(lambda: find(options, study, client, runs.experiment_of(client, name)))
    if asked.html is None:
        print(as_text(found), end="")
        return
    from sweeps.engine.reporting.page import html
    from sweeps.engine.reporting.records import Records
    from sweeps.engine.reporting.sheet import contact_sheet
    from sweeps.engine.reporting.static import draw

    records = Records(client)
    page = ask_mlflow(
        lambda: html(found, records, draw(found, records), contact_sheet(found, records))
    )
    with atomic_write(asked.html) as path:
        path.write_text(page, encoding="utf-8")
    print(f"{asked.html.resolve()}: {len(page.encode()) / 2**20:.1f} MB; open it in a browser")
