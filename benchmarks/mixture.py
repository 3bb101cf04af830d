"""Fig. 7: how many modes of a Gaussian mixture ALI covers, and a GAN of the same networks.

    python benchmarks/mixture.py [--modes 9] [--seeds 5] [--epochs 20] [--lr 1e-4] [--picture FILE]

An epoch is 1,000 steps of 100 points. Both models have the same decoder and discriminator, but for
the latter's input. A mode is covered when of 10,000 samples a tenth of its fair share is within 3σ
of its centre; "near" is the share of samples within 3σ of any. Means over seeds ± their standard
deviation.
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
    parser.add_argument("--epochs", type=int, default=20, help="thousands of steps")
    parser.add_argument("--lr", type=float, default=1e-4, help="Adam's α, of D and of G")
    parser.add_argument("--picture", type=Path, help="PNG of Fig. 7, of the first seed")
    options = parser.parse_args()
    config = Config(
        data="mixture",
        modes=options.modes,
        lr_d=options.lr,
        lr_g=options.lr,
        epochs=options.epochs,
        eval_every=max(1, options.epochs // 5),
    )
    data.load(config)
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
            steps = int(rows[0][EPOCH]) * 1000
            print(f"{name:5} {steps:7} {covered:>16} {near:>14} {distance if i == 0 else '':>16}")
    if options.picture:
        (_, ali), (_, gan) = found[:2]
        Image.fromarray(figures.mixture_panels(ali, config, gan)).save(options.picture)


def _spread(rows, value) -> str:
    values = [value(row) for row in rows]
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main()
