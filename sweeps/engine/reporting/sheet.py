"""The contact sheet of a sweep: samples of its best trials during training, one row each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ali.metrics import SAMPLES
from sweeps.engine.reporting.findings import Findings
from sweeps.engine.reporting.records import Records
from sweeps.engine.results import TrialResult
from sweeps.engine.study import trial_id

if TYPE_CHECKING:
    from mlflow.entities import Run

ROWS, COLUMNS = 4, 6  # at most
CELL, GAP, LABEL, HEAD = 260, 8, 150, 34  # pixels


def shown_trials(found: Findings) -> list[TrialResult]:
    """The best trials, and the one at the paper's point; running ones if none has completed."""
    chosen = found.complete[:ROWS] or [t for t in found.trials if t.values][:ROWS]
    if found.control is not None:
        name = trial_id(found.control)
        paper = [trial for trial in found.trials if trial.trial_id == name]
        if paper and paper[0] not in chosen:
            chosen = [*chosen[: ROWS - 1], *paper]
    return chosen


def contact_sheet(found: Findings, records: Records) -> Image.Image | None:
    """One row of pictures per trial, one column per epoch; None if no picture was logged."""
    rows: list[tuple[TrialResult, Run]] = []
    for trial in shown_trials(found):
        run = found.by_id.get(trial.trial_id)
        if run and records.epochs(run):
            rows.append((trial, run))
    if not rows:
        return None
    columns = spread(sorted({e for _, run in rows for e in records.epochs(run)}), COLUMNS)
    width = LABEL + len(columns) * (CELL + GAP)
    sheet = Image.new("RGB", (width, HEAD + len(rows) * (CELL + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for j, epoch in enumerate(columns):
        middle = LABEL + j * (CELL + GAP) + CELL // 2
        draw.text((middle, HEAD // 2), f"epoch {epoch}", "black", font, anchor="mm")
    for i, (trial, run) in enumerate(rows):
        top = HEAD + i * (CELL + GAP)
        for k, line in enumerate(_label(trial, found)):
            draw.text((8, top + 24 * (k + 1)), line, "black", font, anchor="ls")
        has = set(records.epochs(run, SAMPLES))
        for j, epoch in enumerate(columns):
            if epoch in has:
                place = (LABEL + j * (CELL + GAP), top)
                sheet.paste(fitted(records.image(run, epoch), CELL), place)
    return sheet


def _label(trial: TrialResult, found: Findings) -> list[str]:
    value = "" if trial.value is None else f"{trial.value:.4f}"
    paper = ["the paper's"] if int(trial.trial_id) == found.control else []
    end = [] if trial.complete else [trial.ending.state.value if trial.ending else "running"]
    return [trial.trial_id, value, *paper, *end]


def spread(epochs: Sequence[int], count: int) -> list[int]:
    """Up to `count` evenly spaced ones, including first and last."""
    if len(epochs) <= count:
        return list(epochs)
    last = len(epochs) - 1
    return [epochs[round(i * last / (count - 1))] for i in range(count)]


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Scaled to fit a square of `side` pixels; enlarged without smoothing."""
    scale = side / max(image.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image.resize(size, how)  # type: ignore[arg-type]


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """An image file."""
    out = io.BytesIO()
    image.save(out, kind, quality=88)
    return out.getvalue()
