"""The report as one HTML file that needs no network: verdict, figures, pictures, tables, commands.

Figures are drawn twice: by plotly where there is JavaScript, by matplotlib for print and without.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali.metrics import RECONSTRUCTIONS, SAMPLES, VAL_ERROR
from sweeps.engine.reporting import evidence, findings, repeat, sheet, tables
from sweeps.engine.reporting.findings import Findings
from sweeps.engine.reporting.records import Records
from sweeps.engine.reporting.table import Table
from sweeps.engine.study import trial_id
from sweeps.engine.tracking import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

TEMPLATE = Path(__file__).with_name("report.html")
CAPTIONS = {  # figure: its title, and what to see in it
    "history": (
        "Objective by trial",
        "Each point is a trial at its last value; {better} is better.",
    ),
    "learning_curves": (
        "Learning curves",
        "Each line is a trial; its last point says how it ended. The best is drawn wide.",
    ),
    "parallel_coordinates": (
        "Hyperparameters",
        "Each line is a trial. With JavaScript, drag along an axis to keep some of them.",
    ),
    "importance": (
        "What mattered",
        "What is not above chance (grey) cannot be told from noise with so many trials.",
    ),
    "slot_use": ("Use of the slots", "Each bar is a trial in its slot; gaps are idle time."),
}
PICTURES = {SAMPLES: "samples", RECONSTRUCTIONS: "reconstructions: source, result, source, …"}


@dataclass(frozen=True)
class Drawn:
    """A figure of the page."""

    name: str
    title: str
    caption: str
    svg: str
    interactive: str  # plotly's JSON
    wide: bool = False  # scrolls on a narrow screen


def html(found: Findings, records: Records, drawn: dict[str, Figure], contact: Image | None) -> str:
    """The page. `drawn`: the static figures, by name; `contact`: the contact sheet."""
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = _unbroken
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    parts = template.generate(
        name=found.options.name,
        data=found.options.data,
        when=time.strftime("%Y-%m-%d %H:%M %Z"),
        state=state(found),
        verdict=findings.verdict(found),
        numbers=numbers(found),
        notes=[note[:1].upper() + note[1:] + "." for note in findings.notes(found)],
        tables=sections(found),
        figures=_figures(found, records, drawn),
        pictures=_pictures(found, records),
        sheet=contact and data_uri(sheet.encoded(contact), "jpeg"),
        commands=repeat.commands(found),
        next=found.next_commands,
        lost=runs.lost_records(found.runs),
        plotly=get_plotlyjs(),
    )
    return "".join(parts)


def _unbroken(text: str) -> str:
    """A text that no browser breaks at its hyphens: --option."""
    from markupsafe import Markup, escape

    word = Markup('<span class="word">{}</span>')
    return Markup(" ").join(word.format(w) if "-" in w else escape(w) for w in text.split(" "))


def state(found: Findings) -> str:
    """How far the sweep is, in a few words."""
    counted = tables.last_tries(found.frozen)
    new = [t for t in found.trials if t.confirms is None and t.trial_id in counted]
    ended = sum(trial.ending is not None for trial in new)
    text = f"{ended} of {found.options.num_trials} trials ended"
    reason = found.parent and runs.why_interrupted(found.parent)
    return f"{text}; interrupted: {reason}" if reason else text


def numbers(found: Findings) -> list[tuple[str, str]]:
    """What the page shows in large type: (value, what it is)."""
    shown = []
    if found.complete:
        best = found.complete[0]
        shown.append((f"{best.value:.4f}", f"{found.objective} of the best, {best.trial_id}"))
        expected = found.expected(best)
        interval = evidence.interval_text(expected)
        what = "expected of another seed" + (f", 95 % interval {interval}" if interval else "")
        shown.append((f"{expected.mean:.4f}", what))
    if found.parent and (untrained := findings.untrained_error(found.parent)) < 1:
        shown.append((f"{untrained:.4f}", f"{VAL_ERROR} of an untrained encoder"))
    cost = tables.cost_table(found)
    row = dict(zip(cost.headings, cost.rows[0], strict=True))
    shown.append((row["trials"], f"trials, {row['epochs']} epochs"))
    shown.append((row["core-hours"], "core-hours"))
    return shown


def sections(found: Findings) -> dict[str, list[Table | str]]:
    """The tables of the text report, by the section of the page that they are in."""
    ranking: list[Table | str | None] = []
    if found.complete:
        ranking.append(tables.best_table(found))
        ranking.append(tables.pareto(found))
    if again := found.again:
        table = evidence.confirmation_table(again, found.estimates, found.by_id, found.frozen)
        ranking.append(table)
    ends = tables.ends_table(found.trials)
    return {
        "ranking": [table for table in ranking if table],
        "importance": [evidence.importance_table(found.importance)],
        "ends": [ends],
        "all": [tables.trials_table(found)],
        "cost": [t for t in (tables.cost_table(found), tables.slot_use(found)) if t],
    }


def _figures(found: Findings, records: Records, drawn: dict[str, Figure]) -> list[Drawn]:
    from sweeps.engine.reporting import interactive, static

    figures = []
    for name, figure in drawn.items():
        title, caption = CAPTIONS[name]
        caption = caption.format(better="lower" if found.sign > 0 else "higher")
        live = interactive.FIGURES[name](found, records)
        text = live.to_json() if live is not None else "null"
        wide = name == "parallel_coordinates"
        safe = text.replace("<", "\\u003c")  # it stands in a script
        figures.append(Drawn(name, title, caption, static.svg(figure), safe, wide))
    return figures


def _pictures(found: Findings, records: Records) -> list[dict[str, Any]]:
    """Pictures of the best trial beside those of the one at the paper's point."""
    chosen = [("best", trial.trial_id) for trial in found.complete[:1]]
    if found.control is not None and trial_id(found.control) not in dict(chosen).values():
        chosen.append(("the paper's point", trial_id(found.control)))
    shown = []
    for what, name in chosen:
        if (run := found.by_id.get(name)) is None:
            continue
        for key, label in PICTURES.items():
            if epochs := records.epochs(run, key):
                image = records.image(run, epochs[-1], key)
                text = f"{what}, trial {name}: {label}, epoch {epochs[-1]}"
                source = data_uri(sheet.encoded(image, "WEBP"), "webp")
                shown.append({"text": text, "source": source, "key": key})
    return sorted(shown, key=lambda picture: list(PICTURES).index(picture["key"]))


def data_uri(content: bytes, kind: str) -> str:
    """An image as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
