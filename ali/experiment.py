"""One experiment as a generator of epochs: what the command line, a trial and best.py run."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator

import torch

from ali import data, distributed
from ali.catalog import KINDS
from ali.config import Config
from ali.data import Dataset, LabelledBatches, labelled_draw
from ali.errors import NonFiniteError
from ali.evaluation import protocol, quality
from ali.metrics import (
    ACTIVATIONS,
    COMPILED_LAYERS,
    D_LOSS,
    DEVICE,
    EPOCH,
    EVAL_SECONDS,
    G_LOSS,
    IMAGES_PER_SECOND,
    LOSS,
    MODES_MISSED,
    RAW_PIXEL_ERROR,
    SAMPLE_DISTANCE,
    TRAIN_SECONDS,
    UNTRAINED_BN_ERROR,
    UNTRAINED_ERROR,
    VAL_ERROR,
)
from ali.models import narrow
from ali.models.precision import compute_dtype
from ali.training import step
from ali.training.state import State


def run(
    config: Config,
    dataset: Dataset | None = None,
    state: State | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Trains from `state` (None: a new one) to config.epochs, yielding after each epoch.

    Yields (state, metrics). The State is always the same one, changed in place. Metrics have EPOCH,
    the losses, IMAGES_PER_SECOND and TRAIN_SECONDS; every config.evaluation_interval epochs and
    after the last also those of `evaluate`, and EVAL_SECONDS. Evaluation does not change training,
    to the bit. Yields nothing if the state already has all its epochs.

    Raises NonFiniteError if training diverges, UserError if the data does not suit the config.
    """
    dataset = data.load(config) if dataset is None else dataset
    if state is None:
        state = new_state(config, dataset, device)
    _give_labels(state, config, dataset)
    with warnings.catch_warnings():  # the images are mapped read-only, and only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images = torch.from_numpy(dataset.train.x).to(state.device)
    while state.epoch < config.epochs:
        start = time.perf_counter()
        metrics = step.train_epoch(state, images)
        metrics |= {EPOCH: state.epoch, TRAIN_SECONDS: time.perf_counter() - start}
        if state.epoch % config.evaluation_interval == 0 or state.epoch == config.epochs:
            start = time.perf_counter()
            metrics |= distributed.on_rank_zero(lambda: evaluate(state, dataset, config))
            metrics[EVAL_SECONDS] = time.perf_counter() - start
        yield state, metrics


def new_state(config: Config, dataset: Dataset, device: torch.device | None = None) -> State:
    """An untrained run. Raises UserError if the data does not suit the config."""
    data.check_distinct(dataset)
    return State.create(config, dataset.train, device or step.device(), dataset.classes)


def _give_labels(state: State, config: Config, dataset: Dataset) -> None:
    """Gives the labelled images to train with (§4.4) to a model that classifies."""
    if not KINDS[config.model].classifies:
        return
    x, y = labelled_draw(dataset, config, config.draw)
    state.labelled = LabelledBatches(
        torch.from_numpy(x).to(state.device), torch.from_numpy(y).to(state.device)
    )


def facts(config: Config) -> dict[str, str]:
    """What a run's numbers depend on, up to rounding, besides versions and the number of threads.

    By name: DEVICE ("cpu", or what the GPU is called), ACTIVATIONS ("bf16" or "fp32", which
    --precision auto leaves open), COMPILED_LAYERS (whether ali.models.narrow is used: "yes", "no").
    """
    device = step.device()
    points = config.data == "mixture"  # computed in fp32
    dtype = torch.float32 if points else compute_dtype(config.precision, device)
    return {
        DEVICE: torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        ACTIVATIONS: "bf16" if dtype == torch.bfloat16 else "fp32",
        COMPILED_LAYERS: "yes" if narrow.is_used(device, dtype) else "no",
    }


def objective(config: Config, dataset: Dataset) -> str:
    """The metric to select on, always minimised: MODES_MISSED, VAL_ERROR or SAMPLE_DISTANCE."""
    if KINDS[config.model].classifies:
        return VAL_ERROR
    if config.data == "mixture":
        return MODES_MISSED
    return SAMPLE_DISTANCE if dataset.valid.y is None else VAL_ERROR


def metric_names(config: Config, dataset: Dataset) -> set[str]:
    """Names of the metrics that `run` yields after an epoch that is evaluated."""
    losses = {D_LOSS, G_LOSS} if len(KINDS[config.model].adam) > 1 else {LOSS}
    trained = losses | {EPOCH, IMAGES_PER_SECOND, TRAIN_SECONDS, EVAL_SECONDS}
    return trained | quality.names(config) | {objective(config, dataset)}


def evaluate(state: State, dataset: Dataset, config: Config) -> dict[str, float]:
    """The metrics of quality.measure, and VAL_ERROR if the images have labels.

    Raises NonFiniteError if a metric is not finite, or the features, samples, reconstructions or
    encodings that it is computed from.
    """
    try:
        metrics = quality.measure(state.networks, dataset, config)
    except FloatingPointError as error:
        raise NonFiniteError(state.step, (str(error),)) from error
    if objective(config, dataset) == VAL_ERROR:
        try:
            metrics[VAL_ERROR] = protocol.val_error(state.networks, dataset, config)
        except FloatingPointError as error:
            raise NonFiniteError(state.step, (f"features of {VAL_ERROR}",)) from error
    if broken := tuple(name for name, value in metrics.items() if not math.isfinite(value)):
        raise NonFiniteError(state.step, broken)
    return metrics


def baseline_errors(config: Config, dataset: Dataset) -> dict[str, float]:
    """val_error without training: RAW_PIXEL_ERROR, UNTRAINED_ERROR and UNTRAINED_BN_ERROR.

    Empty if val_error is not the objective. The last two are of SVMs on features: a model that
    classifies itself does not have them.
    """
    if objective(config, dataset) != VAL_ERROR:
        return {}
    errors = {RAW_PIXEL_ERROR: protocol.raw_pixel_error(dataset, config)}
    if KINDS[config.model].classifies:
        return errors
    networks = new_state(config, dataset).networks
    errors[UNTRAINED_ERROR] = protocol.val_error(networks, dataset, config)
    protocol.update_bn_stats(networks, dataset.train.x)
    return errors | {UNTRAINED_BN_ERROR: protocol.val_error(networks, dataset, config)}
