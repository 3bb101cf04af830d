"""What one experiment is: a frozen dataclass, to and from a plain dict; and the metric names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from ali.errors import UserError

# Metric names, as logged to MLflow and reported to Ray Tune.
VAL_ERROR = "val_error"  # fraction in [0, 1], validation split: the objective
TEST_ERROR_MEAN = "test_error_mean"  # fraction, mean over draws of the labelled set
TEST_ERROR_STD = "test_error_std"
D_LOSS = "d_loss"  # nats, mean of an epoch
G_LOSS = "g_loss"
IMAGES_PER_SECOND = "images_per_second"  # training images a second, evaluation left out
EPOCH = "epoch"  # epochs done

Precision = Literal["auto", "fp32", "bf16"]
DataName = Literal["house-numbers", "svhn"]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all trials of a sweep have in common: data, size, budget, evaluation."""

    # Data
    data: DataName = "house-numbers"
    """Data set: house-numbers (embedded, procedural) or svhn."""
    data_dir: Path | None = None
    """Folder of the data set's official files (svhn); default: downloaded to ./data/<name>."""
    train_size: int | None = None
    """Training images used, unlabelled; default: all (house-numbers: 16,000 of 20,000 made)."""

    # Size and budget
    width: float = 1.0
    """Multiplier of every hidden layer's feature maps; 1 is the paper's."""
    batch_size: int = 100
    """Images a step (M in Algorithm 1)."""
    epochs: int = 100
    """Passes over the training images; of a sweep's trial, its full budget."""
    precision: Precision = "auto"
    """fp32, or bf16 activations; auto: bf16 where the hardware multiplies matrices in it."""

    # Evaluation (§4.4)
    labels: int = 1000
    """Labelled images the SVM sees."""
    balanced: bool = True
    """Draw as many labelled images of each class; otherwise at random."""
    draws: int = 3
    """Labelled draws averaged for val_error."""
    eval_every: int = 1
    """Epochs between evaluations of val_error (the last epoch is always evaluated)."""


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """One experiment. The defaults are the paper's SVHN model (Table 3) on the embedded data."""

    # Model (Table 3)
    slope_encoder: float = 0.01
    """Leaky ReLU slope in the encoder G_z."""
    slope_decoder: float = 0.01
    """Leaky ReLU slope in the decoder G_x."""
    slope_discriminator: float = 0.01
    """Leaky ReLU slope in the discriminator."""
    dropout_x: float = 0.2
    """Dropout probability at the input of every layer of D(x)."""
    dropout_z: float = 0.2
    """Dropout probability at the input of every layer of D(z)."""
    dropout_xz: float = 0.2
    """Dropout probability at the input of every layer of D(x, z)."""
    bn_x: tuple[bool, ...] = (False, True, True, True, True)
    """Batch norm after each convolution of D(x), first to last."""
    bn_z: bool = False
    """Batch norm in D(z), which §4 reports as unstable."""
    bn_xz: bool = False
    """Batch norm in the hidden layers of D(x, z), which §4 reports as unstable."""

    # Optimisation (Adam; the tables print 1 − β₂)
    lr_d: float = 1e-4
    """Adam learning rate of the discriminator."""
    beta1_d: float = 0.5
    """Adam β₁ of the discriminator."""
    beta2_d: float = 0.999
    """Adam β₂ of the discriminator."""
    lr_g: float = 1e-4
    """Adam learning rate of encoder and decoder."""
    beta1_g: float = 0.5
    """Adam β₁ of encoder and decoder."""
    beta2_g: float = 0.999
    """Adam β₂ of encoder and decoder."""
    seed: int = 0
    """Seed of weights, data order, noise and dropout."""

    def __post_init__(self) -> None:
        _check(self)

    def replace(self, **changes: Any) -> Config:
        """This experiment with some fields changed (checked again)."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `Config.from_dict` gives the same experiment back."""
        plain = dataclasses.asdict(self)
        plain["data_dir"] = None if self.data_dir is None else str(self.data_dir)
        plain["bn_x"] = list(self.bn_x)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Config:
        """Inverse of `to_dict`. Raises UserError for an unknown key or a value of a wrong type."""
        known = get_type_hints(cls)
        if unknown := sorted(set(plain) - set(known)):
            raise UserError(f"unknown settings {', '.join(unknown)}: known are {', '.join(known)}")
        values = dict(plain)
        if values.get("data_dir") is not None:
            values["data_dir"] = Path(values["data_dir"])
        if "bn_x" in values:
            values["bn_x"] = tuple(values["bn_x"])
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"settings do not make a configuration: {error}") from error


def _check(config: Config) -> None:
    """Raises UserError, one line, for the first value outside its domain."""

    def need(holds: bool, name: str, domain: str) -> None:
        if not holds:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} must be {domain}, not {getattr(config, name)!r}")

    for name, choices in (("data", get_args(DataName)), ("precision", get_args(Precision))):
        need(getattr(config, name) in choices, name, "one of " + ", ".join(choices))
    for name in ("slope_encoder", "slope_decoder", "slope_discriminator"):
        need(0 <= getattr(config, name) <= 1, name, "in [0, 1]")
    for name in (
        "dropout_x",
        "dropout_z",
        "dropout_xz",
        "beta1_d",
        "beta2_d",
        "beta1_g",
        "beta2_g",
    ):
        need(0 <= getattr(config, name) < 1, name, "in [0, 1)")
    for name in ("lr_d", "lr_g"):
        need(0 < getattr(config, name) < float("inf"), name, "a positive number")
    for name in ("epochs", "labels", "draws", "eval_every"):
        need(getattr(config, name) >= 1, name, "at least 1")
    need(config.batch_size >= 2, "batch_size", "at least 2 (batch norm needs two images)")
    need(0 < config.width <= 8, "width", "in (0, 8]")
    need(config.train_size is None or config.train_size >= 1, "train_size", "at least 1")
    need(config.seed >= 0, "seed", "0 or more")
    need(len(config.bn_x) == 5, "bn_x", "five truth values, one a convolution of D(x)")
