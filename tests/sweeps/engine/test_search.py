"""The study as a sweep's memory: idempotent, mended after a kill, repeatable; ASHA over it."""

import math
import time
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from ali.config import Config
from ali.metrics import EPOCH, SAMPLE_DISTANCE, VAL_ERROR
from ali.models.tables import configured, printed
from sweeps.engine.search import Asha, Study, StudySearch, outlive_trials, read, snapshot_rarely
from sweeps.engine.space import Space, brief, paper, suggest
from sweeps.engine.tracking import COMPLETED, CONFIG, DIVERGED, END, STOPPED


def point(trial):
    return suggest(trial, Space(), Config())


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "journal", "s", seed=1, startup_trials=3)


def again(study, tmp_path):
    """The study as the next driver opens it."""
    return Study(tmp_path / "journal", "s", seed=1, startup_trials=3)


def test_told_twice_is_told_once(study, tmp_path):
    # The bare stack: the second tell raises UpdateFinishedTrialError and ends the experiment.
    trial = study.ask(point)
    study.report(trial.number, 1, 0.5)
    study.report(trial.number, 1, 0.4)
    study.tell(trial.number, COMPLETED, "done", 0.3)
    reopened = again(study, tmp_path)
    reopened.tell(trial.number, STOPPED, "too late", 0.9)
    reopened.report(trial.number, 2, 0.1)
    (found,) = reopened.trials()
    assert (found.state, found.value) == (TrialState.COMPLETE, 0.3)
    assert found.intermediate_values == {1: 0.5}
    assert found.user_attrs[END] == COMPLETED


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_diverged_trial_is_told_fail(study, value):
    trial = study.ask(point)
    study.tell(trial.number, DIVERGED, "nan", value)
    assert study.trials()[0].state == TrialState.FAIL


def test_a_non_finite_value_is_not_recorded(study):
    trial = study.ask(point)
    study.report(trial.number, 1, math.nan)
    assert study.trials()[0].intermediate_values == {}


def test_a_trial_stopped_early_is_pruned_with_its_values(study):
    trial = study.ask(point)
    study.report(trial.number, 1, 0.8)
    study.tell(trial.number, STOPPED, "above the cut", 0.8)
    (found,) = study.trials()
    assert found.state == TrialState.PRUNED
    assert found.intermediate_values == {1: 0.8}


def test_half_a_line_and_a_lock_of_a_killed_driver_are_removed(study, tmp_path):
    study.ask(point)
    journal = tmp_path / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_id": "ab')
    (tmp_path / "journal.lock").symlink_to(journal)
    reopened = again(study, tmp_path)
    reopened.ask(point)
    assert len(again(study, tmp_path).trials()) == 2


def test_a_point_depends_on_its_number_and_what_was_told_not_on_restarts(study, tmp_path):
    def search(folder, restarts):
        folder.mkdir()
        found = Study(folder / "journal", "s", seed=1, startup_trials=3)
        for _ in range(8):
            if restarts:
                found = Study(folder / "journal", "s", seed=1, startup_trials=3)
            trial = found.ask(point)
            found.tell(trial.number, COMPLETED, "", abs(trial.params["dropout_x"] - 0.1))
        return [t.params for t in found.trials()]

    assert search(tmp_path / "a", False) == search(tmp_path / "b", True)


def test_a_draw_cut_short_is_finished_as_it_began(study, tmp_path):
    asked = study.records.ask()
    study.records.sampler = optuna.samplers.RandomSampler(seed=9)
    asked.suggest_float("lr_d", *Space().lr, log=True)
    reopened = again(study, tmp_path)
    finished = reopened.complete_ask(reopened.trials()[0], point)
    assert finished.params["lr_d"] == asked.params["lr_d"]
    assert finished.user_attrs[CONFIG]["lr_d"] == asked.params["lr_d"]


PRESETS = {
    "Table 2": Config(data="cifar10"),
    "Table 3": Config(data="svhn"),
    "Table 4": Config(data="celeba"),
    "Table 5": Config(data="tiny-imagenet"),
    "Table 5, images of one's own": Config(data="folder", image_size=64),
    "Fig. 7": Config(data="mixture"),
    "Table 2, GAN": Config(data="cifar10", model="gan"),
    "Table 3, two levels": Config(data="svhn", levels=2),
}
presets = pytest.mark.parametrize("base", PRESETS.values(), ids=PRESETS)


