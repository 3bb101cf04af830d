"""Fig. 7: how many modes of a Gaussian mixture ALI covers, and a GAN of the same networks.

    python benchmarks/mixture.py [--modes 9] [--seeds 5] [--epochs N] [--picture FILE]

An epoch is 100,000 points. Three rows of runs: ALI at OF_ALI's settings, with two stochastic
layers (§2.6); a GAN of the same networks, but for z₁ (a GAN has one z), at the same settings; and
the GAN at its own, OF_GAN. The settings were searched for on seeds of 100 and above
(benchmarks/README.md); the seeds reported are 0, 1, … Means over seeds ± their standard deviation.

A mode is covered if a tenth of its fair share of 10,000 samples is within 3σ of its centre;
"by one" is the authors' rule, by which one sample there is enough; "near" is the share of samples
within 3σ of any. An option for a setting replaces it in all three rows. The paper's own settings:
--width 1 --batch-size 100 --lr-d 1e-5 --lr-g 1e-5 --beta1 0.5 --beta2 0.999 --dropout table
--slope 0 --levels 1 --epochs 200.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ali import data, experiment
from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config, Model
from ali.data import mixture
from ali.evaluation import quality
from ali.figures.mixture import mixture_panels
from ali.metrics import EPOCH, MODES_MISSED, NEAR_MODES, RECONSTRUCTION_DISTANCE
from ali.models import inference
from ali.models.networks import ALI

BY_ONE = "modes_by_one"  # modes that at least one sample falls in
Seen = list[dict[str, float]]  # the metrics of each evaluation


@dataclass(frozen=True)
class Settings:
    """What a search chose; dropout None: as in Fig. 7."""

    width: float
    batch_size: int
    lr_d: float
    lr_g: float
    beta1: float
    beta2: float
    dropout: float | None
    slope: float
    levels: int  # stochastic layers of ALI

    def config(self, model: Model) -> Config:
        return Config(
            data="mixture",
            model=model,
            levels=self.levels if model == "ali" else 1,  # a GAN has one z
            precision="fp32",
            width=self.width,
            batch_size=self.batch_size,
            lr_d=self.lr_d,
            lr_g=self.lr_g,
            beta1_d=self.beta1,
            beta1_g=self.beta1,
            beta2_d=self.beta2,
            beta2_g=self.beta2,
            dropout_xz=self.dropout,
            slope_encoder=self.slope,
            slope_decoder=self.slope,
        )


OF_ALI = Settings(
    width=0.5,
    batch_size=1000,
    lr_d=1e-3,
    lr_g=1e-3,
    beta1=0.0,
    beta2=0.99,
    dropout=0.0,
    slope=0.0,
    levels=2,
)
OF_GAN = dataclasses.replace(OF_ALI, batch_size=400, lr_d=2e-3, lr_g=2e-3, beta2=0.5)


def train(config: Config) -> tuple[Seen, ALI]:
    torch.set_num_threads(1)
    seen: Seen = []
    for state, metrics in experiment.run(config, data.load(config), device=torch.device("cpu")):
        assert isinstance(state.networks, ALI)
        networks = state.networks
        if MODES_MISSED in metrics:
            seen.append(metrics | {BY_ONE: by_one(networks, config.modes)})
    return seen, networks


def by_one(networks: ALI, modes: int) -> int:
    """Modes with at least one sample, of the same samples that MODES_MISSED is counted on."""
    with inference.evaluating(networks):
        z = networks.decoder.sample_prior(quality.POINTS, inference.normal(quality.SEED, networks))
        points = networks.decoder(*z).flatten(1).numpy()
    return int((mixture.count_by_mode(points, modes) > 0).sum())


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--modes", type=int, default=9, choices=(9, 25), help="of the mixture")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each row")
    parser.add_argument("--epochs", type=int, default=96, help="of 100,000 points")
    parser.add_argument("--picture", type=Path, help="PNG of Fig. 7, of the first seed")
    parser.add_argument("--width", type=float, help="1: the paper's layers")
    parser.add_argument("--batch-size", type=int, help="points a step")
    parser.add_argument("--lr-d", type=float, help="Adam's α of D")
    parser.add_argument("--lr-g", type=float, help="Adam's α of G")
    parser.add_argument("--beta1", type=float, help="Adam's β₁, of both")
    parser.add_argument("--beta2", type=float, help="Adam's β₂, of both")
    parser.add_argument("--dropout", help='in D; "table": as in Fig. 7')
    parser.add_argument("--slope", type=float, help="of encoder and decoder; 0: ReLU")
    parser.add_argument("--levels", type=int, help="stochastic layers of ALI")
    options = parser.parse_args()
    check_at_least(1, seeds=options.seeds, epochs=options.epochs)
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    if "dropout" in given:
        given["dropout"] = None if options.dropout == "table" else float(options.dropout)
    of_ali, of_gan = (dataclasses.replace(settings, **given) for settings in (OF_ALI, OF_GAN))
    rows = {"ALI": of_ali.config("ali"), "GAN": of_ali.config("gan")}
    if of_gan != of_ali:
        rows["GAN, its own"] = of_gan.config("gan")
    budget = {"epochs": options.epochs, "eval_every": max(1, options.epochs // 6)}
    runs = [
        config.replace(seed=seed, modes=options.modes, **budget)
        for config in rows.values()
        for seed in range(options.seeds)
    ]
    print(f"{options.modes} modes, {options.seeds} seeds; {of_ali}; its own: {of_gan}")
    columns = ("modes", "by one", "near", "reconstruction")
    print(f"{'':12} {'steps':>7}", *(f"{column:>14}" for column in columns), flush=True)
    networks = {}  # of the first seed
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        found = pool.imap(train, runs)
        for name, config in rows.items():
            its = [next(found) for _ in range(options.seeds)]
            networks[name] = its[0][1]
            for at_once in zip(*(seen for seen, _ in its), strict=True):
                print(f"{name:12}", _line(config, at_once), flush=True)
    if options.picture:
        picture = mixture_panels(networks["ALI"], runs[0], networks["GAN"])
        Image.fromarray(picture).save(options.picture)


def _line(config: Config, at_once: tuple[dict[str, float], ...]) -> str:
    """Line for one evaluation of every seed: steps, each measure's mean ± standard deviation."""
    show = partial(_spread, at_once)
    cells = [
        show(lambda seen: config.modes - seen[MODES_MISSED]),
        show(lambda seen: seen[BY_ONE]),
        show(lambda seen: seen[NEAR_MODES]),
    ]
    if config.model == "ali":
        cells.append(show(lambda seen: seen[RECONSTRUCTION_DISTANCE]))
    steps = int(at_once[0][EPOCH]) * (len(data.load(config).train) // config.batch_size)
    return " ".join([f"{steps:7}", *(f"{cell:>14}" for cell in cells)])


def _spread(
    at_once: tuple[dict[str, float], ...], value: Callable[[dict[str, float]], float]
) -> str:
    values = [value(seen) for seen in at_once]
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main(command)
