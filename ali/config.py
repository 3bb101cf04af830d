"""What one experiment is: a frozen dataclass, to and from a plain dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ali.catalog import KINDS, SETTINGS, Model
from ali.errors import UserError
from ali.settings import problems

Precision = Literal["auto", "fp32", "bf16"]
MAX_SEED = 2**62  # torch's seeds, and those of a sweep's trials, which count up from it
MAX_POINTS = 10**8  # of the mixture, in memory
MAX_LEVELS, MAX_SIZE = 16, 2**16  # far beyond what can be trained
DataName = Literal[
    "house-numbers", "svhn", "cifar10", "celeba", "tiny-imagenet", "mixture", "folder"
]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What all trials of a sweep share: data, size, budget, evaluation."""

    # Data
    data: DataName = "house-numbers"
    """Data set, which also selects the paper's table of networks. mixture and house-numbers need no
    files; folder is your own images."""
    data_dir: Path | None = None
    """Folder of the data set's official files, or of your images; default: that name in
    $ALI_DATA_DIR (sweeps), else in ./data, where svhn, cifar10 and celeba are downloaded if missing
    (celeba needs gdown)."""
    image_size: Literal[32, 64] = 32
    """Pixels a side of folder's images, centre-cropped: 32 (Table 3) or 64 (Table 5)."""
    attribute: str | None = None
    """celeba only: an attribute, such as Smiling, to use as the label (1 with it, 0 without);
    default: no labels."""
    modes: Literal[9, 25] = 9
    """Gaussians of mixture, on a square grid (Fig. 7)."""
    train_size: int | None = None
    """Unlabelled training images to use; default: all (house-numbers: 16,000; up to 531,131 can be
    generated)."""

    # Size and budget
    model: Model = "ali"
    """ali, or another model of Table 1. gan: the same decoder and discriminator without encoder and
    z."""
    levels: int = 1
    """Stochastic layers z₁ … z_L of ALI (§2.6)."""
    sigma: Literal["exp", "sigmoid"] = "exp"
    """Output function for σ in q(z | x) and in the layers that --levels adds: exp as in
    the paper; sigmoid keeps σ below 1, the prior's, so that no encoding makes the losses jump."""
    width: float = 1.0
    """Multiplier of every hidden layer's feature maps; 1 is the paper's."""
    batch_size: int = 100
    """Images per step (M in Algorithm 1)."""
    epochs: int = 100
    """Passes over the training images; in a sweep, a trial's full budget."""
    precision: Precision = "auto"
    """fp32, or bf16 activations; auto: bf16 where the hardware multiplies matrices in it."""

    # Evaluation (§4.4)
    labels: int = 1000
    """Labelled images that the SVMs, or a model trained with labels, are trained on."""
    balanced: bool = True
    """Draw equally many labelled images of each class; otherwise uniformly at random."""
    draws: int = 3
    """Random draws of the labelled images that val_error is averaged over."""
    draw: int = 0
    """For a model trained with labels: number, from 0, of the labelled draw that it is trained on.
    The SVMs use draws 0 to --draws − 1."""
    eval_every: int | None = None
    """Epochs between evaluations, val_error among them (the last epoch is always evaluated);
    default: a twentieth of --epochs, at least 1."""

    @property
    def evaluation_interval(self) -> int:
        """Epochs between evaluations."""
        return self.eval_every or max(1, self.epochs // 20)


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """One experiment. The defaults are the paper's, of the table that belongs to the data set."""

    # Networks; None: the value of the data set's table
    slope_encoder: float | None = None
    """Leaky ReLU slope in the encoder G_z; default: the table's."""
    slope_decoder: float | None = None
    """Leaky ReLU slope in the decoder G_x; default: the table's."""
    slope_discriminator: float | None = None
    """Leaky ReLU slope in the discriminator; default: the table's."""
    dropout_x: float | None = None
    """Dropout probability at the input of every layer of D(x); default: the table's."""
    dropout_z: float | None = None
    """Dropout probability at the input of every layer of D(z); default: the table's."""
    dropout_xz: float | None = None
    """Dropout probability at the input of every layer of D(x, z); default: the table's."""
    bn_x: tuple[bool, ...] | None = None
    """Batch norm after each convolution of D(x), first to last; default: the table's."""
    bn_z: bool = False
    """Batch norm in D(z), which §4 reports as unstable."""
    bn_xz: bool = False
    """Batch norm in the hidden layers of D(x, z), which §4 reports as unstable."""

    weight_std: float | None = None
    """Standard deviation σ of the initial weights, N(0, σ²); default: the table's. The paper's 0.01
    makes narrow networks start with much smaller activations than wide ones."""

    # Settings of other models; None: their authors' choice, or else ours (ali/catalog.py)
    label_weight: float | None = None
    """Weight of the classification loss in a model trained with labels; default: 1 in ali-labels
    and gan-labels, α = 0.1 in vae-m2 and vae-m1m2, β = 0.1 in sdgm and adgm."""
    known_weight: float | None = None
    """sdgm and adgm: weight of the labelled images' mean bound against the unlabelled images';
    default: 1, both count the same. For equal weight per image: labelled / unlabelled images."""
    predict_z: Literal["mean", "sample"] | None = None
    """ali-labels: which z of q(z | x) the discriminator sees when it classifies; default: mean."""
    z_size: int | None = None
    """Dimensions of z; default: 300 in vae-m1, vae-m2, sdgm and adgm (of a, too), 50 for M2 in
    vae-m1m2."""
    components: int | None = None
    """Principal components of the pixels in vae-m1, vae-m2 and vae-m1m2: 600."""
    m1_epochs: int | None = None
    """vae-m1m2: epochs of M1 before those of M2; default: half of --epochs."""
    reconstruction_weight: float | None = None
    """swwae: weight of the images' reconstruction: 1."""
    middle_weight: float | None = None
    """swwae: weight of the reconstruction between the stages: 0.2."""
    dropout_fc: float | None = None
    """swwae: dropout probability before its last layer: 0.5; 0 is Table 1's without dropout."""

    # Optimisation (Adam; the tables print 1 − β₂)
    lr_d: float = 1e-4
    """Adam learning rate of the discriminator; of a convnet."""
    beta1_d: float = 0.5
    """Adam β₁ of the discriminator."""
    beta2_d: float = 0.999
    """Adam β₂ of the discriminator."""
    lr_g: float = 1e-4
    """Adam learning rate of encoder and decoder, or of a whole vae, sdgm, adgm or swwae."""
    beta1_g: float = 0.5
    """Adam β₁ of encoder and decoder."""
    beta2_g: float = 0.999
    """Adam β₂ of encoder and decoder."""
    seed: int = 0
    """Seed of weights, data order, noise and dropout."""

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def of_model(cls, model: Model) -> Config:
        """The defaults of a model: its authors' settings where they differ from ALI's."""
        return cls(model=model, **KINDS[model].defaults)

    def replace(self, **changes: Any) -> Config:
        """This experiment with some fields changed (checked again)."""
        return dataclasses.replace(self, **changes)

    def setting(self, name: str) -> Any:
        """One of the model's own settings (ali/catalog.py), or what None means."""
        given = getattr(self, name)
        return KINDS[self.model].settings[name].value if given is None else given

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, without other models' settings; `from_dict` is the inverse."""
        plain, kind = dataclasses.asdict(self), KINDS[self.model]
        others = SETTINGS - kind.settings.keys() | (set() if kind.classifies else {"draw"})
        plain = {name: value for name, value in plain.items() if name not in others}
        plain["data_dir"] = None if self.data_dir is None else str(self.data_dir)
        plain["bn_x"] = None if self.bn_x is None else list(self.bn_x)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Config:
        """Inverse of `to_dict`. Raises UserError for an unknown key or a value of a wrong type."""
        for name, problem in problems(cls, plain):
            raise UserError(f"not a valid configuration: {name} {problem}")
        values = dict(plain)
        if values.get("data_dir") is not None:
            values["data_dir"] = Path(values["data_dir"])
        if values.get("bn_x") is not None:
            values["bn_x"] = tuple(values["bn_x"])
        return cls(**values)


def _check(config: Config) -> None:
    """Raises UserError, one line, for the first value outside its domain."""

    def need(holds: bool, name: str, domain: str) -> None:
        if not holds:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} must be {domain}, not {getattr(config, name)!r}")

    named = {"data": DataName, "precision": Precision, "model": Model}
    for name, literal in (named | {"image_size": Literal[32, 64], "modes": Literal[9, 25]}).items():
        choices = get_args(literal)
        need(getattr(config, name) in choices, name, "one of " + ", ".join(map(str, choices)))
    for who in ("encoder", "decoder", "discriminator"):
        slope = getattr(config, f"slope_{who}")
        need(slope is None or 0 <= slope <= 1, f"slope_{who}", "in [0, 1]")
    for part in ("x", "z", "xz"):
        dropout = getattr(config, f"dropout_{part}")
        need(dropout is None or 0 <= dropout < 1, f"dropout_{part}", "in [0, 1)")
    for name in ("beta1_d", "beta2_d", "beta1_g", "beta2_g"):
        need(0 <= getattr(config, name) < 1, name, "in [0, 1)")
    std = config.weight_std
    need(std is None or 0 < std < float("inf"), "weight_std", "a positive number")
    for name in ("lr_d", "lr_g"):
        need(0 < getattr(config, name) < float("inf"), name, "a positive number")
    for name in ("epochs", "labels", "draws", "eval_every"):
        value = getattr(config, name)
        need(value is None or value >= 1, name, "at least 1")
    need(1 <= config.levels <= MAX_LEVELS, "levels", f"from 1 to {MAX_LEVELS}")
    need(config.batch_size >= 2, "batch_size", "at least 2 (batch norm needs two images)")
    need(0 < config.width <= 8, "width", "in (0, 8]")
    size, points = config.train_size, config.data == "mixture"
    need(size is None or size >= 1, "train_size", "at least 1")
    need(not points or not size or size <= MAX_POINTS, "train_size", f"at most {MAX_POINTS}")
    need(0 <= config.seed <= MAX_SEED, "seed", f"from 0 to {MAX_SEED}")
    need(config.draw >= 0, "draw", "0 or more")
    need(
        config.attribute is None or config.data == "celeba",
        "attribute",
        "left out with other data than celeba",
    )
    _check_model(config, need)
    one_z = "z" not in KINDS[config.model].parts
    need(not one_z or config.levels == 1, "levels", f"1 for a {config.model}, which has one z")
    need(config.sigma in ("exp", "sigmoid"), "sigma", "exp or sigmoid")
    sure = config.data == "mixture" and config.levels == 1  # Fig. 7: x and noise → z
    used = config.sigma == "exp" or not (one_z or sure)
    need(used, "sigma", "exp here, where the encoder has no σ (a model without ALI's, or Fig. 7)")


