"""A sweep in Python: its trials and learning curves as DataFrames, its best networks."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ali.errors import UserError
from ali.metrics import EPOCH
from sweeps.engine.confirmation import MIN_FREEDOM, estimates
from sweeps.engine.dimensions import label
from sweeps.engine.estimate import Estimate
from sweeps.engine.formatting import varied
from sweeps.engine.journal import OBJECTIVE
from sweeps.engine.options import JOURNAL, OLD_OPTIONS, OPTIONS, Location, Options
from sweeps.engine.results import TrialResult, load_study, ranked, valued
from sweeps.engine.saved_options import is_behind, saved_options
from sweeps.engine.scripts import script_command
from sweeps.engine.tracking import runs
from sweeps.engine.tracking.client import connect
from sweeps.engine.tracking.schema import (
    KIND_TRIAL,
    TOTAL_CORE_SECONDS,
    TOTAL_EVAL_SECONDS,
    TOTAL_TRAIN_SECONDS,
    TRIAL,
)

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from ali.trained import TrainedNetworks

AT_ONCE = 8  # requests for learning curves


@dataclass(frozen=True)
class Trial(TrialResult):
    """A trial of a sweep that was loaded; its checkpoint, if it was kept, holds its networks.

    Attributes:
        expected: its configuration's mean objective, estimated from all runs; None if none has
            completed.
        location: its sweep's.
    """

    expected: Estimate | None = None
    location: Location = field(kw_only=True, repr=False)

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def networks(self, full_training: bool = False) -> TrainedNetworks:
        """Its networks from the last checkpoint, or from its full training by sweeps/best.py.

        Raises UserError if there is none: only the best ended trials' are kept (--keep).
        """
        from ali.trained import TrainedNetworks

        problems = []
        for folder in self._checkpoints(f"best-{self.trial_id}" if full_training else ""):
            try:
                with _local(self.location, folder) as local:
                    return TrainedNetworks.load(local)
            except (UserError, OSError) as problem:  # damaged: try the previous
                problems.append(str(problem))
        best = script_command("best.py", *self.location.arguments())
        missing = f"the full training of trial {self.trial_id}" if full_training else self.trial_id
        way_on = f"{best} trains the best" if full_training else "those of the best are (--keep)"
        raise UserError(
            "; ".join(problems)
            or f"no checkpoint of {missing} is in {self.location.storage.folder}: {way_on}"
        )

    def _checkpoints(self, full: str) -> Iterator[str]:
        """Folders, the newest first."""
        own = self.location.folder / full / "checkpoint"
        if full and own.exists():
            yield str(own)
        yield from reversed(self.location.storage.checkpoints(full or self.trial_id))


class LoadedSweep:
    """A sweep as it was when it was loaded; call `sweeps.load` again for newer results."""

    def __init__(self, location: Location) -> None:
        with _journal_folder(location) as here:
            options = saved_options(here)
            study = load_study(here)
            self.options: Options = replace(options, output_dir=location.output_dir)
            location = replace(location, storage_path=location.storage_path or options.storage_path)
            self._frozen = study.get_trials(deepcopy=False)
            self._known = study.user_attrs
            self.direction = study.direction.name.lower()
        self.location, self.name = location, location.name
        expected = estimates(self._frozen)
        self.trials: list[Trial] = [
            Trial(
                **{f.name: getattr(trial, f.name) for f in fields(TrialResult)},
                expected=expected.get(int(trial.confirms or trial.trial_id)),
                location=location,
            )
            for trial in ranked(self._frozen)
            if trial.config
        ]

    def __repr__(self) -> str:
        ended = sum(trial.ending is not None for trial in self.trials)
        return f"<sweep {self.name}: {len(self.trials)} trials, {ended} ended>"

    @cached_property
    def objective(self) -> str:
        """The metric that trials are compared by."""
        if OBJECTIVE in self._known:
            return self._known[OBJECTIVE]
        client, experiment, _ = self._mlflow  # of an earlier version
        return runs.objective_of(runs.require_sweep(client, experiment, self.name))

    @property
    def best(self) -> Trial:
        """The best of the trials that completed. Raises UserError if none has."""
        if not self.trials or not self.trials[0].complete:
            raise UserError(f"no trial of sweep {self.name!r} has completed its full budget yet")
        return self.trials[0]

    def trial(self, name: str) -> Trial:
        """A trial by its id. Raises UserError if there is none."""
        for trial in self.trials:
            if trial.trial_id == name:
                return trial
        known = ", ".join(sorted(trial.trial_id for trial in self.trials)) or "none"
        raise UserError(f"sweep {self.name!r} has no trial {name!r}; it has {known}")

    def dataframe(self, metrics: bool = True) -> pd.DataFrame:
        """One row per trial, the best first; the index is its id.

        Columns: the objective after its last epoch, what to expect of its configuration with
        another seed (mean, 95 % interval), how it ended, epochs, seed, the trial that it confirms,
        the hyperparameters, and, unless `metrics` is False, the last value of each other metric and
        the seconds that it took, from MLflow. Raises UserError if MLflow cannot be reached.
        """
        import pandas as pd

        found = self._runs if metrics else {}
        names = self._hyperparameters()
        rows = []
        for trial in self.trials:
            mean, low, high = _expected(trial)
            row: dict[str, Any] = {"trial_id": trial.trial_id, self.objective: trial.value}
            row |= {"expected": mean, "expected_low": low, "expected_high": high}
            row["end_state"] = trial.ending.state.value if trial.ending else "not ended"
            row["end_reason"] = trial.ending.reason if trial.ending else ""
            row |= {"epochs": max(trial.values, default=0), "seed": trial.seed}
            row["confirms"] = trial.confirms
            row |= {name: label(name, trial.config[name]) for name in names}
            last = found[trial.trial_id].data.metrics if trial.trial_id in found else {}
            rows.append(row | _measured(last, row))
        columns = _columns(rows) or ["trial_id", self.objective]
        return pd.DataFrame(rows, columns=columns).set_index("trial_id")

    def curves(self, metrics: bool = True) -> pd.DataFrame:
        """Learning curves: one row per trial and epoch, one column per metric.

        The objective is from the study; unless `metrics` is False, all others are from MLflow.
        Raises UserError if that cannot be reached.
        """
        import pandas as pd

        rows: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        for trial in self.trials:
            for epoch, value in trial.values.items():
                rows[trial.trial_id, epoch][self.objective] = value
        if metrics:
            client, _, by_id = self._mlflow
            asked = [
                (name, run.info.run_id, key)
                for name, run in sorted(by_id.items())
                for key in sorted(run.data.metrics.keys() - {EPOCH, self.objective})
            ]
            with ThreadPoolExecutor(AT_ONCE) as pool:  # a server takes a while for each
                histories = pool.map(lambda one: client.get_metric_history(*one[1:]), asked)
                for (name, _, key), history in zip(asked, histories, strict=True):
                    for point in history:
                        rows[name, point.step][key] = point.value
        tidy = [
            {"trial_id": name, "epoch": epoch} | rows[name, epoch] for name, epoch in sorted(rows)
        ]
        first = ["trial_id", "epoch", self.objective]
        return pd.DataFrame(tidy, columns=[*first, *(c for c in _columns(tidy) if c not in first)])

    def importance(self) -> pd.DataFrame:
        """Share of each hyperparameter in what makes trials good, largest first, by PED-ANOVA.

        `low` and `high` are a 90 % interval; `exceeds_chance`: whether it is larger than what
        shuffled values reach. Empty with fewer than `sweeps.engine.importance.MIN_TRIALS` trials.
        """
        import pandas as pd

        from sweeps.engine.importance import importance

        found = importance(valued(self._frozen))
        columns = ["hyperparameter", "share", "low", "high", "exceeds_chance"]
        rows = [(s.name, s.value, s.low, s.high, s in found.significant) for s in found.shares]
        return pd.DataFrame(rows, columns=columns).set_index("hyperparameter")

    def _hyperparameters(self) -> list[str]:
        """Fields of Config that are searched, or in which trials differ."""
        shown = varied([trial.config for trial in self.trials])
        return [name for names in shown.values() for name in names]

    @property
    def _runs(self) -> dict[str, Run]:
        return self._mlflow[2]

    @cached_property
    def _mlflow(self) -> tuple[MlflowClient, str, dict[str, Run]]:
        """A client, the experiment, and the trials' runs by id."""
        uri = self.location.tracking_uri or self.options.uri
        client = connect(uri, existing=True)
        experiment = runs.experiment_of(client, self.name)
        found = runs.find_runs(client, experiment, sweep=self.name, kind=KIND_TRIAL)
        return client, experiment, {run.data.tags[TRIAL]: run for run in found}


