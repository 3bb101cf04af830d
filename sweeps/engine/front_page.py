"""The sweep's run in MLflow as its front page: the result in words, the best trials, figures, the
report as HTML; kept up to date while the sweep runs, by a thread that the driver never waits for.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from ali.output import first_line
from sweeps.engine.options import Options
from sweeps.engine.reporting import evidence, findings, page, sheet, tables
from sweeps.engine.reporting.findings import Findings, find
from sweeps.engine.reporting.records import Records
from sweeps.engine.reporting.table import Table
from sweeps.engine.retry import is_temporary
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import open_client
from sweeps.engine.tracking.schema import NOTE, TrackingContext
from sweeps.engine.tracking.view import COMPARED, best_path, run_path, view_path

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient

    from sweeps.engine.importance import Importance

NOTE_CHARACTERS = 5000  # what servers of all versions take
FIGURES, SHEET, REPORT = "figures", "contact_sheet.jpg", "report.html"
BEST_SHOWN = 5
WIDTH = 720  # pixels of a picture; MLflow would stretch all lines to a wider one
# Shares of the time between updates: under 1 % together, without the last update.
SHARE_WORDS, SHARE_FIGURES = 0.0025, 0.0065
FIRST_WORDS, FIRST_FIGURES = 10.0, 600.0  # seconds after the start, and between updates at least
LAST_SECONDS = 30.0  # for which a sweep's end waits for an update that has begun


class FrontPage:
    """Writes the front page of a sweep; writing it again is harmless."""

    def __init__(self, options: Options, study: optuna.Study, to: TrackingContext) -> None:
        self._options, self._study, self.to = options, study, to
        self._client: MlflowClient | None = None
        self._records: Records | None = None
        self._importance: Importance | None = None  # of the last full update
        self._lock = threading.Lock()  # one update at a time
        self.seconds = 0.0  # total time of updates

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """In the block, the page is updated from time to time."""
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def _keep(self, ended: threading.Event) -> None:
        words = Cadence(SHARE_WORDS, FIRST_WORDS)
        figures = Cadence(SHARE_FIGURES, FIRST_FIGURES)
        while not ended.wait(max(0.0, min(words.due, figures.due) - time.monotonic())):
            full = figures.due <= time.monotonic()
            with contextlib.suppress(Exception), figures if full else words:
                # no MLflow, or a lost run: the driver reports it, and the next update has all
                self.update(full)

    def update(self, full: bool = True, found: Findings | None = None) -> None:
        """Writes the description, and if `full` the figures and the report, too.

        `found`: what the sweep has found, if it has just been read.
        """
        if not self._lock.acquire(timeout=LAST_SECONDS):
            raise TimeoutError("an update of the sweep's page has not ended")
        began = time.monotonic()
        try:
            client, records = self._open()
            found = found or find(self._options, self._study, client, self.to.experiment)
            if full:
                self._importance = found.importance  # seconds of work for many trials
                self._log_files(client, found, records)
            text = description(found, self.to, self._logged(client), self._importance)
            client.set_tag(self.to.parent_run_id, NOTE, text)
        finally:
            self.seconds += time.monotonic() - began
            self._lock.release()

    def finish(self, found: Findings) -> None:
        """The last update. If drawing fails, it prints a note, and the sweep can end.

        Raises MLflow's error if it is unavailable.
        """
        try:
            self.update(found=found)
        except Exception as error:
            if is_temporary(error):
                raise
            print(f"note: the sweep's page in MLflow lacks its figures: {first_line(error)}")
            self.update(full=False, found=found)

    def interrupted(self, seconds: float) -> None:
        """Updates the description of a stopped sweep at once, in the background.

        Unless `seconds` is 0, waits up to that for the figures and the report.
        """

        def show() -> None:
            with contextlib.suppress(Exception):  # a resume corrects it
                self.update(full=False)
                if seconds:
                    self.update()

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        thread.join(seconds)

    def _open(self) -> tuple[MlflowClient, Records]:
        if self._client is None or self._records is None:
            self._client = open_client(self.to.uri)
            self._records = Records(self._client)
        return self._client, self._records

    def _log_files(self, client: MlflowClient, found: Findings, records: Records) -> None:
        ended = {run.info.run_id for run in found.runs if run.info.status != "RUNNING"}
        records.forget_running(ended)
        with tempfile.TemporaryDirectory() as name:
            try:
                write_files(Path(name), found, records)
            except Exception as error:
                if is_temporary(error) and not isinstance(error, OSError):
                    raise
                raise Undrawn(first_line(error)) from error
            client.log_artifacts(self.to.parent_run_id, name)

    def _logged(self, client: MlflowClient) -> list[str]:
        """Files of the page that the run has, what matters most first."""
        run = self.to.parent_run_id
        folders = (FIGURES, None)
        found = [file.path for folder in folders for file in client.list_artifacts(run, folder)]
        return sorted(found, key=lambda file: Path(file).stem != "importance")


class Undrawn(Exception):
    """Figures or the report could not be made, but not because of MLflow."""


def write_files(folder: Path, found: Findings, records: Records) -> None:
    """Writes what the run has as files: figures, contact sheet and report."""
    from sweeps.engine.reporting import static

    drawn, contact = static.draw(found, records), sheet.contact_sheet(found, records)
    (folder / REPORT).write_text(page.html(found, records, drawn, contact), encoding="utf-8")
    (folder / FIGURES).mkdir()
    for figure, what in drawn.items():
        (folder / FIGURES / f"{figure}.png").write_bytes(static.png(what))
    if contact:
        (folder / SHEET).write_bytes(sheet.encoded(contact))
        contact.thumbnail((WIDTH, WIDTH))
        (folder / FIGURES / SHEET).write_bytes(sheet.encoded(contact))


class Cadence:
    """Schedules work that may take at most a share of the time.

    Failed work was mostly spent waiting, and is retried soon.
    """

    def __init__(self, share: float, least: float) -> None:
        self._share, self._least = share, least
        self._began = 0.0
        self.due = time.monotonic() + least

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        now = time.monotonic()
        took = now - self._began
        self.due = now + max(self._least, took if kind else took / self._share)


def description(
    found: Findings,
    to: TrackingContext,
    files: Sequence[str],
    importance: Importance | None = None,
) -> str:
    """The front page in Markdown; `files`: the figures and report that its run has.

    MLflow shows some five lines of it at once: the verdict, what mattered, a link to the report.
    """
    first, *others = findings.verdict(found)
    parts = [f"**{_plain(first)}**", *map(_plain, others)]
    if importance:
        parts.append(_plain(evidence.what_mattered(importance)))
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    parts.append(f"{_plain(page.state(found))} ({when}). {_links(found, to, files)}")
    if found.complete:
        links = {
            name: f"[{name}]({run_path(to.experiment, its.info.run_id)})"
            for name, its in found.by_id.items()
        }
        table = tables.best_table(found, BEST_SHOWN)
        parts += ["### Best trials", markdown(table, links)]
    for file in files:
        query = urlencode({"path": file, "run_uuid": to.parent_run_id})
        if file.startswith(f"{FIGURES}/"):
            picture = f"![{Path(file).stem.replace('_', ' ')}](get-artifact?{query})"
            large = run_path(to.experiment, to.parent_run_id, SHEET)
            parts.append(f"[{picture}]({large})" if Path(file).name == SHEET else picture)
    text = ""
    for part in parts:  # whole parts only
        if len(text) + len(part) + 2 <= NOTE_CHARACTERS:
            text += part + "\n\n"
    return text


def _links(found: Findings, to: TrackingContext, files: Sequence[str]) -> str:
    """Where to look next, in a line."""
    links = {"all trials": view_path(to.experiment, to.sweep)}
    if found.parent and len(runs.best_trials(found.parent)) >= COMPARED:
        links["pictures of the best two, side by side"] = best_path(to.experiment, to.sweep)
    if REPORT in files:
        links["the whole report"] = run_path(to.experiment, to.parent_run_id, REPORT)
    return "Open " + ", ".join(f"[{what}]({link})" for what, link in links.items()) + "."


def markdown(table: Table, links: dict[str, str] | None = None) -> str:
    """A table in Markdown; `links` are put in place of first cells."""
    links = links or {}
    rows = [tuple(table.headings), tuple("---" for _ in table.headings)]
    rows += [(links.get(row[0], _plain(row[0])), *map(_plain, row[1:])) for row in table.rows]
    apart = ["&nbsp;&nbsp; | ", " | "]  # MLflow puts the columns side by side without a gap
    lines = [apart[row[0] == "---"].join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for mark in "\\`*_[]<|#":
        text = text.replace(mark, "\\" + mark)
    return text
