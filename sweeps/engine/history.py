"""The metrics of each epoch up to a checkpoint, in a file beside its state's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ali.errors import UserError
from ali.files import atomic_write

METRICS = "metrics.json"  # in a checkpoint's folder


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