def drawn(study, base, space=None):
    """The configuration that the study's next trial trains with, as a sweep over `base` asks."""
    trial = study.ask(lambda trial: suggest(trial, space or Space(), base))
    return trial, Config.from_dict({**base.to_dict(), **trial.user_attrs[CONFIG]})


@presets
def test_the_papers_point_is_its_table(study, base):
    study.enqueue(paper(base))
    _, config = drawn(study, base)
    assert configured(config) == printed(base)
    for who in ("encoder", "decoder", "discriminator"):
        assert getattr(config, f"slope_{who}") in (None, printed(base).slope)
    for who in ("d", "g"):
        adam = [getattr(config, f"{name}_{who}") for name in ("lr", "beta1", "beta2")]
        assert adam == [1e-4, 0.5, 0.999]


@presets
def test_a_space_has_what_its_table_has(study, base):
    trials, configs = zip(
        *(drawn(study, base, Space(bn_with_z=True)) for _ in range(6)), strict=True
    )
    names = {name for trial in trials for name in trial.params}
    table = printed(base)
    assert ("dropout_x" in names) == bool(table.d_x)
    assert ("bn_z" in names) == ("dropout_z" in names) == bool(table.d_z and base.model == "ali")
    rows = {"encoder": table.encoder if base.model == "ali" else (), "decoder": table.decoder}
    rows["discriminator"] = (*table.d_x, *table.d_z, *table.d_xz)
    for who, its in rows.items():
        leaky = table.slope > 0 and "leaky ReLU" in {row.nonlinearity for row in its}
        assert (f"slope_{who}" in names) == leaky
    for config in configs:
        assert [row.kernel for row in configured(config).d_x] == [row.kernel for row in table.d_x]
        assert config.bn_x is None or len(config.bn_x) == len(table.d_x)
    assert len({configured(config).d_xz for config in configs}) > 1


def test_a_point_outside_the_space_is_one_trial_alone(study):
    """Table 2's dropout, 0.2 and then 0.5, is no point of the space; the next trial's is."""
    base = Config(data="cifar10")
    study.enqueue(paper(base))
    first, config = drawn(study, base)
    assert config.dropout_x is None and first.params["dropout_x"] == pytest.approx(
        (0.2 + 4 * 0.5) / 5
    )
    assert drawn(study, base)[1].dropout_x is not None


def test_the_brief_point_is_in_the_space(study):
    study.enqueue(brief(Config()))
    _, config = drawn(study, Config())
    assert (config.lr_g, config.dropout_x, config.slope_encoder) == (4e-4, 0.1, 0.15)
    assert config.bn_x == (True, True, True, False, True)


def test_the_space_is_conditional_and_within_its_bounds(study):
    space = Space(bn_with_z=True)
    seen = [drawn(study, Config(), space) for _ in range(30)]
    for trial, config in seen:
        assert ("lr_g" in trial.params) == trial.params["adam_apart"]
        assert ("bn_x1" in trial.params) == trial.params["bn"]
        if not trial.params["adam_apart"]:
            assert (config.lr_g, config.beta1_g) == (config.lr_d, config.beta1_d)
        assert space.lr[0] <= config.lr_d <= space.lr[1]
    assert any(config.bn_z for _, config in seen)
    _, without = drawn(study, Config())
    assert not (without.bn_z or without.bn_xz)


def trial(number):
    return SimpleNamespace(trial_id=f"{number:05d}")


def feed(scheduler, number, epoch, value, **more):
    return scheduler.on_trial_result(None, trial(number), {EPOCH: epoch, VAL_ERROR: value, **more})


def added(scheduler, count):
    scheduler.set_search_properties(VAL_ERROR, "min")
    for number in range(count):
        scheduler.on_trial_add(None, trial(number))
    return scheduler


def test_asha_stops_the_worse_and_says_why():
    asha = added(Asha(VAL_ERROR, 9, 1, 3), 3)
    assert feed(asha, 0, 1, 0.5) == TrialScheduler.CONTINUE
    assert feed(asha, 1, 1, 0.4) == TrialScheduler.CONTINUE
    assert feed(asha, 2, 1, 0.6) == TrialScheduler.STOP
    # The cut is of the others: the best third of 0.4 and 0.5 begins at 0.4333.
    reason = "val_error 0.6000 after epoch 1: above the cut of 0.4333 among 3 trials"
    assert asha.reasons["00002"] == reason
    assert feed(asha, 1, 9, 0.2) == TrialScheduler.STOP
    assert "00001" not in asha.reasons, "the full budget is no early stop"