def load(
    name: str | Location,
    output_dir: Path | str | None = None,
    storage_path: str | None = None,
    tracking_uri: str | None = None,
) -> LoadedSweep:
    """A sweep by its name, running or ended, or by the `Options` that it was launched with.

    The other arguments are those of `Location`, with the same defaults. Only reads. Raises
    UserError if there is no such sweep, naming those that there are.
    """
    if isinstance(name, str):
        places: dict[str, Any] = {"output_dir": output_dir and Path(output_dir)}
        places |= {"storage_path": storage_path, "tracking_uri": tracking_uri}
        name = Location(name=name, **{key: value for key, value in places.items() if value})
    return LoadedSweep(Location(**{f.name: getattr(name, f.name) for f in fields(Location)}))


@contextmanager
def _journal_folder(location: Location) -> Iterator[Location]:
    """Where the sweep's journal and options can be read: here, or copies of a bucket's."""
    storage = location.storage
    if not (storage.remote and is_behind(location)):
        yield location
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = replace(location, output_dir=Path(folder))
        for name in (JOURNAL, OLD_OPTIONS, OPTIONS):
            storage.fetch(copy.folder / name)
        yield copy if (copy.folder / JOURNAL).exists() else location


@contextmanager
def _local(location: Location, folder: str) -> Iterator[Path]:
    if (
        Path(folder).exists() and not folder.startswith(location.storage.folder)
    ) or not location.storage.remote:
        yield Path(folder)
    else:
        with location.storage.local(folder) as path:
            yield path


def _expected(trial: Trial) -> tuple[float, float, float]:
    known = trial.expected
    if known is None:
        return math.nan, math.nan, math.nan
    low, high = known.interval if known.freedom >= MIN_FREEDOM else (math.nan, math.nan)
    return known.mean, low, high


def _measured(last: Mapping[str, float], row: Mapping[str, Any]) -> dict[str, float]:
    """What MLflow has of a trial's last epoch: the seconds it took, and the other metrics."""
    totals = (TOTAL_TRAIN_SECONDS, TOTAL_EVAL_SECONDS, TOTAL_CORE_SECONDS)
    found: dict[str, float] = {}
    if TOTAL_TRAIN_SECONDS in last:
        found["seconds"] = last[TOTAL_TRAIN_SECONDS] + last.get(TOTAL_EVAL_SECONDS, 0.0)
    others = sorted(last.keys() - row.keys() - {EPOCH, *totals})
    return found | {name: last[name] for name in others}


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """All keys, in the order in which they come up."""
    return list(dict.fromkeys(key for row in rows for key in row))
