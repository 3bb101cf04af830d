"""Table 1: the published errors, and measuring the same on one's own data (§4.4).

With sweeps/best.py the only place that reads the test split, and as there it chooses nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali.errors import UserError
from ali.files import atomic_write
from ali.metrics import EPOCH, TRAIN_SECONDS

if TYPE_CHECKING:
    import numpy as np

    from ali.config import Config
    from ali.data import Dataset, Images
    from ali.models.base import Networks

KNN_ROW, TSVM_ROW, DCGAN_ROW, ALI_ROW = "KNN", "TSVM", "DCGAN + L2-SVM", "ALI"
TABLE_1 = (  # test error on SVHN with 1000 labels
    (KNN_ROW, "77.93 %"),
    (TSVM_ROW, "66.55 %"),
    ("VAE (M1 + M2)", "36.02 %"),
    ("SWWAE without dropout", "27.83 %"),
    ("SWWAE with dropout", "23.56 %"),
    (DCGAN_ROW, "22.18 % (± 1.13 %)"),
    ("SDGM", "16.61 % (± 0.24 %)"),
    (ALI_ROW, "19.14 % (± 0.50 %)"),
)
PIXELS_ROW = "L2-SVM on pixels"  # not in the paper's table
METHOD = 1  # increase it when a row is measured otherwise: older results are then measured again


@dataclass(frozen=True)
class Measured:
    """Test error of `draws` classifiers, fractions, and what went into it."""

    mean: float
    std: float  # n − 1 in the denominator; 0 for a single draw
    draws: int
    seconds: float | None  # wall time of training, for networks; else of the whole row
    epochs: int | None = None
    images: int | None = None  # seen in training, repeats counted


class Measurements:
    """Test errors on one data set; each is measured once and kept in a file."""

    def __init__(
        self, dataset: Dataset, test: Images, config: Config, draws: int, file: Path
    ) -> None:
        assert test.y is not None
        contents = hashlib.blake2b(test.x.tobytes() + test.y.tobytes(), digest_size=8)
        self.dataset, self.test, self.config = dataset, test, config
        self.draws, self.file = draws, file
        self._settings: dict[str, Any] = {
            "method": METHOD,
            "data": dataset.fingerprint,
            "test": contents.hexdigest(),
            "labels": config.labels,
            "balanced": config.balanced,
            "draws": draws,
        }

    def of_baseline(self, row: str, errors: Callable[..., np.ndarray], **settings: int) -> Measured:
        """The error of one of ali.evaluation.baselines."""

        def measure() -> Measured:
            start = time.perf_counter()
            found = errors(self.dataset, self.test, self.config, self.draws, **settings)
            return _summary(found, seconds=time.perf_counter() - start)

        return self._once(row, settings, measure)

    def of_networks(self, row: str, networks: Networks, weights: str, **budget: Any) -> Measured:
        """The error of the L2-SVM on the networks' features.

        `weights` is their checksum; `budget` has seconds, epochs and images of Measured. Raises
        FloatingPointError where a feature is not finite.
        """
        from ali.evaluation import protocol

        def measure() -> Measured:
            found = protocol.test_errors(networks, self.dataset, self.test, self.config, self.draws)
            return _summary(found, **budget)

        return self._once(row, {"weights": weights}, measure)

    def _once(
        self, row: str, settings: dict[str, Any], measure: Callable[[], Measured]
    ) -> Measured:
        """What was measured with these settings before, or is now."""
        key = hash_settings({"row": row, **self._settings, **settings})
        if (known := _read(self.file).get(key)) is not None:
            return Measured(**known)
        print(f"measuring {row}: {self.draws} draws", flush=True)
        result = measure()
        with atomic_write(self.file) as partial:
            results = _read(self.file) | {key: asdict(result)}
            partial.write_text(json.dumps(results, indent=1) + "\n")
        return result


def hash_settings(settings: dict[str, Any]) -> str:
    """12 hex digits that tell settings apart."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()


def training_seconds(log: Path, epochs: int) -> float | None:
    """Wall time of training up to an epoch, if the run's metrics.jsonl has all of its epochs."""
    seconds: dict[int, float] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            metrics = json.loads(line)
            seconds[metrics[EPOCH]] = metrics[TRAIN_SECONDS]  # of an epoch done twice, the last
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    wanted = range(1, epochs + 1)
    return sum(seconds[epoch] for epoch in wanted) if seconds.keys() >= set(wanted) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise UserError(f"{path} is damaged: delete it, and its rows are measured again")


def _summary(errors: np.ndarray, **budget: Any) -> Measured:
    std = float(errors.std(ddof=1)) if len(errors) > 1 else 0.0
    return Measured(float(errors.mean()), std, len(errors), **budget)