def test_nobody_is_stopped_before_enough_trials_have_reached_a_rung():
    # Ray's scheduler stops the second trial of a sweep, known points among them, where it is worse
    # than the first.
    bare = added(AsyncHyperBandScheduler(time_attr=EPOCH, max_t=9, reduction_factor=3), 2)
    asha = added(Asha(VAL_ERROR, 9, 1, 3), 3)
    decisions = [
        [feed(scheduler, n, 1, 0.4 + 0.1 * n) for n in (0, 1)] for scheduler in (bare, asha)
    ]
    assert decisions == [
        [TrialScheduler.CONTINUE, TrialScheduler.STOP],
        [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE],
    ]


def test_a_trial_that_lost_its_process_before_its_stop_does_not_go_on():
    asha = added(Asha(VAL_ERROR, 9, 1, 3), 3)
    feed(asha, 0, 1, 0.1)
    feed(asha, 1, 1, 0.2)
    assert feed(asha, 2, 1, 0.9) == TrialScheduler.STOP
    trials = [
        SimpleNamespace(trial_id=f"{n:05d}", error_file=None, status=Trial.PENDING)
        for n in range(3)
    ]
    for lost in trials:
        asha.on_trial_error(None, lost)
    stopped, saved = [], []
    tune = SimpleNamespace(
        get_live_trials=lambda: trials,
        get_trials=list,
        stop_trial=stopped.append,
        _mark_trial_to_checkpoint=saved.append,
    )
    asha.choose_trial_to_run(tune)
    assert stopped == saved == trials[2:], "Tune's table hears of it too"
    assert "above the cut" in asha.reasons["00002"]


def test_a_trial_killed_for_lack_of_memory_does_not_end_the_sweep():
    # The bare stack: RuntimeError("Caught unexpected exception: …") out of Tune's loop.
    outlive_trials()
    outlive_trials()
    told = []
    manager = RayActorManager(resource_manager=None)
    actor = SimpleNamespace(actor_id=0, _on_error=lambda actor, error: told.append(error))
    manager._cleanup_actor = lambda tracked_actor: None
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    killed = OutOfMemoryError("the node is running low on memory")
    manager._actor_task_failed(tracked_actor_task=task, exception=killed)  # as Ray calls it
    (error,) = told
    assert isinstance(error, RayActorError) and "low on memory" in str(error)


def test_only_a_second_kill_for_lack_of_memory_is_the_trials_own_fault(tmp_path):
    asha = added(Asha(VAL_ERROR, 9, 1, 3), 1)
    log = tmp_path / "error.txt"
    lost = SimpleNamespace(trial_id="00000", error_file=str(log), status=Trial.PENDING)
    stopped = []
    tune = SimpleNamespace(
        get_live_trials=lambda: [lost],
        get_trials=list,
        stop_trial=stopped.append,
        _mark_trial_to_checkpoint=lambda trial: None,
    )
    for times in range(2):
        assert len(stopped) == 0
        with log.open("a") as file:
            file.write(f"Failure # {times + 1}\nthe node is running low on memory\n")
        asha.on_trial_error(None, lost)
        asha.choose_trial_to_run(tune)
    assert stopped == [lost] and "memory" in asha.reasons["00000"]


def test_a_trial_that_says_its_end_is_stopped_where_ray_goes_on():
    bare = added(AsyncHyperBandScheduler(time_attr=EPOCH, max_t=9), 1)
    assert feed(bare, 0, 1, math.nan) == TrialScheduler.CONTINUE
    asha = added(Asha(VAL_ERROR, 9, 1, 3), 1)
    result = {EPOCH: 1, END: DIVERGED}
    assert asha.on_trial_result(None, trial(0), result) == TrialScheduler.STOP


def test_asha_after_a_resume_decides_as_before(study):
    for number, value in enumerate((0.5, 0.4, 0.45)):
        study.ask(point)
        study.report(number, 1, value)
    fresh, resumed = added(Asha(VAL_ERROR, 9, 1, 3), 5), added(Asha(VAL_ERROR, 9, 1, 3), 5)
    resumed.replay(study.trials())
    assert feed(fresh, 3, 1, 0.6) == TrialScheduler.CONTINUE, "an empty rung stops nobody"
    assert feed(resumed, 3, 1, 0.6) == TrialScheduler.STOP


