"""ASHA as Tune's scheduler: what it decides after a resume, a NaN, a lost worker."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from ali.metrics import EPOCH, SAMPLE_DISTANCE, VAL_ERROR
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.scheduler import HISTORY, AshaScheduler

pytestmark = pytest.mark.versions

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def asha(objective=VAL_ERROR):
    return AshaScheduler(objective, epochs=9, grace_epochs=1, reduction_factor=3)


def trial(number):
    return SimpleNamespace(trial_id=f"{number:05d}", error_file=None, status=Trial.PENDING)


def feed(scheduler, number, epoch, value, **more):
    result = {EPOCH: epoch, scheduler.objective: value, **more}
    return scheduler.on_trial_result(None, trial(number), result)


def controller(trials):
    """What Tune hands to a scheduler, as far as it is used; and the trials that it stopped."""
    stopped, saved = [], []
    found = SimpleNamespace(
        get_live_trials=lambda: trials,
        get_trials=lambda: trials,
        stop_trial=stopped.append,
        _mark_trial_to_checkpoint=saved.append,
    )
    return found, stopped, saved


def test_it_stops_the_worse_and_says_why():
    scheduler = asha()
    assert [feed(scheduler, n, 1, v) for n, v in enumerate((0.5, 0.4, 0.6))] == [
        CONTINUE,
        CONTINUE,
        STOP,
    ]
    reason = "val_error 0.6000 after epoch 1: above the cut of 0.4333 among 3 trials"
    assert scheduler.endings == {"00002": Ending(EndState.STOPPED_EARLY, reason)}
    assert feed(scheduler, 1, 9, 0.2) == STOP
    assert "00001" not in scheduler.endings, "the full budget is no early stop"


def test_rays_own_stops_the_second_trial_for_being_worse_than_the_first():
    bare = AsyncHyperBandScheduler(time_attr=EPOCH, max_t=9, reduction_factor=3)
    bare.set_search_properties(VAL_ERROR, "min")
    for number in (0, 1):
        bare.on_trial_add(None, trial(number))
    bare.objective, ours = VAL_ERROR, asha()
    assert [feed(bare, n, 1, 0.4 + 0.1 * n) for n in (0, 1)] == [CONTINUE, STOP]
    assert [feed(ours, n, 1, 0.4 + 0.1 * n) for n in (0, 1)] == [CONTINUE, CONTINUE]


def test_a_trial_that_reports_its_end_is_stopped():
    result = {EPOCH: 1, **Ending(EndState.DIVERGED, "nan").to_result()}
    assert asha().on_trial_result(None, trial(0), result) == STOP


def test_a_result_without_the_objective_decides_nothing():
    assert asha().on_trial_result(None, trial(0), {EPOCH: 1}) == CONTINUE


def test_a_restored_trials_past_counts_for_the_others():
    scheduler = asha()
    feed(scheduler, 0, 1, 0.1)
    feed(scheduler, 1, 2, 0.5, **{HISTORY: [(1, 0.2)]})
    assert feed(scheduler, 2, 1, 0.3) == STOP


def test_a_trial_that_lost_its_worker_before_its_stop_does_not_continue():
    scheduler = asha()
    feed(scheduler, 0, 1, 0.1)
    feed(scheduler, 1, 1, 0.2)
    assert feed(scheduler, 2, 1, 0.9) == STOP
    trials = [trial(n) for n in range(3)]
    for lost in trials:
        scheduler.on_trial_error(None, lost)
    tune, stopped, saved = controller(trials)
    scheduler.choose_trial_to_run(tune)
    assert stopped == saved == trials[2:], "in Tune's table, too"
    assert "above the cut" in scheduler.endings["00002"].reason


def test_only_a_second_kill_for_lack_of_memory_is_the_trials_own_fault(tmp_path):
    scheduler, log, lost = asha(), tmp_path / "error.txt", trial(0)
    lost.error_file = str(log)
    tune, stopped, _ = controller([lost])
    for times in range(2):
        assert len(stopped) == 0
        with log.open("a") as file:
            file.write(f"Failure # {times + 1}\nthe node is running low on memory\n")
        scheduler.on_trial_error(None, lost)
        scheduler.choose_trial_to_run(tune)
    assert stopped == [lost]
    assert scheduler.endings["00000"].state is EndState.OUT_OF_MEMORY


def test_after_a_resume_it_decides_as_before(study, point):
    for number, value in enumerate((0.5, 0.4, 0.45)):
        study.ask(point)
        study.report(number, 1, value)
    fresh, resumed = asha(), asha()
    assert resumed.replay(study.trials()) == study.trials()[2:], "whose stop nobody was told of"
    assert feed(fresh, 3, 1, 0.6) == CONTINUE, "an empty rung stops nobody"
    assert feed(resumed, 3, 1, 0.6) == STOP


def test_a_trial_that_went_past_its_rung_is_not_stopped_by_the_replay(study, point):
    for number, value in enumerate((0.1, 0.1, 0.6)):
        study.ask(point)
        study.report(number, 1, value)
    study.report(2, 2, 0.6)
    scheduler = asha()
    assert scheduler.replay(study.trials()) == [] and scheduler.endings == {}


def test_what_is_minimized_has_a_name():
    scheduler = asha(SAMPLE_DISTANCE)
    decisions = [
        feed(scheduler, n, 1, value, **{VAL_ERROR: 1 - value})
        for n, value in enumerate((0.5, 0.4, 0.6))
    ]
    assert decisions[-1] == STOP
    assert scheduler.endings["00002"].reason.startswith("sample_distance 0.6000 after epoch 1")


def test_it_has_a_line_for_tune():
    assert "val_error" in asha().debug_string()


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_budget_below_the_grace_never_stops_anyone_early(epochs):
    scheduler = AshaScheduler(VAL_ERROR, epochs, grace_epochs=5, reduction_factor=3)
    for number in range(4):
        feed(scheduler, number, epochs, 0.1 * number)
    assert scheduler.endings == {}
