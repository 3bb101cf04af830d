"""One experiment as a generator of epochs; the command line, the trainable and best.py drive it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import torch

from ali import data, evaluate, train
from ali.config import EPOCH, VAL_ERROR, Config
from ali.data import Dataset
from ali.errors import NonFiniteError
from ali.state import State

TRAIN_SECONDS = "train_seconds"  # wall time of the epoch's training
EVAL_SECONDS = "eval_seconds"  # wall time of its evaluation, where there was one


def run(
    config: Config,
    dataset: Dataset | None = None,
    state: State | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Trains from `state` (None: a new one) to config.epochs, yielding after each epoch.

    Yields (state, metrics): always the same State, changed in place; metrics hold EPOCH, D_LOSS,
    G_LOSS, IMAGES_PER_SECOND and TRAIN_SECONDS, and every config.eval_every epochs and after the
    last VAL_ERROR and EVAL_SECONDS. Training is the same to the bit whatever is evaluated.
    Ends at once where the state has its epochs already.

    Raises NonFiniteError when training diverges, UserError for what the data cannot give.
    """
    dataset = data.load(config) if dataset is None else dataset
    if state is None:
        state = State.create(config, dataset.train, device or train.device())
    with warnings.catch_warnings():  # the images are mapped read-only, and only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images = torch.from_numpy(dataset.train.x).to(state.device)
    while state.epoch < config.epochs:
        start = time.perf_counter()
        metrics = train.train_epoch(state, images)
        metrics |= {EPOCH: state.epoch, TRAIN_SECONDS: time.perf_counter() - start}
        if state.epoch % config.eval_every == 0 or state.epoch == config.epochs:
            start = time.perf_counter()
            metrics[VAL_ERROR] = _val_error(state, dataset, config)
            metrics[EVAL_SECONDS] = time.perf_counter() - start
        yield state, metrics


def _val_error(state: State, dataset: Dataset, config: Config) -> float:
    try:
        return evaluate.val_error(state.networks, dataset, config)
    except FloatingPointError as error:
        raise NonFiniteError(state.step, ("encoder features",)) from error