def _check_model(config: Config, need: Callable[[bool, str, str], None]) -> None:
    """Checks the settings that only some models have, and those that only some lack."""
    kind = KINDS[config.model]
    for name in sorted(SETTINGS - kind.settings.keys()):
        need(getattr(config, name) is None, name, f"left out with --model {config.model}")
    if not kind.parts:
        tables = ("slope_encoder", "slope_decoder", "slope_discriminator", "weight_std", "bn_x")
        for name in (*tables, "dropout_x", "dropout_z", "dropout_xz"):
            need(getattr(config, name) is None, name, f"left out with --model {config.model}")
    two = config.epochs > 1 or config.model != "vae-m1m2"
    need(two, "epochs", "2 or more, as M2 is trained after M1")
    choices = (None, "mean", "sample")
    need(config.predict_z in choices, "predict_z", "mean or sample")
    for name in ("z_size", "components", "m1_epochs"):
        value = getattr(config, name)
        need(value is None or 1 <= value <= MAX_SIZE, name, f"from 1 to {MAX_SIZE}")
    m1 = config.m1_epochs
    need(m1 is None or m1 < config.epochs, "m1_epochs", "below --epochs: M2 is trained after it")
    for name in ("label_weight", "known_weight", "reconstruction_weight", "middle_weight"):
        value = getattr(config, name)
        need(value is None or 0 <= value < float("inf"), name, "0 or more")
    dropout = config.dropout_fc
    need(dropout is None or 0 <= dropout < 1, "dropout_fc", "in [0, 1)")
