"""The metrics of each epoch up to a checkpoint: in a file of it, or in its run's log."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ali.errors import UserError
from ali.files import atomic_write
from ali.metrics import EPOCH

METRICS = "metrics.json"  # in a checkpoint's folder: of a trial, or a full training
LOG = "metrics.jsonl"  # in the folder of a run of `python -m ali train`, beside its checkpoint


def write_history(folder: Path, history: Sequence[dict[str, float]]) -> None:
    """Writes them, with a checksum. Raises UserError if the folder cannot be written."""
    text = json.dumps(list(history))
    content = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "history": text})
    with atomic_write(folder / METRICS) as path:
        path.write_text(content, encoding="utf-8")


def read_history(folder: Path) -> list[dict[str, float]]:
    """Raises UserError if they are damaged; OSError if there are none."""
    path = folder / METRICS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(saved, list):  # written by a version without checksums
            return saved
        text = saved["history"]
        if hashlib.sha256(text.encode()).hexdigest() == saved["sha256"]:
            return json.loads(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is damaged: the previous checkpoint is used")


def epochs_of(checkpoint: Path, epochs: int) -> list[dict[str, float]] | None:
    """The metrics of a checkpoint's epochs, one after the other; None if one is not known."""
    try:
        history = read_history(checkpoint)
    except (OSError, UserError):
        history = _read_log(checkpoint.parent / LOG)
    by_epoch = {metrics.get(EPOCH): metrics for metrics in history}  # the last, if done twice
    wanted = range(1, epochs + 1)
    return [by_epoch[n] for n in wanted] if by_epoch.keys() >= set(wanted) else None


def _read_log(log: Path) -> list[dict[str, float]]:
    found = []
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a line that a kill cut short
            found.append(json.loads(line))
    return [metrics for metrics in found if isinstance(metrics, dict)]
