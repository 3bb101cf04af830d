"""What a full training keeps: checkpoints, the metrics of each epoch, the test's results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from ali.config import Config
from ali.errors import UserError
from ali.files import atomic_write
from ali.history import read_history, write_history
from ali.metrics import EPOCH
from ali.training.checkpoint import MANIFEST, find_checkpoint, read_manifest
from ali.training.state import State
from ali.training.step import device
from sweeps.engine.storage import Storage

CHECKPOINT = "checkpoint"
RESULT = "test.json"  # the test's results, and what was tested

Metrics = dict[str, float]


class TrainingFiles:
    """The folder of one full training; with a bucket its checkpoints have copies there.

    Args:
        storage: the sweep's.
        say: prints a line.
    """

    def __init__(
        self, folder: Path, storage: Storage, config: Config, say: Callable[[str], None]
    ) -> None:
        self.folder, self.checkpoint = folder, folder / CHECKPOINT
        self._storage, self._config, self._say = storage, config, say

    def checkpoints(self) -> list[tuple[Storage, str]]:
        """This training's own checkpoints, the newest first.

        With a bucket, the copies there, which workers on all machines see.
        """
        local = self.checkpoint
        here = [(Storage.at(local, ""), str(local))] if (local / MANIFEST).exists() else []
        if not self._storage.remote:
            return here
        copies = reversed(self._storage.checkpoints(self.folder.name))
        return [(self._storage, folder) for folder in copies] or here

    def epochs(self) -> int:
        """Epochs in its own checkpoints; 0 if there is none that can be read."""
        epochs = 0
        for storage, folder in self.checkpoints():
            with contextlib.suppress(UserError, OSError), storage.local(folder) as local:
                epochs = max(epochs, read_manifest(find_checkpoint(local)).epoch)
        return epochs

    def load(self, candidates: list[tuple[Storage, str]]) -> tuple[State, list[Metrics], str]:
        """Loads the first that is intact and not past the last epoch: its state, the metrics of its
        epochs as far as known, and its folder.

        Raises LookupError if there is none.
        """
        for storage, folder in candidates:
            try:
                with storage.local(folder) as local:
                    state = State.load(find_checkpoint(local), device(), self._config)
                    history: list[Metrics] = []
                    with contextlib.suppress(UserError, OSError):  # an earlier version had none
                        history = [m for m in read_history(local) if m[EPOCH] <= state.epoch]
            except (UserError, OSError) as problem:
                self._say(f"note: {problem}")
                continue
            if state.epoch <= self._config.epochs:
                return state, history, folder
        raise LookupError

    def save(self, state: State, history: list[Metrics]) -> None:
        """Writes a checkpoint, and copies it into the sweep's bucket, if it has one, where the
        previous one is kept. If the bucket cannot be reached, the next checkpoint is copied."""
        self.checkpoint.mkdir(exist_ok=True)
        write_history(self.checkpoint, history)  # first: it may have more epochs, but none fewer
        state.save(self.checkpoint)
        if not self._storage.remote:
            return
        name = f"{self.folder.name}/checkpoint_{state.epoch:06d}"
        try:
            self._storage.upload(self.checkpoint, name)
            for old in self._storage.checkpoints(self.folder.name)[:-2]:
                self._storage.delete(old)
        except (OSError, UserError) as problem:
            self._say(f"note: no copy of the checkpoint was written: {problem}")

    def save_result(self, of: str, found: Metrics, errors: list[float]) -> None:
        """Writes the test's results, so that the test split is read only once."""
        with atomic_write(self.folder / RESULT) as path:
            path.write_text(
                json.dumps({"of": of, "found": found, "errors": errors}), encoding="utf-8"
            )

    def result(self, of: str) -> tuple[Metrics, list[float]] | None:
        """The results of an earlier call, if it tested the same."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
            if kept["of"] == of:
                return dict(kept["found"]), list(kept["errors"])
        return None
