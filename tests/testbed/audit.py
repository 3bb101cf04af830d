"""Holds Tune, Optuna and MLflow against each other after a sweep; prints who ran what.

    python cluster/testbed/audit.py NAME TRIALS      on the head, in its environment

Exit code 1 where a trial is missing, is there twice, or has not the same end everywhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

from sweeps.engine import search, tracking
from sweeps.engine.driver import JOURNAL

OPTUNA = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}  # MLflow's word for it


def tune_trials(folder: Path) -> dict[str, tuple[str, str]]:
    """Status and last host of each trial, from Tune's newest snapshot."""
    newest = max(folder.glob("experiment_state-*.json"))
    found: dict[str, tuple[str, str]] = {}
    for state, metadata in json.loads(newest.read_text())["trial_data"]:
        trial, result = json.loads(state), json.loads(metadata).get("last_result", {})
        assert trial["trial_id"] not in found, f"Tune has {trial['trial_id']} twice"
        found[trial["trial_id"]] = trial["status"], result.get("hostname", "?")
    return found


def audit(name: str, trials: int) -> int:
    folder = Path(os.environ["ALI_OUTPUT_DIR"]) / name
    tune = tune_trials(folder)
    optuna = {search.trial_id(t.number): t for t in search.read(folder / JOURNAL, name).trials}
    client = tracking.connect(os.environ["MLFLOW_TRACKING_URI"])
    where = tracking.experiment_id(client, folder.parent)
    runs = defaultdict(list)
    for run in tracking.find_runs(client, where, sweep=name, kind=tracking.KIND_TRIAL):
        runs[run.data.tags[tracking.TRIAL]].append(run)

    wrong, hosts = [], defaultdict(list)
    print(f"{'trial':7}{'host':12}{'Tune':12}{'Optuna':10}{'MLflow':10}{'runs':6}{'epochs':8}end")
    for trial in sorted({*tune, *optuna, *runs}):
        status, host = tune.get(trial, ("-", "-"))
        state = optuna[trial].state.name if trial in optuna else "-"
        own = runs.get(trial, [])
        said = own[0].info.status if own else "-"
        epochs = int(own[0].data.metrics.get("epoch", 0)) if own else 0
        end = own[0].data.tags.get(tracking.END, "-") if own else "-"
        print(f"{trial:7}{host:12}{status:12}{state:10}{said:10}{len(own):<6}{epochs:<8}{end}")
        hosts[host].append(trial)
        ended = status in ("TERMINATED", "ERROR") and OPTUNA.get(state) == said
        if not ended or len(own) != 1:
            wrong.append(trial)
    print(f"\n{'host':12}trials, by where they ended")
    for host, its in sorted(hosts.items()):
        print(f"{host:12}{' '.join(its)}")
    expected = {search.trial_id(n) for n in range(trials)}
    lost = sorted(expected - {*tune} | expected - {*optuna} | expected - {*runs})
    print(f"\n{trials} trials: {len(lost)} lost, {len(wrong)} not the same everywhere")
    return int(bool(lost or wrong))


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1], int(sys.argv[2])))
