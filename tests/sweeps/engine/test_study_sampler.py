"""What the sampler is shown: each configuration once."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from sweeps.engine.confirmation import CONFIRMS, estimates
from sweeps.engine.study import ByConfiguration, tpe

pytestmark = pytest.mark.versions
SPACE = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("a", "b")}
optuna.logging.set_verbosity(optuna.logging.WARNING)


def filled(count, again=(), seed=0):
    """A study of `count` configurations, of which those in `again` have another run each time."""
    rng, study = np.random.default_rng(seed), optuna.create_study(sampler=tpe(7, 3))
    points = [{name: float(rng.random()) for name in SPACE} for _ in range(count)]
    for number, attributes in [(n, {}) for n in range(count)] + [(n, {CONFIRMS: n}) for n in again]:
        value = points[number]["a"] + 0.3 * float(rng.normal())
        study.add_trial(
            create_trial(
                params=points[number], distributions=SPACE, value=value, user_attrs=attributes
            )
        )
    return study


def draw(study, sampler):
    study.sampler = sampler
    return study.ask(SPACE).params


def test_without_repetitions_it_is_tpe():
    assert draw(filled(12), tpe(5, 3)) == draw(filled(12), tpe(5, 3)._inner)


def test_with_repetitions_it_is_tpe_on_one_trial_a_configuration():
    best = min(filled(12).get_trials(), key=lambda trial: trial.value).number
    study = filled(12, again=[best] * 8)
    trials, other = study.get_trials(), optuna.create_study()
    values = estimates(trials)
    for trial in trials[:12]:
        other.add_trial(
            create_trial(
                params=trial.params, distributions=SPACE, value=values[trial.number].mean,
            )
        )  # fmt: skip
    point = draw(study, tpe(5, 3))
    assert point == draw(other, tpe(5, 3)._inner)
    assert point != draw(filled(12, again=[best] * 8), tpe(5, 3)._inner), "bare TPE sees 20"


def test_a_trial_that_runs_keeps_others_away_and_one_that_failed_says_nothing():
    study = filled(12, again=[3])
    study.add_trial(
        create_trial(state=TrialState.RUNNING, params={"a": 0.5, "b": 0.5}, distributions=SPACE)
    )
    study.add_trial(create_trial(state=TrialState.FAIL))
    seen = []

    class Spy(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study, trial):
            seen[:] = study.get_trials()
            return {}

    draw(study, ByConfiguration(Spy(seed=1)))
    states = [trial.state for trial in seen]
    running = [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]  # the last: what is drawn
    assert states == [TrialState.COMPLETE] * 12 + running
