"""Table 1: the published errors, and measuring the same on one's own data (§4.4).

Only this module and sweeps/best.py read the test split; neither chooses anything by it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ali import history
from ali.catalog import Model
from ali.errors import UserError
from ali.files import atomic_write
from ali.metrics import TRAIN_SECONDS, VAL_ERROR

if TYPE_CHECKING:
    import numpy as np

    from ali.config import Config
    from ali.data import Dataset, Images
    from ali.models.base import Networks

KNN_ROW, TSVM_ROW, DCGAN_ROW, ALI_ROW = "KNN", "TSVM", "DCGAN + L2-SVM", "ALI"
M1M2_ROW, SDGM_ROW = "VAE (M1 + M2)", "SDGM"
SWWAE_ROW, SWWAE_DROPOUT_ROW = "SWWAE without dropout", "SWWAE with dropout"
TABLE_1 = (  # test error on SVHN with 1000 labels
    (KNN_ROW, "77.93 %"),
    (TSVM_ROW, "66.55 %"),
    (M1M2_ROW, "36.02 %"),
    (SWWAE_ROW, "27.83 %"),
    (SWWAE_DROPOUT_ROW, "23.56 %"),
    (DCGAN_ROW, "22.18 % (± 1.13 %)"),
    (SDGM_ROW, "16.61 % (± 0.24 %)"),
    (ALI_ROW, "19.14 % (± 0.50 %)"),
)
# Not in the paper's table. ALI's own: its 2017 version; 1-NN and TSVM of codes, M2: Kingma et al.
ALI_LABELS_ROW, GAN_LABELS_ROW, ADGM_ROW = "ALI with labels", "GAN with labels", "ADGM"
M1_KNN_ROW, M1_TSVM_ROW, M2_ROW = "VAE (M1) + KNN", "VAE (M1) + TSVM", "VAE (M2)"
CONVNET_ROW, ALI_D_ROW, PIXELS_ROW = (
    "convnet on labels",
    "ALI, features of D",
    "L2-SVM on pixels",
)
MORE_ROWS = (
    (ALI_LABELS_ROW, "7.42 % (± 0.65 %)"),
    (GAN_LABELS_ROW, "8.11 % (± 1.3 %)"),
    (ADGM_ROW, "22.86 %"),
    (M1_KNN_ROW, "65.63 % (± 0.15 %)"),
    (M1_TSVM_ROW, "54.33 % (± 0.11 %)"),
    (M2_ROW, "–"),
    (CONVNET_ROW, "20.47 % (± 2.64 %)"),
    (ALI_D_ROW, "–"),
    (PIXELS_ROW, "–"),
)
# What the published models were trained on besides 1000 labels of train, as far as known.
TRAINED_ON = {
    M1M2_ROW: "train, extra",  # M1; M2 on train
    M1_KNN_ROW: "train, extra",
    M1_TSVM_ROW: "train, extra",
    SDGM_ROW: "train, extra",
    ADGM_ROW: "train, extra",
    ALI_ROW: "extra",
    GAN_LABELS_ROW: "train",
    KNN_ROW: "labels",
    CONVNET_ROW: "labels",
}
# The rows that a model is measured for; swwae, trained with dropout or without, for one of them.
ROWS: dict[Model, tuple[str, ...]] = {
    "ali": (ALI_ROW, ALI_D_ROW),
    "gan": (DCGAN_ROW,),
    "ali-labels": (ALI_LABELS_ROW,),
    "gan-labels": (GAN_LABELS_ROW,),
    "convnet": (CONVNET_ROW,),
    "vae-m1": (M1_KNN_ROW, M1_TSVM_ROW),
    "vae-m2": (M2_ROW,),
    "vae-m1m2": (M1M2_ROW,),
    "sdgm": (SDGM_ROW,),
    "adgm": (ADGM_ROW,),
    "swwae": (SWWAE_ROW, SWWAE_DROPOUT_ROW),
}
METHOD = 1  # increase it when a row's measurement changes, so that older results are redone


@dataclass(frozen=True)
class Measured:
    """Test error of `draws` classifiers, fractions, and what went into it.

    Of several trainings: the mean over them, and the standard deviation between them.
    """

    mean: float
    std: float  # n − 1 in the denominator; 0 of a single one
    draws: int  # classifiers of each training
    seconds: float | None  # wall time of a training, for networks; else of the whole row
    epochs: int | None = None
    images: int | None = None  # seen in a training, repeats counted
    trainings: int = 1


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

        by = "its own classifier" if networks.kind.classifies else ""
        return self._once(row, {"weights": weights}, measure, by)

    def of_features(
        self, row: str, errors: Callable[..., np.ndarray], budget: dict[str, Any], **settings: Any
    ) -> Measured:
        """The error of a classifier on networks' features; its settings have `weights`."""

        def measure() -> Measured:
            return _summary(errors(self.dataset, self.test, self.config, self.draws), **budget)

        return self._once(row, settings, measure)

    def _once(
        self, row: str, settings: dict[str, Any], measure: Callable[[], Measured], by: str = ""
    ) -> Measured:
        """The earlier result with these settings; measured now if there is none."""
        key = hash_settings({"row": row, **self._settings, **settings})
        if (known := _read(self.file).get(key)) is not None:
            return Measured(**known)
        print(f"measuring {row}: {by or f'{self.draws} draws'}", flush=True)
        result = measure()
        with atomic_write(self.file) as partial:
            results = _read(self.file) | {key: asdict(result)}
            partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        return result


