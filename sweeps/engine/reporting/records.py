"""What figures need from MLflow besides a run's last values: pictures, and when epochs ran."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ali import environment
from ali.metrics import EVAL_SECONDS, SAMPLES, TRAIN_SECONDS
from sweeps.engine.tracking.pictures import logged_pictures

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from PIL.Image import Image

PAUSE = 2.0  # seconds without training that are no pause of a trial


@dataclass(frozen=True)
class Span:
    """A time in which a trial was training, in seconds since 1970."""

    start: float
    end: float


class Records:
    """Reads them from MLflow; what can no longer change is read once."""

    def __init__(self, client: MlflowClient) -> None:
        environment.set_defaults(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false")
        self._client = client
        self._spans: dict[str, list[Span]] = {}
        self._names: dict[str, dict[tuple[str, int], str]] = {}
        self._images: dict[tuple[str, str], bytes] = {}

    def spans(self, run: Run) -> list[Span]:
        """When a trial was training, in order; pauses between its restarts are left out."""
        name = run.info.run_id
        if name in self._spans:
            return self._spans[name]
        ends: dict[int, float] = {}
        seconds: dict[int, float] = {}
        for key in (TRAIN_SECONDS, EVAL_SECONDS):
            if key in run.data.metrics:
                for metric in self._client.get_metric_history(name, key):
                    ends[metric.step] = metric.timestamp / 1000
                    seconds[metric.step] = seconds.get(metric.step, 0.0) + metric.value
        found: list[Span] = []
        for step, end in sorted(ends.items()):
            start = end - seconds[step]
            if found and start - found[-1].end < max(PAUSE, (end - start) / 2):
                found[-1] = Span(found[-1].start, max(end, found[-1].end))
            else:
                found.append(Span(start, end))
        if run.info.status != "RUNNING":
            self._spans[name] = found
        return found

    def epochs(self, run: Run, key: str = SAMPLES) -> list[int]:
        """The epochs after which a run has a picture."""
        return sorted(epoch for name, epoch in self._pictures(run) if name == key)

    def image(self, run: Run, epoch: int, key: str = SAMPLES) -> Image:
        """A picture of a run. Raises KeyError if it has none of this epoch."""
        from PIL import Image

        path = self._pictures(run)[key, epoch]
        known = (run.info.run_id, path)
        if known not in self._images:
            with tempfile.TemporaryDirectory() as folder:
                file = self._client.download_artifacts(run.info.run_id, path, folder)
                self._images[known] = Path(file).read_bytes()
        return Image.open(io.BytesIO(self._images[known])).convert("RGB")

    def _pictures(self, run: Run) -> dict[tuple[str, int], str]:
        name = run.info.run_id
        if name not in self._names:
            self._names[name] = logged_pictures(self._client, name)
        return self._names[name]

    def forget_running(self, ended: set[str]) -> None:
        """Forgets which pictures all runs but these have."""
        self._names = {name: known for name, known in self._names.items() if name in ended}
