"""What a trial runs: the interface between the sweep machinery and a model, and ALI behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali.config import Config
from ali.metrics import D_LOSS, G_LOSS, LOSS, SAMPLE_DIVERSITY
from sweeps.engine.endings import Ending, EndState

if TYPE_CHECKING:
    import numpy as np

    from ali.data import Dataset
    from ali.training.state import State

Metrics = dict[str, float]

LARGE_LOSS = 100.0  # nats, a mean over an epoch
EXPLODED_EPOCHS = 2  # such epochs in a row: one may be due to a single step, at one huge σ
IDENTICAL = 0.05  # sample_diversity below which samples are the same image
COLLAPSED_EPOCHS = 3  # evaluations in a row with such samples, after different ones: a collapse
STILL_EPOCHS = 10  # the same if all were like that: samples are alike before training takes off


class Experiment(ABC):
    """A model that can be swept: subclass it to sweep another one.

    Instances travel from the driver to the workers by pickle, so they hold settings, not data. A
    process loads the data once, by `load_data`, and hands it to the other methods; "dataset" below
    is what `load_data` returned, "state" what `run` yields.
    """

    def set_threads(self, threads: int) -> None:
        """Keeps a worker process to its share of the CPUs, once. Default: torch's threads."""
        import torch

        torch.set_num_threads(threads)

    def gpu_memory(self, config: Config, dataset: Any) -> int | None:
        """About how many bytes of a GPU's memory a trial takes, CUDA's own included.

        Trials share a GPU only if they fit. Default: None, not known; a trial then has a whole
        GPU unless --gpus-per-trial says otherwise.
        """
        return None

    def unused(self, config: Config) -> dict[str, str]:
        """Fields of a configuration that nothing reads, each with the reason: "with --data svhn".

        A new sweep that sets one is refused. Default: none.
        """
        return {}

    @abstractmethod
    def load_data(self, config: Config) -> Any:
        """The data set that a configuration names.

        All trials of a sweep have the same one. Raises UserError if files are missing or broken, or
        too few for the configuration; a sweep checks this before it starts.
        """

    def check_test_data(self, config: Config) -> None:
        """Raises UserError if what the test of a full training needs is missing or broken.

        Only a new sweep calls it, before it starts. Default: nothing.
        """
        return None

    @abstractmethod
    def objective(self, config: Config, dataset: Any) -> str:
        """Name of the metric by which trials are compared unless a sweep names another.

        Lower is better, but for `ali.metrics.HIGHER_IS_BETTER`; see `Sweep.objective`.
        """

    def metric_names(self, config: Config, dataset: Any) -> Collection[str] | None:
        """Names of all metrics that `run` yields, so that another objective is checked at once.

        Default: None, not known.
        """
        return None

    @abstractmethod
    def fingerprint(self, dataset: Any) -> str:
        """A hash of the data's contents, logged with every trial."""

    def facts(self, config: Config) -> dict[str, str]:
        """What a trial's numbers depend on, to rounding, beside versions and the number of threads.

        Asked in its worker, and logged as tags. Default: nothing.
        """
        return {}

    def notes(self, dataset: Any) -> tuple[str, ...]:
        """What a user should know about the data, one line each; a sweep prints it. Default: none.

        For example that they are not the official files, or which files were left out.
        """
        return ()

    @abstractmethod
    def run(self, config: Config, dataset: Any, state: Any | None) -> Iterator[tuple[Any, Metrics]]:
        """Trains from `state` (None: from the start) to config.epochs, yielding after each epoch.

        Yields (state, metrics): the state has a method `save(folder)`, see `load_state`; metrics
        hold EPOCH and, at least after the last epoch, the objective. Yields nothing if the state
        has all its epochs. Raises NonFiniteError when training diverges.
        """

    def initial_state(self, config: Config, dataset: Any) -> Any | None:
        """A new state before its first step, whose pictures are those of epoch 0.

        Default: None: `run` makes one, without pictures.
        """
        return None

    @abstractmethod
    def load_state(self, folder: Path, config: Config) -> Any:
        """The state that `state.save(folder)` wrote, for `run` to continue from.

        Raises UserError if there is none or any of its files is damaged; an older checkpoint is
        then used. `save` must leave other files in the folder alone.
        """

    def pictures(self, state: Any, config: Config, dataset: Any) -> dict[str, np.ndarray]:
        """Pictures of an epoch, uint8 (H, W, 3) by key. Default: none."""
        return {}

    def breakdown(self, history: Sequence[Metrics]) -> Ending | None:
        """Why training cannot recover, judged by the metrics of each epoch so far. Default: None.

        The trial then ends with this `Ending`, and the search avoids similar configurations.
        """
        return None

    def baselines(self, config: Config, dataset: Any) -> Metrics:
        """Values of the objective without training, by name, logged to the sweep. Default: none."""
        return {}


