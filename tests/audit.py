"""Holds Tune, Optuna and MLflow against each other after a sweep: the one audit of all tests.

    python tests/audit.py NAME TRIALS                        a table: each trial, and where it ended
    python tests/audit.py NAME TRIALS --toy FOLDER --json    the findings about a toy sweep

The sweep is looked for in $ALI_OUTPUT_DIR and $MLFLOW_TRACKING_URI; a toy sweep in FOLDER, which
holds toy.log and runs/. Exit code 1 where the table shows that anything is wrong. File names, tags
and end states are written out here and not imported: the audit is to be independent of `sweeps`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

if TYPE_CHECKING:
    from tests.integration.harness import Toy

ROOT = Path(__file__).resolve().parents[1]
# How a trial ends: end_state, and what goes with it in Tune, in Optuna and in MLflow.
ENDS = {
    "completed": ({"TERMINATED"}, "COMPLETE", "FINISHED"),
    "stopped early": ({"TERMINATED"}, "PRUNED", "FINISHED"),
    "diverged": ({"TERMINATED"}, "PRUNED", "FAILED"),
    "collapsed": ({"TERMINATED"}, "PRUNED", "FAILED"),
    "out of memory": ({"TERMINATED"}, "FAIL", "FAILED"),
    "failed": ({"TERMINATED", "ERROR"}, "FAIL", "FAILED"),
}
USUAL = ("completed", "stopped early")  # nothing went wrong
UNFINISHED = {"RUNNING", "WAITING", "PENDING", "PAUSED", "SCHEDULED"}  # in one of the three


# --- what Tune, Optuna and MLflow have recorded


class TuneTrial(NamedTuple):
    """A line of Tune's table."""

    status: str
    host: str  # of its last result
    process: int | None = None  # there


@dataclass
class Row:
    """One trial, as each of the three knows it."""

    name: str
    tune: list[TuneTrial] = field(default_factory=list)
    optuna: FrozenTrial | None = None
    runs: list[Run] = field(default_factory=list)
    logged: list[tuple[int, float]] = field(default_factory=list)  # (epoch, objective) in MLflow

    @property
    def missing(self) -> list[str]:
        known = {"Tune": self.tune, "Optuna": self.optuna is not None, "MLflow": self.runs}
        return [where for where, there in known.items() if not there]

    @property
    def states(self) -> set[str]:
        optuna_state = {self.optuna.state.name} if self.optuna else set()
        return optuna_state | {t.status for t in self.tune} | {run.info.status for run in self.runs}


@dataclass
class Records:
    """All that is recorded of one sweep."""

    rows: dict[str, Row]
    parents: list[Run]  # MLflow's runs of the sweep itself


def read_study(folder: Path, name: str) -> optuna.Study:
    """The study of the sweep in `folder`."""
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    return optuna.load_study(study_name=name, storage=storage)


def read_tune(folder: Path) -> list[tuple[str, TuneTrial]]:
    """Tune's newest table: (trial, its line), a trial as often as it is there."""
    newest = max(folder.glob("experiment_state-*.json"))
    found = []
    for state, metadata in json.loads(newest.read_text())["trial_data"]:
        trial, result = json.loads(state), json.loads(metadata).get("last_result") or {}
        line = TuneTrial(trial["status"], result.get("hostname", "?"), result.get("pid"))
        found.append((trial["trial_id"], line))
    return found


def read_runs(client: MlflowClient, name: str, kind: str) -> list[Run]:
    """MLflow's runs of a sweep: of `kind` trial, or sweep for its parent run."""
    experiment = client.get_experiment_by_name("ali").experiment_id
    where = f"tags.sweep = '{name}' and tags.kind = '{kind}'"
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], where, max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            return found


def read(folder: Path, name: str, uri: str) -> Records:
    """Reads each of the three once. `folder`: the sweep's own, with its journal."""
    client = MlflowClient(uri)
    found: dict[str, Row] = {}

    def row(trial: str) -> Row:
        return found.setdefault(trial, Row(trial))

    for trial, line in read_tune(folder):
        row(trial).tune.append(line)
    for frozen in read_study(folder, name).get_trials():
        row(f"{frozen.number:05d}").optuna = frozen
    for run in read_runs(client, name, "trial"):
        its = row(run.data.tags["trial_id"])
        its.runs.append(run)
        history = client.get_metric_history(run.info.run_id, objective(run))
        its.logged += [(metric.step, metric.value) for metric in history]
    return Records(dict(sorted(found.items())), read_runs(client, name, "sweep"))


def read_epochs(log: Path) -> Counter[tuple[int, int]]:
    """How often each (seed, epoch) is in the log of a toy sweep."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(tuple(map(int, line.split()[:2])) for line in lines)  # type: ignore[misc]


def objective(run: Run) -> str:
    """The metric that a run's sweep minimizes."""
    return run.data.tags.get("objective", "val_error")


