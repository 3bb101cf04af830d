"""Early stopping as Tune's scheduler: what it decides after a resume, a NaN, a lost worker."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from ali.metrics import EPOCH, SAMPLE_DISTANCE, VAL_ERROR
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.scheduler import HISTORY, EarlyStopping

pytestmark = pytest.mark.versions

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


ENDS = tuple(n / 20 for n in range(2, 14))  # 0.1 … 0.65, of trials whose values did not change


def fresh(objective=VAL_ERROR):
    return EarlyStopping(objective, epochs=9, grace_epochs=1, reduction_factor=3)


def informed(objective=VAL_ERROR):
    """After twelve trials that have completed: numbers 10 to 21."""
    scheduler = fresh(objective)
    for epoch in (1, 9):
        for number, value in enumerate(ENDS, start=10):
            feed(scheduler, number, epoch, value)
    return scheduler


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
    scheduler = informed()
    assert [feed(scheduler, n, 1, v) for n, v in enumerate((0.1, 0.2, 0.6))] == [
        CONTINUE,
        CONTINUE,
        STOP,
    ]
    ending = scheduler.endings["00002"]
    assert list(scheduler.endings) == ["00002"] and ending.state is EndState.STOPPED_EARLY
    assert ending.reason == (
        "val_error 0.6000 after epoch 1: its chance to end at or below 0.2833, among the best "
        "1 in 3 of 12 trials, is 0%"
    )
    assert feed(scheduler, 1, 9, 0.9) == STOP
    assert "00001" not in scheduler.endings, "the full budget is no early stop"


def test_rays_own_stops_the_second_trial_for_being_worse_than_the_first():
    bare = AsyncHyperBandScheduler(time_attr=EPOCH, max_t=9, reduction_factor=3)
    bare.set_search_properties(VAL_ERROR, "min")
    for number in (0, 1):
        bare.on_trial_add(None, trial(number))
    bare.objective, ours = VAL_ERROR, fresh()
    assert [feed(bare, n, 1, 0.4 + 0.1 * n) for n in (0, 1)] == [CONTINUE, STOP]
    assert [feed(ours, n, 1, 0.4 + 0.1 * n) for n in (0, 1)] == [CONTINUE, CONTINUE]


def test_a_trial_that_reports_its_end_is_stopped():
    result = {EPOCH: 1, **Ending(EndState.DIVERGED, "nan").to_result()}
    assert fresh().on_trial_result(None, trial(0), result) == STOP


def test_a_last_result_counts_although_tune_asks_nothing_about_it():
    scheduler = fresh()
    for number, value in enumerate(ENDS, start=10):
        feed(scheduler, number, 1, value)
    for number, value in enumerate(ENDS, start=10):
        result = {EPOCH: 9, VAL_ERROR: value, "done": True}
        scheduler.on_trial_complete(None, trial(number), result)
    assert scheduler.endings == {} and feed(scheduler, 2, 1, 0.6) == STOP


def test_a_result_without_the_objective_decides_nothing():
    assert informed().on_trial_result(None, trial(0), {EPOCH: 1}) == CONTINUE


def test_a_restored_trials_past_counts_for_the_others():
    scheduler = fresh()
    for number, value in enumerate(ENDS, start=10):
        feed(scheduler, number, 9, value, **{HISTORY: [(1, value)]})
    assert feed(scheduler, 2, 1, 0.6) == STOP


def test_a_trial_that_lost_its_worker_before_its_stop_does_not_continue():
    scheduler = informed()
    for number, value in enumerate((0.1, 0.2, 0.9)):
        last = feed(scheduler, number, 1, value)
    assert last == STOP
    trials = [trial(n) for n in range(3)]
    for lost in trials:
        scheduler.on_trial_error(None, lost)
    tune, stopped, saved = controller(trials)
    scheduler.choose_trial_to_run(tune)
    assert stopped == saved == trials[2:], "in Tune's table, too"
    assert "its chance to end" in scheduler.endings["00002"].reason


def test_only_a_second_kill_for_lack_of_memory_is_the_trials_own_fault(tmp_path):
    scheduler, log, lost = fresh(), tmp_path / "error.txt", trial(0)
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


def test_workers_lost_after_new_epochs_do_not_add_up(tmp_path):
    scheduler, log, lost = fresh(), tmp_path / "error.txt", trial(0)
    lost.error_file, lost.run_metadata = str(log), SimpleNamespace(num_failures=0)

    def lose(killed):
        lost.run_metadata.num_failures += 1  # as Tune does
        with log.open("a") as file:
            reason = "the node is running low on memory" if killed else "a lost node"
            file.write(f"Failure # 1\n{reason}\n")
        scheduler.on_trial_error(None, lost)
        return lost.run_metadata.num_failures

    def report(*epochs):
        for epoch in epochs:
            scheduler.on_trial_result(None, lost, {EPOCH: epoch, VAL_ERROR: 0.3})

    report(1, 2, 3)
    assert lose(killed=True) == 1
    report(3)  # from the checkpoint of epoch 2: once more, and no further
    assert lose(killed=False) == 2
    report(1)  # all checkpoints were damaged
    assert lose(killed=False) == 3
    report(2, 3, 4)
    assert lose(killed=True) == 1 and scheduler.endings == {}
    report(4)
    assert lose(killed=True) == 2 and scheduler.endings["00000"].state is EndState.OUT_OF_MEMORY


def record(study, point, *curves):
    """Trials with these (epoch, value) pairs, of which those that reach epoch 9 are told."""
    for curve in curves:
        number = study.ask(point).number
        for epoch, value in curve:
            study.report(number, epoch, value)
        if curve[-1][0] == 9:
            study.tell(number, Ending(EndState.COMPLETED, ""), curve[-1][1])


def test_after_a_resume_it_decides_as_before(study, point):
    record(study, point, *(((1, v), (9, v)) for v in ENDS))
    new, resumed = fresh(), fresh()
    resumed.replay(study.trials())
    assert feed(new, 14, 1, 0.6) == CONTINUE, "it knows of no trial that completed"
    assert feed(resumed, 14, 1, 0.6) == STOP


def test_an_epoch_that_a_trial_went_on_from_is_not_judged_again(study, point):
    """Neither by a resume with what has completed since, nor when it is trained again."""
    record(study, point, ((1, 0.6), (2, 0.6)), *(((1, v), (9, v)) for v in ENDS))
    study.retry(0)
    resumed = fresh()
    resumed.replay(study.trials())
    assert resumed.endings == {}
    for number in (0, 13):  # and its second try
        assert [feed(resumed, number, epoch, 0.6) for epoch in (2, 3)] == [CONTINUE, STOP]
    alive = fresh()
    assert feed(alive, 0, 1, 0.6) == CONTINUE
    for number, value in enumerate(ENDS, start=10):
        for epoch in (1, 9):
            feed(alive, number, epoch, value)
    assert feed(alive, 0, 1, 0.6) == CONTINUE, "a lost worker's epoch, from the last checkpoint"
    assert feed(alive, 0, 2, 0.6) == STOP


def test_the_last_result_of_a_stopped_trial_does_not_change_the_reason():
    """Tune hands it to the scheduler once more when its checkpoint is saved."""
    scheduler = informed()
    assert feed(scheduler, 0, 1, 0.6) == STOP
    reason = scheduler.endings["00000"]
    feed(scheduler, 30, 9, 0.01)
    scheduler.on_trial_complete(None, trial(0), {EPOCH: 1, VAL_ERROR: 0.6, "done": True})
    assert scheduler.endings["00000"] is reason


def test_what_is_minimized_has_a_name():
    scheduler = informed(SAMPLE_DISTANCE)
    assert feed(scheduler, 2, 1, 0.6, **{VAL_ERROR: 0.0}) == STOP
    assert scheduler.endings["00002"].reason.startswith("sample_distance 0.6000 after epoch 1")


def test_it_has_a_line_for_tune():
    assert "val_error" in fresh().debug_string()


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_budget_below_the_grace_never_stops_anyone_early(epochs):
    scheduler = EarlyStopping(VAL_ERROR, epochs, grace_epochs=5, reduction_factor=3)
    for number in range(4):
        feed(scheduler, number, epochs, 0.1 * number)
    assert scheduler.endings == {}


def test_an_objective_to_maximize_is_stopped_for_being_low():
    scheduler = EarlyStopping("score", 9, 1, 3, maximize=True)
    for epoch in (1, 9):
        for number, value in enumerate(ENDS, start=10):
            feed(scheduler, number, epoch, 1 - value)
    assert feed(scheduler, 0, 1, 0.9) == CONTINUE and feed(scheduler, 1, 1, 0.4) == STOP
    assert scheduler.endings["00001"].reason.startswith(
        "score 0.4000 after epoch 1: its chance to end at or above 0.7167, among the best 1 in 3"
    )
