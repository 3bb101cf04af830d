"""The protocol of §4.4 at full size, ours beside scikit-learn's LinearSVC called plainly.

    python benchmarks/evaluation.py [--draws 10] [--penalties 6] [--width 1.0]

1000 labels, 10,000 validation and 26,032 test images, the 50 penalties C of the authors' grid, 5376
features of an encoder with random weights, its batch norm on the statistics of the data. Ours is
timed whole: the grid, and a machine for each of --draws draws, errors included. LinearSVC (its
defaults: squared hinge, L2, at most 1000 steps of the dual) is timed on one class of the ten,
which it fits one after the other, at --penalties of the 50, spread evenly, and at the C picked; its
totals are the mean of those times 50, and 100 draws. Where its limit of steps ends it, its errors
are not those of the minimum, so errors are compared with its primal solver, to a tolerance of 1e-8.

Last comes what an evaluation inside a sweep takes beside an epoch of SVHN's training images (73,257
less those of validation), which is computed from 20 steps of 100 images.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from ali import data
from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config
from ali.evaluation import protocol, quality, svm
from ali.models import inference
from ali.training import step
from ali.training.state import State

T = TypeVar("T")
LABELS, VALID, TEST, MACHINES, CLASSES = 1000, 10_000, 26_032, 100, 10
TRAIN, BATCH, STEPS = 73_257 - VALID, 100, 20


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def encoder(config: Config, dataset: data.Dataset) -> State:
    state = State.create(config, dataset.train, "cpu")
    state.networks.train()
    with torch.no_grad():
        for x in inference.chunks(state.networks, dataset.train.x[:2500]):
            for _ in range(12):  # 0.95¹² = 0.54 a chunk: the initial statistics fade out
                state.networks.require_encoder()(x)
    return state


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=10, help="of the 100 machines of ours, timed")
    parser.add_argument("--penalties", type=int, default=6, help="of the 50, of LinearSVC, timed")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of the feature maps")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    check_at_least(1, draws=options.draws, penalties=options.penalties, threads=options.threads)
    torch.set_num_threads(options.threads)
    config = Config(width=options.width, train_size=2 * VALID, labels=LABELS, precision="fp32")
    dataset = data.load(config)
    images = data.load_test(config)
    networks = encoder(config, dataset).networks
    assert dataset.labelled.y is not None and dataset.valid.y is not None and images.y is not None

    def encode(x: np.ndarray) -> np.ndarray:
        return protocol.features(networks, x)

    rows = [
        data.draw_labelled(
            dataset.labelled.y, LABELS, np.random.default_rng(i), True, dataset.classes
        )
        for i in range(options.draws)
    ]
    took, valid = seconds(lambda: encode(dataset.valid.x[:VALID]))
    valid_y = dataset.valid.y[:VALID]
    test, test_y = encode(images.x[:TEST]), images.y[:TEST]
    draws = [(encode(dataset.labelled.x[r]), dataset.labelled.y[r]) for r in rows]
    x, y = draws[0]
    print(f"{x.shape[1]} features, {len(valid):,} validation and {len(test):,} test images")
    print(f"encoding the validation images: {took:.1f} s")
    before = _peak_gib()

    grid, curve = seconds(lambda: svm.fit(x, y).errors(valid, valid_y))
    c = svm.GRID[curve.argmin()]
    many, errors = seconds(
        lambda: np.array([svm.fit(*draw, [c]).errors(test, test_y)[0] for draw in draws])
    )
    print(f"peak memory {before:.2f} GiB with all features, {_peak_gib():.2f} GiB after the fits")

    def plain(labels: np.ndarray, c: float, **others: object) -> LinearSVC:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LinearSVC(C=c, **others).fit(x, labels)

    print(f"\n{'C':>10} {'LinearSVC s':>12} {'its steps':>10}")
    times = []
    shown = np.linspace(0, len(svm.GRID) - 1, options.penalties).round().astype(int)
    for at in [*svm.GRID[shown], c]:
        took, machine = seconds(partial(plain, y == 0, at))
        times.append(CLASSES * took)
        steps = f"{machine.n_iter_}" + " (its limit)" * (machine.n_iter_ >= machine.max_iter)
        print(f"{at:10.2g} {times[-1]:12.1f} {steps:>10}")
    at_c = times.pop()
    converged = plain(y, c, dual=False, tol=1e-8, max_iter=10_000)
    error = (converged.predict(test) != test_y).mean()
    print(f"test error at the C picked: {errors[0]:.2%}, by LinearSVC in the primal {error:.2%}\n")

    theirs, mine = {"50 penalties": 50 * float(np.mean(times))}, {"50 penalties": grid}
    theirs["100 draws"], mine["100 draws"] = MACHINES * at_c, MACHINES * many / options.draws
    print(f"{'':14} {'LinearSVC s':>12} {'ours s':>10} {'times':>8}")
    for row in theirs:
        print(f"{row:14} {theirs[row]:12.1f} {mine[row]:10.1f} {theirs[row] / mine[row]:8.1f}")
    total, own = sum(theirs.values()), sum(mine.values())
    print(f"{'together':14} {total:12.1f} {own:10.1f} {total / own:8.1f}")
    in_a_sweep(config.replace(precision="auto", batch_size=BATCH), dataset)


def in_a_sweep(config: Config, dataset: data.Dataset) -> None:
    state, dataset = encoder(config, dataset), replace(dataset, valid=dataset.valid[:VALID])
    images = torch.from_numpy(np.array(dataset.train.x[: STEPS * BATCH]))
    step.train_epoch(state, images)  # warm up
    steps, _ = seconds(lambda: step.train_epoch(state, images))
    epoch = steps / STEPS * TRAIN / BATCH
    print(f"\nan epoch of {TRAIN:,} images trains for {epoch:.0f} s in {config.precision}; of that")
    for name, measure in (("val_error", protocol.val_error), ("quality", quality.measure)):
        took, _ = seconds(partial(measure, state.networks, dataset, config))
        print(f"{name:14} {took:6.1f} s {took / epoch:8.1%}")


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(command)