# --- what is wrong with it


@dataclass
class Findings:
    """What an audit found: a sentence each, but for the numbers."""

    lost: list[str] = field(default_factory=list)  # missing, wrong, or not the same in all three
    duplicated: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)  # trials that repeated more than they may
    repeated: int = 0  # epochs that were trained again
    restarts: int = 0  # of trials
    best: float | None = None  # objective of the best trial
    points: list[Any] = field(default_factory=list)  # parameters, state and value of each trial

    @property
    def wrong(self) -> list[str]:
        return [*self.lost, *self.duplicated, *self.stuck, *self.beyond]


Value = Callable[[Any, int], float]  # (configuration, epoch) → the objective


def examine(
    records: Records,
    trials: int,
    ends: Mapping[str, Sequence[str]] | None = None,
    default: Sequence[str] = USUAL,
    value: Value | None = None,
) -> Findings:
    """Examines a sweep that has ended.

    Args:
        trials: how many there are to be.
        ends: the ends that a trial may have, by its name; of others `default`.
        value: what a trial of this configuration has after this epoch; default: not checked.
    """
    found, expected = Findings(), [f"{number:05d}" for number in range(trials)]
    if [run.info.status for run in records.parents] != ["FINISHED"]:
        found.stuck.append(f"the sweep: {[run.info.status for run in records.parents]}")
    for name in sorted({*records.rows} - {*expected}):
        found.duplicated.append(f"{name} is one too many")
    for name in expected:
        allowed = (ends or {}).get(name, default)
        _examine_trial(records.rows.get(name, Row(name)), allowed, value, found)
    _find_best(records, found)
    frozen = [row.optuna for row in records.rows.values() if row.optuna]
    found.points = [[trial.params, trial.state.name, trial.value] for trial in frozen]
    return found


def _examine_trial(row: Row, allowed: Sequence[str], value: Value | None, found: Findings) -> None:
    if len(row.tune) > 1:
        found.duplicated.append(f"{row.name}: {len(row.tune)} times in Tune's table")
    if len(row.runs) > 1:
        found.duplicated.append(f"{row.name}: {len(row.runs)} runs")
    if row.missing or row.optuna is None:
        found.lost.append(f"{row.name} is not in {' nor in '.join(row.missing)}")
        return
    if row.states & UNFINISHED:
        found.stuck.append(f"{row.name}: {row.states}")
        return
    if len(row.logged) > len(dict(row.logged)):
        found.duplicated.append(f"{row.name}: an epoch is logged twice")
    if problems := [*_end_problems(row, allowed), *_value_problems(row, value)]:
        found.lost.append(f"{row.name}: {'; '.join(problems)}")


def _end_problems(row: Row, allowed: Sequence[str]) -> list[str]:
    """Is the end one that it may have, the same in all three, and with a reason?"""
    assert row.optuna is not None
    run, attributes = row.runs[0], row.optuna.user_attrs
    end, reason = run.data.tags.get("end_state"), run.data.tags.get("end_reason")
    said = f"{sorted(row.states)}, {end!r}: {reason}"
    if end not in allowed or end not in ENDS:
        return [f"{said}; expected {' or '.join(allowed)}"]
    tune, state, status = ENDS[end]
    problems = []
    in_tune = {trial.status for trial in row.tune}
    if not in_tune <= tune or (row.optuna.state.name, run.info.status) != (state, status):
        problems.append(said)
    if attributes.get("end_state") != end:
        problems.append(f"{said}; {attributes.get('end_state')!r} in Optuna")
    if not reason:
        problems.append("no reason is given for its end")
    if end == "stopped early" and "its chance to end" not in (reason or ""):
        problems.append(said)
    return problems


def _value_problems(row: Row, value: Value | None) -> list[str]:
    """Do Optuna and MLflow hold the same values, of all the epochs there should be?"""
    assert row.optuna is not None
    data, told = row.runs[0].data, row.optuna.intermediate_values
    if "config" not in data.tags or not {"lr_d", "seed"} <= set(data.params):
        return ["its run does not say what it trained"]
    config, logged = json.loads(data.tags["config"]), dict(row.logged)
    problems = []
    if logged != told:
        problems.append(f"{logged} in MLflow, {told} in Optuna")
    last = max(logged, default=0)
    if row.optuna.state.name == "COMPLETE":
        if not int(data.metrics.get("epoch", 0)) == last == config["epochs"]:
            problems.append(f"completed after epoch {last} of {config['epochs']}")
        if row.optuna.value != data.metrics.get(objective(row.runs[0])):
            problems.append(f"its value is {row.optuna.value} in Optuna, {logged} in MLflow")
    if row.optuna.state.name == "PRUNED" and last >= config["epochs"]:
        problems.append(f"stopped early after all its {last} epochs")
    if value is not None:
        from ali.config import Config  # raises where what is logged is no configuration

        made = Config.from_dict(config)
        if logged != (right := {epoch: value(made, epoch) for epoch in range(1, last + 1)}):
            problems.append(f"{logged} in MLflow, where its configuration gives {right}")
    return problems