class AliExperiment(Experiment):
    """ALI, or another model, as `ali` trains it. Imports are deferred: torch is slow."""

    def unused(self, config: Config) -> dict[str, str]:
        from ali.models.unused import without_effect

        return without_effect(config)

    def load_data(self, config: Config) -> Dataset:
        from ali import data

        dataset = data.load(config)
        data.check_distinct(dataset)
        return dataset

    def check_test_data(self, config: Config) -> None:
        from ali import data

        data.load_test(config)

    def objective(self, config: Config, dataset: Dataset) -> str:
        from ali.experiment import objective

        return objective(config, dataset)

    def metric_names(self, config: Config, dataset: Dataset) -> Collection[str]:
        from ali.experiment import metric_names

        return metric_names(config, dataset)

    def fingerprint(self, dataset: Dataset) -> str:
        return dataset.fingerprint

    def gpu_memory(self, config: Config, dataset: Dataset) -> int | None:
        from ali.models.memory import gpu_memory

        return gpu_memory(config, dataset.train.x.nbytes)

    def facts(self, config: Config) -> dict[str, str]:
        from ali.experiment import facts

        return facts(config)

    def notes(self, dataset: Dataset) -> tuple[str, ...]:
        return dataset.notes

    def run(
        self, config: Config, dataset: Dataset, state: State | None
    ) -> Iterator[tuple[State, Metrics]]:
        from ali.experiment import run

        return run(config, dataset, state)

    def initial_state(self, config: Config, dataset: Dataset) -> State:
        from ali.experiment import new_state

        return new_state(config, dataset)

    def load_state(self, folder: Path, config: Config) -> State:
        from ali.training.state import State
        from ali.training.step import device

        return State.load(folder, device(), config)

    def pictures(self, state: State, config: Config, dataset: Dataset) -> dict[str, np.ndarray]:
        from ali.figures.annotated import marked
        from ali.figures.grids import epoch_pictures

        pictures = epoch_pictures(state.networks, dataset, config)
        if config.data == "mixture":  # panels of Fig. 7, which have titles and axes
            return pictures
        tile = state.networks.image[-1]
        return {key: marked(key, picture, tile) for key, picture in pictures.items()}

    def breakdown(self, history: Sequence[Metrics]) -> Ending | None:
        lately = history[-EXPLODED_EPOCHS:]
        for name in (D_LOSS, G_LOSS):
            means = [m[name] for m in lately if abs(m.get(name, 0.0)) > LARGE_LOSS]
            if len(means) == EXPLODED_EPOCHS:
                shown = " and ".join(f"{mean:.3g}" for mean in means)
                reason = f"{name} {shown} nats, the means of the last epochs"
                return Ending(EndState.DIVERGED, reason)
        if LOSS in history[-1]:  # a VAE decodes to means, which are alike without a collapse
            return None
        seen = [m[SAMPLE_DIVERSITY] for m in history if SAMPLE_DIVERSITY in m]
        varied = max(seen, default=0.0) >= IDENTICAL
        epochs = COLLAPSED_EPOCHS if varied else STILL_EPOCHS
        if len(seen) >= epochs and max(seen[-epochs:]) < IDENTICAL:
            shown = ", ".join(f"{value:.3f}" for value in seen[-COLLAPSED_EPOCHS:])
            reason = f"{SAMPLE_DIVERSITY} {shown}, the last of {epochs} alike"
            return Ending(EndState.COLLAPSED, reason)
        return None

    def baselines(self, config: Config, dataset: Dataset) -> Metrics:
        from ali.experiment import baseline_errors

        return baseline_errors(config, dataset)
