"""Tables of learning curves in the format of Syne Tune's tabular blackboxes, read and written.

A folder holds `hyperparameters.parquet` (one row per configuration), `objectives_evaluations.npy`
(fp32: tasks, configurations, seeds, fidelities, objectives; NaN: not there),
`fidelities_values.npy` and, as JSON, `configspace`, `fidelityspace` and `metadata`. pandas and
NumPy read them; so does syne_tune.blackbox_repository.blackbox_tabular.deserialize. Here there is
one task per folder, and the fidelity is the epoch, 1 to the full budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from ali.errors import UserError
from ali.files import atomic_write, make_folder
from sweeps import Objective

EVALUATIONS, HYPERPARAMETERS = "objectives_evaluations.npy", "hyperparameters.parquet"


@dataclass(frozen=True)
class Blackbox:
    """One table.

    Attributes:
        hyperparameters: (configurations, hyperparameters), index 0 … n − 1.
        objectives: fp32 (configurations, seeds, epochs, len(names)); NaN where a run has no value.
        names: of the objectives.
        metadata: more, plain JSON types.
    """

    hyperparameters: pd.DataFrame
    objectives: np.ndarray
    names: tuple[str, ...]
    metadata: Mapping[str, Any]

    def curves(self, name: str) -> np.ndarray:
        """(configurations, seeds, epochs) of one objective."""
        return self.objectives[..., self.names.index(name)]

    def computed(self, objective: Objective) -> np.ndarray:
        """(configurations, seeds, epochs) of an objective that is arithmetic of these.

        Raises UserError if it needs others, or the higher is the better.
        """
        objective.check(self.names)
        if objective.maximize:
            raise UserError(f"--objective {objective.name} would be maximized: write its negative")
        found = np.full(self.objectives.shape[:3], np.nan)
        curves = {name: self.curves(name) for name in objective.metrics}
        known = np.isfinite([*curves.values()]).all(axis=0)
        for at in map(tuple, np.argwhere(known)):
            metrics = {name: float(curve[at]) for name, curve in curves.items()}
            objective.add_to(metrics)
            found[at] = metrics[objective.name]
        return found

    def begun(self) -> Blackbox:
        """The table without the configurations that have no run yet."""
        rows = np.isfinite(self.objectives).any(axis=(1, 2, 3))
        points = self.hyperparameters[rows].reset_index(drop=True)
        return replace(self, hyperparameters=points, objectives=self.objectives[rows])


def write(folder: Path, table: Blackbox, task: str, space: Mapping[str, BaseDistribution]) -> None:
    """Writes `table` into `folder`, one file after the other, each whole or not at all.

    Raises UserError if a file cannot be written.
    """
    make_folder(folder)
    with atomic_write(folder / HYPERPARAMETERS) as path:
        table.hyperparameters.to_parquet(path, index=False, compression="gzip")
    epochs = table.objectives.shape[2]
    arrays = {EVALUATIONS: table.objectives[None], "fidelities_values.npy": np.arange(epochs) + 1}
    for name, array in arrays.items():
        with atomic_write(folder / name) as path, path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    metadata = {**table.metadata, "objectives_names": table.names, "task_names": [task]}
    fidelity = {"domain_cls": "Integer", "domain_kwargs": {"lower": 1, "upper": epochs}}
    fidelity |= {"sampler_cls": "Uniform", "sampler_kwargs": {}}
    for name, content in {
        "configspace": {key: _domain(space[key]) for key in table.hyperparameters},
        "fidelityspace": {"epoch": fidelity},
        "metadata": metadata,
    }.items():
        with atomic_write(folder / f"{name}.json") as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Blackbox:
    """The table in `folder`; its objectives stay in the file until they are used.

    Raises UserError if it is not there or damaged.
    """
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        objectives = np.load(folder / EVALUATIONS, mmap_mode="r", allow_pickle=False)[0]
        hyperparameters = pd.read_parquet(folder / HYPERPARAMETERS)
    except (OSError, ValueError) as error:
        raise UserError(f"no table in {folder}: {error}") from error
    names = tuple(metadata["objectives_names"])
    if objectives.shape[::3] != (len(hyperparameters), len(names)):
        raise UserError(f"the files in {folder} do not belong together: export the table again")
    return Blackbox(hyperparameters, objectives, names, metadata)


def _domain(distribution: BaseDistribution) -> dict[str, Any]:
    """A distribution as Syne Tune writes its domains."""
    kwargs: dict[str, Any]
    sampler: dict[str, Any] = {"sampler_cls": "Uniform", "sampler_kwargs": {}}
    if isinstance(distribution, CategoricalDistribution):
        choices: Sequence[Any] = distribution.choices
        kind, kwargs = "Categorical", {"categories": list(choices)}
    else:
        assert isinstance(distribution, FloatDistribution)
        kind, kwargs = "Float", {"lower": distribution.low, "upper": distribution.high}
        if distribution.log:
            sampler = {"sampler_cls": "LogUniform", "sampler_kwargs": {}}
    return {"domain_cls": kind, "domain_kwargs": kwargs, **sampler}
