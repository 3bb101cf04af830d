"""Fig. 7: how many modes of a Gaussian mixture ALI covers, and a GAN of the same networks.

    python benchmarks/mixture.py [--modes 9] [--seeds 5] [--epochs 24] [--picture FILE]

An epoch is 100,000 points, 250 steps of 400. Both models have the same decoder and discriminator,
but for the latter's input, and the same settings. A mode is covered when of 10,000 samples a tenth
of its fair share is within 3σ of its centre; "near" is the share of samples within 3σ of any. Means
over seeds ± their standard deviation.

The settings were searched for with ALI, at an eighth of the paper's passes over the data. The
paper's own: --width 1 --batch-size 100 --lr 1e-5 --beta1 0.5 --beta2 0.999 --epochs 200, and its
dropout, which --dropout replaces (none here; --dropout table leaves the table's).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ali import data, experiment, figures
from ali.config import EPOCH, MODES_MISSED, NEAR_MODES, RECONSTRUCTION_DISTANCE, Config
from ali.networks import ALI

Seen = list[dict[str, float]]  # the metrics of each evaluation


def train(config: Config) -> tuple[Seen, ALI]:
    torch.set_num_threads(1)
    epochs = list(experiment.run(config, data.load(config), device=torch.device("cpu")))
    return [metrics for _, metrics in epochs if MODES_MISSED in metrics], epochs[-1][0].networks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--modes", type=int, default=9, choices=(9, 25), help="of the mixture")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each model")
    parser.add_argument("--epochs", type=int, default=24, help="of 100,000 points")
    parser.add_argument("--width", type=float, default=0.5, help="1: the paper's layers")
    parser.add_argument("--batch-size", type=int, default=400, help="points a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's α, of D and of G")
    parser.add_argument("--beta1", type=float, default=0.0, help="Adam's β₁, of both")
    parser.add_argument("--beta2", type=float, default=0.9, help="Adam's β₂, of both")
    parser.add_argument("--dropout", type=_dropout, default=0.0, help='in D; "table": as in Fig. 7')
    parser.add_argument("--picture", type=Path, help="PNG of Fig. 7, of the first seed")
    options = parser.parse_args()
    config = Config(
        data="mixture",
        modes=options.modes,
        width=options.width,
        batch_size=options.batch_size,
        dropout_xz=options.dropout,
        lr_d=options.lr,
        lr_g=options.lr,
        beta1_d=options.beta1,
        beta1_g=options.beta1,
        beta2_d=options.beta2,
        beta2_g=options.beta2,
        epochs=options.epochs,
        eval_every=max(1, options.epochs // 6),
        precision="fp32",
    )
    steps_an_epoch = len(data.load(config).train) // config.batch_size
    models = {name: config.replace(model=name) for name in ("ali", "gan")}
    runs = [c.replace(seed=seed) for seed in range(options.seeds) for c in models.values()]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        found = pool.map(train, runs, chunksize=1)
    print(f"{options.modes} modes, lr {options.lr:g}, {options.seeds} seeds")
    print(f"{'':5} {'steps':>7} {'modes covered':>16} {'near':>14} {'reconstruction':>16}")
    for i, name in enumerate(models):
        for rows in zip(*(seen for seen, _ in found[i::2]), strict=True):
            show = partial(_spread, rows)
            covered = show(lambda row: options.modes - row[MODES_MISSED])
            near = show(lambda row: row[NEAR_MODES])
            distance = show(lambda row: row.get(RECONSTRUCTION_DISTANCE, float("nan")))
            steps = int(rows[0][EPOCH]) * steps_an_epoch
            print(f"{name:5} {steps:7} {covered:>16} {near:>14} {distance if i == 0 else '':>16}")
    if options.picture:
        (_, ali), (_, gan) = found[:2]
        Image.fromarray(figures.mixture_panels(ali, config, gan)).save(options.picture)


def _dropout(text: str) -> float | None:
    return None if text == "table" else float(text)


def _spread(rows, value) -> str:
    values = [value(row) for row in rows]
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main()