def rows_of(config: Config) -> tuple[str, ...]:
    """The rows that networks of a configuration are measured for."""
    if config.model == "swwae":
        return (SWWAE_DROPOUT_ROW if config.setting("dropout_fc") else SWWAE_ROW,)
    return ROWS[config.model]


def curve_name(config: Config) -> str:
    """What a learning curve of a configuration is called: a row with its `val_error`'s method."""
    return "VAE (M1) + L2-SVM" if config.model == "vae-m1" else rows_of(config)[0]


def check_fits(
    checkpoint: Path, networks: Networks, config: Config, dataset: Dataset, here: Config
) -> None:
    """Raises UserError if networks cannot be compared with the other rows.

    Their images have another size, or they classify and know other classes or other numbers of
    labels than those that are asked for `here`.
    """
    if networks.image[1:] != dataset.valid.x.shape[1:3]:
        size = "×".join(map(str, networks.image[1:]))
        raise UserError(f"{checkpoint} takes images of {size} pixels: choose another --data")
    if not networks.kind.classifies:
        return
    if config.data != here.data:
        raise UserError(
            f"{checkpoint} classifies images of {config.data}: give --data {config.data}, or "
            "another checkpoint"
        )
    if config.labels != here.labels:
        raise UserError(
            f"{checkpoint} is trained with {config.labels} labels, but the other rows have "
            f"{here.labels}: give --labels {config.labels}, or another checkpoint"
        )


def over_trainings(each: Sequence[Measured]) -> Measured:
    """Mean ± std over trainings of one configuration, with seeds of their own."""
    if len(each) == 1:
        return each[0]
    means, seconds = [one.mean for one in each], [one.seconds for one in each]
    known = [one for one in seconds if one is not None]
    return replace(
        each[0],
        mean=statistics.fmean(means),
        std=statistics.stdev(means),
        seconds=statistics.fmean(known) if len(known) == len(each) else None,
        trainings=len(each),
    )


def hash_settings(settings: dict[str, Any]) -> str:
    """12 hex digits, a hash of the settings."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()


class Curve(NamedTuple):
    """A training's epochs: the wall time of training up to each, and its `val_error` (or NaN)."""

    seconds: list[float]
    errors: list[float]


def learning_curve(checkpoint: Path, epochs: int) -> Curve | None:
    """A training up to its checkpoint; None where the metrics of an epoch are not known."""
    known = history.epochs_of(checkpoint, epochs)
    if known is None or any(TRAIN_SECONDS not in metrics for metrics in known):
        return None
    seconds = itertools.accumulate(metrics[TRAIN_SECONDS] for metrics in known)
    return Curve(list(seconds), [metrics.get(VAL_ERROR, math.nan) for metrics in known])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path} is damaged: delete it, and its rows are measured again")


def _summary(errors: np.ndarray, **budget: Any) -> Measured:
    std = float(errors.std(ddof=1)) if len(errors) > 1 else 0.0
    return Measured(float(errors.mean()), std, len(errors), **budget)
