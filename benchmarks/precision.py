"""What bf16 costs in quality: val_error and sample_distance beside fp32, over seeds, equal epochs.

    python benchmarks/precision.py --data-dir DIR [--seeds 3] [--epochs 24] [--width 0.25]

SVHN's files, or crops in their layout, at the settings of `sweeps.short_budget`. As many runs at a
time as there are cores, one thread each. Means over seeds ± their standard deviation; the last row
is Welch's t of the difference.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

import numpy as np
import optuna
import torch
from scipy.stats import ttest_ind

from ali import data, experiment
from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config
from ali.metrics import CODE_USE, SAMPLE_DISTANCE, VAL_ERROR
from sweeps import Space, short_budget
from sweeps.engine.space import suggest

MEASURES = (VAL_ERROR, SAMPLE_DISTANCE, CODE_USE)


def run(config: Config) -> list[float]:
    torch.set_num_threads(1)
    *_, (_, last) = experiment.run(config, data.load(config), device=torch.device("cpu"))
    return [last[key] for key in MEASURES]


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of SVHN's files")
    parser.add_argument("--seeds", type=int, default=3, help="runs in each precision")
    parser.add_argument("--epochs", type=int, default=24, help="of each run")
    parser.add_argument("--width", type=float, default=0.25, help="multiplier of feature maps")
    options = parser.parse_args()
    check_at_least(1, seeds=options.seeds, epochs=options.epochs)
    base = Config(
        data="svhn",
        data_dir=options.data_dir,
        width=options.width,
        batch_size=32,
        epochs=options.epochs,
        eval_every=options.epochs,
    )
    point = suggest(optuna.trial.FixedTrial(short_budget(base).params), Space(), base)
    base = Config.from_dict({**base.to_dict(), **point})
    precisions = ("fp32", "bf16")
    runs = [base.replace(precision=p, seed=s) for p in precisions for s in range(options.seeds)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        found = np.array(pool.map(run, runs, chunksize=1)).reshape(
            len(precisions), options.seeds, -1
        )
    print(f"{options.seeds} seeds, {options.epochs} epochs, width {options.width:g}")
    print(f"{'':6}" + "".join(f"{key:>22}" for key in MEASURES))
    for precision, its in zip(precisions, found, strict=True):
        cells = zip(its.mean(0), its.std(0, ddof=1), strict=True)
        print(f"{precision:6}" + "".join(f"{mean:>13.4f} ± {std:.4f}" for mean, std in cells))
    welch = ttest_ind(*found, equal_var=False)
    cells = zip(welch.statistic, welch.pvalue, strict=True)
    print(f"{'t':6}" + "".join(f"{t:>10.2f} (p = {p:.2f})" for t, p in cells))


if __name__ == "__main__":
    main(command)