def _find_best(records: Records, found: Findings) -> None:
    """The best trial, which is the same one in Optuna and in MLflow."""
    study, mlflow = [], []
    for name, row in records.rows.items():
        if row.optuna and row.optuna.state.name == "COMPLETE":
            study.append((row.optuna.value, name))
        mlflow += [
            (run.data.metrics[objective(run)], name)
            for run in row.runs
            if run.data.tags.get("end_state") == "completed" and objective(run) in run.data.metrics
        ]
    best = min(study, default=(None, "none"))
    if best != (other := min(mlflow, default=(None, "none"))):
        found.lost.append(f"the best trial is {best[1]} in Optuna, {other[1]} in MLflow")
    found.best = best[0]


def count_repeats(folder: Path, found: Findings, epochs_per_restart: int = 1) -> None:
    """Counts the epochs that a toy sweep trained again, from its log."""
    starts, again = Counter[str](), Counter[str]()
    for (seed, _), times in read_epochs(folder / "toy.log.starts").items():
        starts[f"{seed:05d}"] += times
    for (seed, _), times in read_epochs(folder / "toy.log").items():
        again[f"{seed:05d}"] += times - 1
    found.repeated, found.restarts = again.total(), sum(n - 1 for n in starts.values())
    for name, times in again.items():
        if times > (allowed := epochs_per_restart * (starts[name] - 1)):
            found.beyond.append(f"{name} repeated {times} epochs, {allowed} at most were expected")


def toy_value() -> Value:
    """What the toy's configurations give."""
    from tests.integration.toy_sweep import value

    return value


def examine_toy(toy: Toy, trials: int, ends: Mapping[str, Sequence[str]] | None = None) -> Findings:
    """`examine` for a toy sweep, whose values follow from its configurations."""
    return examine(read(toy.runs / toy.name, toy.name, toy.uri), trials, ends, value=toy_value())


def audit(toy: Toy, trials: int) -> dict[str, str]:
    """Asserts that each trial has one end, a usual one, the same everywhere, and all its values.

    Returns Optuna's state by trial.
    """
    found = examine_toy(toy, trials)
    assert not found.wrong, "\n".join(found.wrong)
    return {f"{number:05d}": state for number, (_, state, _) in enumerate(found.points)}


# --- the command line


def table(records: Records, trials: int, found: Findings) -> str:
    """Each trial in each of the three; which trials ended on which host; what is wrong."""
    lines = [
        f"{'trial':7}{'host':12}{'Tune':12}{'Optuna':10}{'MLflow':10}{'runs':6}{'epochs':8}end"
    ]
    hosts = defaultdict(list)
    for name, row in records.rows.items():
        status, host, _ = row.tune[0] if row.tune else TuneTrial("-", "-")
        state = row.optuna.state.name if row.optuna else "-"
        info, data = (row.runs[0].info, row.runs[0].data) if row.runs else (None, None)
        epochs = int(data.metrics.get("epoch", 0)) if data else 0
        end = data.tags.get("end_state", "-") if data else "-"
        lines.append(
            f"{name:7}{host:12}{status:12}{state:10}{info.status if info else '-':10}"
            f"{len(row.runs):<6}{epochs:<8}{end}"
        )
        hosts[host].append(name)
    lines += ["", f"{'host':12}trials, by where they ended"]
    lines += [f"{host:12}{' '.join(names)}" for host, names in sorted(hosts.items())]
    counts = f"{len(found.lost)} lost, {len(found.duplicated)} duplicated, {len(found.stuck)} stuck"
    return "\n".join([*lines, "", f"{trials} trials: {counts}", *found.wrong])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help="of the sweep")
    parser.add_argument("trials", type=int, help="that it is to have")
    parser.add_argument("--toy", type=Path, metavar="FOLDER", help="of a toy sweep")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args()
    environment_runs = Path(os.environ.get("ALI_OUTPUT_DIR", "runs"))
    runs = options.toy.resolve() / "runs" if options.toy else environment_runs.resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs}/mlflow.db"
    records = read(runs / options.name, options.name, uri)
    if options.toy:
        found = examine(records, options.trials, value=toy_value())
        count_repeats(options.toy, found)
    else:
        found = examine(records, options.trials, default=tuple(ENDS))
    if options.json:
        print(json.dumps(asdict(found)))
        return 0
    print(table(records, options.trials, found))
    return int(bool(found.wrong))


if __name__ == "__main__":
    # Run as a file, from any folder: `tests/ali` is not to be taken for the package `ali`.
    sys.path[0] = str(ROOT)
    sys.exit(main())
