"""A copy of a sweep's study for Optuna's dashboard."""

import optuna
import pytest

from sweeps.engine.dashboard import StudyCopy
from sweeps.engine.endings import EndState
from sweeps.engine.options import Options
from sweeps.engine.study import CONFIG
from tests.sweeps.engine.reporting.sweep import sweep, trial

pytestmark = pytest.mark.versions

pytest.importorskip("optuna_dashboard")


def source():
    study = optuna.create_study()
    for one in sweep().frozen:
        study.add_trial(one)
    return study


def test_the_copy_has_names_ends_and_links_but_nothing_for_the_machinery():
    study = source()
    copy = StudyCopy(Options(name="shown"), study, "val_error")
    links = {"00003": "http://127.0.0.1:5000/#/experiments/1/runs/abc"}
    copy.update(links)
    copy.update(links)  # nothing is there twice
    assert copy.study.metric_names == ["val_error"]
    trials = copy.study.get_trials()
    assert [t.params for t in trials] == [t.params for t in study.get_trials()]
    assert [t.state for t in trials] == [t.state for t in study.get_trials()]
    assert (
        trials[13].user_attrs["end"] == "diverged" and trials[15].user_attrs["confirms"] == "00001"
    )
    assert not any("config" in t.user_attrs for t in trials)

    from optuna_dashboard import get_note

    assert links["00003"] in get_note(optuna.Trial(copy.study, 3))
    assert get_note(optuna.Trial(copy.study, 4)) == ""


def test_the_copy_follows_a_running_sweep():
    study = source()
    running = trial(16, EndState.COMPLETED, 0.2, 2)
    running.state, running.values = optuna.trial.TrialState.RUNNING, None
    running.datetime_complete = None
    study.add_trial(running)
    copy = StudyCopy(Options(name="shown"), study, "val_error")
    copy.update({})
    own = optuna.Trial(study, 16)
    own.report(0.15, 3)
    copy.update({})
    assert copy.study.get_trials()[16].intermediate_values[3] == 0.15
    study.tell(16, 0.1)
    copy.update({})
    assert copy.study.best_trial.number == 16 and copy.study.best_value == 0.1


def test_a_parameter_that_can_have_one_value_alone_is_left_out():
    study = optuna.create_study(direction="maximize")
    for value in (0.1, 0.9, 0.2, 0.3):
        one = study.ask()
        one.suggest_float("fixed", 0.5, 0.5)
        one.suggest_float("lr", 0.0, 1.0)
        one.set_user_attr(CONFIG, {})
        study.tell(one, value)
    copy = StudyCopy(Options(name="shown"), study, "val_error")
    copy.update({})
    assert all(t.params.keys() == {"lr"} for t in copy.study.get_trials())
    assert copy.study.best_value == 0.9, "of an objective to maximize"
