"""The best configurations again with fresh seeds, through a kill, as real processes."""

import json
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from sweeps import Location, results
from sweeps.engine.status import status
from tests.audit import audit
from tests.integration.harness import EPOCHS, kill_when

pytestmark = pytest.mark.versions

OPTIONS = ("--num-trials", "4", "--confirm", "2", "--confirm-seeds", "2")


@pytest.mark.slow
def test_the_best_are_confirmed_with_fresh_seeds_through_a_kill(toy):
    toy.env["TOY_SECONDS"] = "0.3"
    kill_when(toy, lambda: any(seed >= 5 for seed, _ in toy.epochs()), *OPTIONS)
    toy.env["TOY_SECONDS"] = "0.02"
    out = toy.run("--resume", "--front-page")
    trials = toy.study().get_trials()
    audit(toy, len(trials))
    again = [t for t in trials if "confirms" in t.user_attrs]
    assert {t.number for t in trials} - {t.number for t in again} == {0, 1, 2, 3}
    search = sorted((t for t in trials[:4] if t.value), key=lambda t: t.value)
    assert {t.user_attrs["confirms"] for t in again} == {0, *(t.number for t in search[:2])}
    for trial in again:
        first = trials[trial.user_attrs["confirms"]]
        config, its = trial.user_attrs["config"], first.user_attrs["config"]
        assert {**config, "seed": 0} == {**its, "seed": 0} and config["seed"] == trial.number
        assert trial.state.name == "COMPLETE" and max(trial.intermediate_values) == EPOCHS
    assert "Confirmed: the configuration of trial" in out and "over 2 fresh seeds" in out
    assert (
        "Confirmation, on fresh seeds" in out
        and f"[confirms {again[0].user_attrs['confirms']:05d}]" in out
    )

    best = results(Location(name="toy", output_dir=toy.runs))[0]
    tags = {name: run.data.tags.get("confirms") for name, (run,) in toy.mlflow().items()}
    expected = {f"{t.number:05d}": f"{t.user_attrs['confirms']:05d}" for t in again}
    assert {name: of for name, of in tags.items() if of} == expected
    client = MlflowClient(toy.uri)
    where = client.get_experiment_by_name("ali").experiment_id
    assert f"; {len(again)} of them confirm another" in status(client, where, "toy")
    (parent,) = toy.parents()
    assert json.loads(parent.data.tags["best_trials"])[0] == best.trial_id
    assert best.confirms is None and f"trial {best.trial_id} has" in out
    kept = {path.parent.name for path in (toy.runs / "toy").glob("*/checkpoint_*")}
    assert best.trial_id in kept

    note = parent.data.tags["mlflow.note.content"]  # the sweep's page has what was printed
    assert " ".join(out.split()).count(note.partition("**\n")[0].strip("*")) == 1
    (run,) = toy.mlflow()[best.trial_id]
    assert f"[{best.trial_id}](#/experiments/{where}/runs/{run.info.run_id}" in note
    assert parent.data.metrics["front_page_seconds"] > 0
    files = [file.path for file in client.list_artifacts(parent.info.run_id)]
    assert set(files) == {"contact_sheet.jpg", "figures", "report.html"}
    figures = {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert "figures/learning_curves.png" in figures and "figures/slot_use.png" in figures
    assert all(f"path={quote(figure, safe='')}" in note for figure in figures)
    assert toy.study().metric_names == ["val_error"], "and not Objective 0, in Optuna's dashboard"


@pytest.mark.long
def test_promising_configurations_get_more_seeds_while_the_search_goes_on_through_a_kill(toy):
    options = ("--num-trials", "6", "--race", "2", "--confirm-seeds", "2")
    toy.env["TOY_SECONDS"] = "0.1"
    kill_when(toy, lambda: len(toy.epochs()) > 3 * EPOCHS, *options)
    toy.env["TOY_SECONDS"] = "0.02"
    out = toy.run("--resume")
    trials = toy.study().get_trials()
    audit(toy, len(trials))
    again = [t for t in trials if "confirms" in t.user_attrs]
    assert len(trials) - len(again) == 6 and len(again) == 3, "one for two configurations"
    assert min(t.number for t in again) < 7, "before the search had ended"
    assert "[confirms " in out and "Confirmed: the configuration of trial" in out
    assert all(t.state.name == "COMPLETE" for t in again)


@pytest.mark.long
def test_a_finished_sweep_is_confirmed_by_a_resume(toy):
    assert "Confirmed" not in toy.run("--num-trials", "3")
    out = toy.run("--resume", "--confirm", "1", "--confirm-seeds", "2")
    assert "Confirmed: the configuration of trial" in out
    assert "[confirms " in out and out.count(" starts: ") == len(toy.study().get_trials()) - 3