def test_what_is_minimised_has_a_name():
    asha = Asha(SAMPLE_DISTANCE, 9, 1, 3)
    asha.set_search_properties(SAMPLE_DISTANCE, "min")
    for number, value in enumerate((0.5, 0.4, 0.6)):
        asha.on_trial_add(None, trial(number))
        result = {EPOCH: 1, SAMPLE_DISTANCE: value, VAL_ERROR: 1 - value}
        decision = asha.on_trial_result(None, trial(number), result)
    assert decision == TrialScheduler.STOP
    assert asha.reasons["00002"].startswith("sample_distance 0.6000 after epoch 1")


def search_over(study, asha):
    return StudySearch(study, point, asha, num_trials=2, max_concurrent=1, epochs=9)


def test_the_search_tells_the_objective_and_no_other_metric(study):
    search = search_over(study, Asha(SAMPLE_DISTANCE, 9, 1, 3))
    study.ask(point)
    search.on_trial_complete("00000", {EPOCH: 9, VAL_ERROR: 0.1, SAMPLE_DISTANCE: 0.3})
    assert study.trials()[0].value == 0.3


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ({EPOCH: 9, VAL_ERROR: 0.3}, TrialState.COMPLETE),
        ({EPOCH: 9}, TrialState.FAIL),
        ({EPOCH: 9, VAL_ERROR: math.nan}, TrialState.FAIL),
        ({}, TrialState.FAIL),
        (None, TrialState.FAIL),
    ],
)
def test_no_trial_stays_running_for_want_of_its_metric(study, result, state):
    # The bare stack: a missing metric leaves a RUNNING trial that the sampler avoids for ever.
    search = search_over(study, Asha(VAL_ERROR, 9, 1, 3))
    study.ask(point)
    search.on_trial_complete("00000", result)
    assert study.trials()[0].state == state


def test_the_search_ends_when_all_have_been_asked(study, monkeypatch):
    search = search_over(study, Asha(VAL_ERROR, 9, 1, 3))
    monkeypatch.setattr(search, "_make", lambda frozen: frozen)  # in place of Tune's trial
    for number in range(2):
        assert not search.is_finished()
        assert search.next_trial().number == number
    assert search.is_finished() and search.next_trial() is None


def test_a_trial_by_its_number_is_the_one_in_the_list(study):
    for _ in range(3):
        study.ask(point)
    study.report(1, 1, 0.5)
    assert [study.trial(number) for number in range(3)] == study.trials()


def test_a_stop_that_nobody_was_told_of_is_told_at_the_resume(study):
    # A kill between ASHA's decision and the tell: the trial must not go on to the next rung.
    for number, value in enumerate((0.5, 0.4, 0.6)):
        study.ask(point)
        study.report(number, 1, value)
    for number in (0, 1):
        study.tell(number, STOPPED, "", None)
    search_over(study, Asha(VAL_ERROR, 9, 1, 3))
    assert study.trials()[2].state == TrialState.PRUNED
    assert "above the cut" in study.trials()[2].user_attrs["end_reason"]


def test_a_value_is_in_the_study_before_anything_is_decided_on_it(study):
    asha = added(Asha(VAL_ERROR, 9, 1, 3, study), 3)
    for number, value in enumerate((0.5, 0.4, 0.6)):
        study.ask(point)
        feed(asha, number, 1, value)
    assert [t.intermediate_values for t in study.trials()] == [{1: 0.5}, {1: 0.4}, {1: 0.6}]


def test_looking_at_a_sweep_leaves_its_journal_and_its_drivers_lock_alone(study, tmp_path):
    study.ask(point)
    journal, lock = tmp_path / "journal", tmp_path / "journal.lock"
    half = journal.read_bytes() + b'{"op_code": 4, "worker_id": "ab'
    journal.write_bytes(half)
    lock.symlink_to(journal)
    assert len(read(journal, "s").trials) == 1
    assert journal.read_bytes() == half and lock.is_symlink()


def test_tune_saves_its_table_by_time_and_not_by_checkpoint():
    # It takes longer the more trials there are: with every second checkpoint, most of the time.
    snapshot_rarely()
    manager = _ExperimentCheckpointManager(
        storage=None, checkpoint_period=10, sync_every_n_trial_checkpoints=2
    )
    manager._last_save_time = time.monotonic()
    trial, saved = object(), []
    for _ in range(4):
        manager.on_trial_checkpoint(trial)
    manager._storage = SimpleNamespace(experiment_driver_staging_path="")
    manager.sync_up_experiment_state(lambda: saved.append(1))
    assert not saved
