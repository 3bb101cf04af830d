"""The study's face towards Tune: what is told to the study, and when the search ends."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from pyarrow import fs
from ray.tune.schedulers import TrialScheduler

from ali.metrics import EPOCH, SAMPLE_DISTANCE, VAL_ERROR
from sweeps.engine import ray_compat
from sweeps.engine.endings import Ending, EndState, ending_of, first_try
from sweeps.engine.retry import Retry
from sweeps.engine.scheduler import HISTORY, EarlyStopping
from sweeps.engine.search import StudyRecorder, StudySearch
from sweeps.engine.study import Study

pytestmark = pytest.mark.versions


def search_over(study, point, objective=VAL_ERROR, num_trials=2, **more):
    scheduler = EarlyStopping(objective, 9, 1, 3)
    return StudySearch(study, point, scheduler, num_trials, max_concurrent=1, epochs=9, **more)


def test_the_search_tells_the_objective_and_no_other_metric(study, point):
    search = search_over(study, point, SAMPLE_DISTANCE)
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
def test_no_trial_stays_running_for_want_of_its_metric(study, point, result, state):
    # The bare stack: a missing metric leaves a RUNNING trial that the sampler avoids for ever.
    search = search_over(study, point)
    study.ask(point)
    search.on_trial_complete("00000", result)
    assert study.trials()[0].state == state


@pytest.mark.parametrize("state", [EndState.DIVERGED, EndState.OUT_OF_MEMORY, EndState.FAILED])
def test_the_end_that_a_trial_reports_is_the_one_that_is_told(study, point, state):
    search = search_over(study, point)
    study.ask(point)
    search.on_trial_complete("00000", {EPOCH: 1, **Ending(state, "memory of it").to_result()})
    assert ending_of(study.trials()[0]) == Ending(state, "memory of it")


def test_a_worker_lost_too_often_is_a_failure(study, point):
    search = search_over(study, point)
    study.ask(point)
    search.on_trial_complete("00000", error=True)
    assert "--max-failures" in ending_of(study.trials()[0]).reason


def test_a_resume_tries_trials_again_that_lost_their_workers(study, point, monkeypatch):
    """With the seed of the first, beside those that were to come anyway; once a driver."""

    def drive(num_trials, **end):
        """The trials that a driver runs, each of which ends so."""
        search, ran = search_over(study, point, num_trials=num_trials), []
        monkeypatch.setattr(search, "make_trial", lambda frozen: frozen)  # in place of Tune's trial
        while not search.is_finished():
            trial = search.next_trial()
            if not trial.state.is_finished():
                ran.append(trial.number)
                search.on_trial_complete(f"{trial.number:05d}", **end)
        return ran

    first = study.ask(lambda trial: {**point(trial), "seed": trial.number})
    assert drive(2, error=True) == [0, 1]
    study.retry(0)  # as by a driver that was killed then
    assert drive(3, error=True) == [2, 3, 4], "the first, the second, a new one"
    assert drive(3, result={EPOCH: 9, VAL_ERROR: 0.3}) == [5, 6, 7]
    tries = [t for t in study.trials() if first_try(t) == 0]
    assert [t.number for t in tries] == [0, 2, 5]
    assert search_over(study, point)._tries(tries[-1]) == tries, "whose checkpoints it has"
    assert all(t.params == first.params and t.user_attrs["config"]["seed"] == 0 for t in tries)
    assert drive(3) == []


def test_the_search_ends_when_all_have_been_asked(study, point, monkeypatch):
    search = search_over(study, point)
    monkeypatch.setattr(search, "make_trial", lambda frozen: frozen)  # in place of Tune's trial
    for number in range(2):
        assert not search.is_finished()
        assert search.next_trial().number == number
    assert search.is_finished() and search.next_trial() is None


EPOCHS, TRIALS, SLOTS = 4, 20, 4
KILLS = (*range(88, 97), *range(119, 126))  # just after trials completed that tell of others


class Simulation:
    """A sweep with learning curves of random numbers, in slots that take a second an epoch."""

    def __init__(self, journal, point, running=(), now=0.0):
        self.journal, self.point, self.now = journal, point, now
        self.running = list(running)  # (when, trial, epoch)
        self.study = Study(journal, "s", seed=1, make_sampler=RandomSampler)
        scheduler = self.scheduler = EarlyStopping(VAL_ERROR, EPOCHS, 1, 3)
        self.search = StudySearch(self.study, point, scheduler, TRIALS, SLOTS, EPOCHS)
        self.search.make_trial = self.begin
        self.recorder = StudyRecorder(self.study, scheduler)

    def begin(self, trial):
        if not trial.state.is_finished():
            self.search._live.add(f"{trial.number:05d}")
            if all(trial.number != number for _, number, _ in self.running):
                self.running.append((self.now + 1 + trial.number / 100, trial.number, 1))
        return trial

    def value(self, number, epoch):
        level, noise = (np.random.default_rng([2, number, *of]).random() for of in ((), (epoch,)))
        return float(level + 0.1 * noise)

    def fill(self):
        while self.search.next_trial() is not None:
            pass

    def steps(self):
        """Yields at each moment at which a driver may be killed."""
        self.fill()
        while self.running:
            self.running.sort()
            yield
            self.now, number, epoch = self.running[0]
            trial = SimpleNamespace(trial_id=f"{number:05d}")
            result = {EPOCH: epoch, VAL_ERROR: self.value(number, epoch)}
            decision = self.scheduler.on_trial_result(None, trial, result)
            self.recorder.on_trial_result(0, [], trial, result)
            yield
            if decision == TrialScheduler.STOP:
                self.scheduler.on_trial_complete(None, trial, result)
                self.search.on_trial_complete(trial.trial_id, result)
                self.running.pop(0)
            else:
                self.running[0] = (self.now + 1, number, epoch + 1)
            self.fill()

    def resumed(self, journal):
        """What a resume finds if the driver is killed now; epochs that are not saved are lost."""
        shutil.copy(self.journal, journal)
        left = []
        for when, number, epoch in self.running:
            if epoch in self.study.trial(number).intermediate_values and epoch < EPOCHS:  # saved
                when, epoch = when + 1, epoch + 1
            left.append((when, number, epoch))
        resumed = Simulation(journal, self.point, left, self.now)
        ended = {t.number for t in resumed.study.trials() if t.state.is_finished()}
        resumed.running = [one for one in left if one[1] not in ended]
        return resumed

    def ends(self):
        return [(t.number, t.intermediate_values, ending_of(t)) for t in self.study.trials()]


def test_a_sweep_that_is_killed_at_any_moment_stops_the_trials_that_it_would_have(tmp_path, point):
    """An epoch is judged once; a stop that was decided is told, though nobody was told of it."""
    whole, killed = Simulation(tmp_path / "whole", point), []
    for moment, _ in enumerate(whole.steps()):
        if moment in KILLS:
            killed.append(whole.resumed(tmp_path / f"{moment}"))
    stopped = sum(ending.state is EndState.STOPPED_EARLY for _, _, ending in whole.ends())
    assert len(whole.ends()) == TRIALS and stopped == 5 and len(killed) == 16
    for resumed in killed:
        for _ in resumed.steps():
            pass
        assert resumed.ends() == whole.ends(), resumed.journal.name


def test_a_stop_that_was_decided_is_no_lost_worker(study, point):
    """A trial whose last worker is lost while the checkpoint of its stop is saved."""
    search = search_over(study, point)
    study.ask(point)
    why = search._scheduler.endings["00000"] = Ending(EndState.STOPPED_EARLY, "unlikely")
    search.on_trial_complete("00000", error=True)
    assert ending_of(study.trials()[0]) == why


def test_the_value_that_a_stop_was_decided_by_outlives_a_kill(study, point, monkeypatch):
    """The driver is killed when the decision is in the journal, and before the value is."""
    study.ask(point)
    scheduler = EarlyStopping(VAL_ERROR, 9, 1, 3)
    why = scheduler.endings["00000"] = Ending(EndState.STOPPED_EARLY, "unlikely")
    monkeypatch.setattr(study, "report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    trial = type("Trial", (), {"trial_id": "00000"})
    with pytest.raises(KeyboardInterrupt):
        StudyRecorder(study, scheduler).on_trial_result(0, [], trial, {EPOCH: 2, VAL_ERROR: 0.8})
    monkeypatch.undo()
    search_over(study, point)
    (stopped,) = study.trials()
    assert (stopped.intermediate_values, ending_of(stopped)) == ({2: 0.8}, why)


def test_half_of_an_ending_that_an_earlier_version_wrote_is_none(study, point):
    """They wrote the state before the reason; the trial goes on."""
    trial = study.ask(point)
    study._storage.set_trial_user_attr(trial._trial_id, "end_state", "failed")
    search_over(study, point)
    assert not study.trials()[0].state.is_finished()


def record(study, number, result):
    trial = type("Trial", (), {"trial_id": f"{number:05d}"})
    StudyRecorder(study, EarlyStopping(VAL_ERROR, 9, 1, 3)).on_trial_result(0, [], trial, result)


def test_each_value_is_recorded_once(study, point):
    study.ask(point)
    record(study, 0, {EPOCH: 1, VAL_ERROR: 0.5})
    record(study, 0, {EPOCH: 2})  # not evaluated
    record(study, 0, {EPOCH: 4, VAL_ERROR: 0.2, HISTORY: [(1, 0.5), (3, 0.3)]})
    record(study, 0, {EPOCH: 5, VAL_ERROR: 0.1, **Ending(EndState.DIVERGED, "").to_result()})
    assert study.trials()[0].intermediate_values == {1: 0.5, 3: 0.3, 4: 0.2}


def test_completing_a_trial_writes_no_value_again(study, point):
    search = search_over(study, point)
    study.ask(point)
    search.on_trial_complete("00000", {EPOCH: 9, VAL_ERROR: 0.3})
    assert study.trials()[0].intermediate_values == {}


class AwayOnce:
    """A bucket that does not answer the first question."""

    def __init__(self):
        self.questions = 0

    def get_file_info(self, selector):
        self.questions += 1
        if self.questions == 1:
            raise OSError("no route to the bucket")
        return fs.LocalFileSystem().get_file_info(selector)


def test_a_trial_waits_for_the_bucket_that_has_its_checkpoints(study, point, tmp_path, monkeypatch):
    folder = tmp_path / "00000"
    (folder / "checkpoint_000002").mkdir(parents=True)
    (folder / "checkpoint_000002" / "state").touch()
    bucket, adopted = AwayOnce(), []
    monkeypatch.setattr(ray_compat, "create_trial", lambda *_: SimpleNamespace())
    monkeypatch.setattr(ray_compat, "trial_folder", lambda trial: (bucket, str(folder)))
    monkeypatch.setattr(
        ray_compat, "adopt_checkpoint", lambda trial, folder, result: adopted.append(folder)
    )
    search = search_over(study, point, ask_storage=Retry("the bucket", 60))
    search.add_configurations([SimpleNamespace()])
    search.make_trial(study.ask(point))
    assert adopted == [f"{folder}/checkpoint_000002"] and bucket.questions == 2
