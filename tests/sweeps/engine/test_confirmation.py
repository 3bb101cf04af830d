"""Confirmation: which configurations get fresh seeds, and what they say."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from sweeps.engine.confirmation import (
    CONFIRMS,
    CONTROL,
    RACED,
    Confirmed,
    confirmed,
    controls,
    estimates,
    level,
    next_to_confirm,
    next_to_race,
    ranked_by_value,
    ranking,
)
from sweeps.engine.endings import RETRIES, Ending, EndState
from sweeps.engine.estimate import estimate
from sweeps.engine.study import best_trials

DIVERGED = Ending(EndState.DIVERGED, "non-finite d_loss at step 3").to_result()


class Sweep:
    """Trials as a study numbers them."""

    def __init__(self):
        self.trials = []

    def add(self, value, state=TrialState.COMPLETE, curve=None, **attributes):
        curve = [value] if curve is None and value is not None else curve or []
        trial = create_trial(
            value=value if state == TrialState.COMPLETE else None, state=state,
            user_attrs=attributes, intermediate_values=dict(enumerate(curve, start=1)),
        )  # fmt: skip
        trial.number = len(self.trials)
        self.trials.append(trial)

    def race(self, means, count, seeds, noise=0.0, seed=0):
        """Trains what the race asks for, with values around the true means."""
        rng = np.random.default_rng(seed)
        while (number := next_to_confirm(self.trials, count, seeds)) is not None:
            self.add(means[number] + rng.normal(0, noise), **{CONFIRMS: number})
        return confirmed(self.trials)


@pytest.fixture
def sweep():
    found = Sweep()
    found.add(0.7, **{CONTROL: True})
    for value in (0.5, 0.4, 0.6, 0.3):
        found.add(value)
    return found


def test_the_best_and_the_papers_point_are_confirmed(sweep):
    assert {c.number for c in sweep.race([0.7, 0.5, 0.4, 0.6, 0.3], 2, 3, noise=0.1)} == {0, 2, 4}
    assert next_to_confirm(sweep.trials, 0, 3) is None, "--confirm 0"


def test_all_get_the_same_number_of_seeds_where_they_cannot_be_told_apart(sweep):
    found = sweep.race(dict.fromkeys(range(5), 0.5), 2, 4, noise=0.1)
    assert {len(c.values) for c in found} <= {3, 4} and len(found) == 3
    assert max(len(c.values) for c in found) == 4


def test_the_race_ends_when_the_order_is_settled(sweep):
    found = sweep.race([0.9, 0.5, 0.8, 0.6, 0.3], 2, 20, noise=0.01)
    assert found[0].number == 4 and all(len(c.values) <= 4 for c in found)


def test_a_lucky_trial_is_not_the_best_after_confirmation(sweep):
    sweep.race({0: 0.7, 2: 0.45, 4: 0.65}, 2, 4, noise=0.02)  # trial 4 had 0.3 by luck
    order = [t.number for t in best_trials(sweep.trials)]
    assert order[:2] == [2, 1], "what fresh seeds say of 4 is worse than the one run of 1"
    assert all(CONFIRMS not in t.user_attrs for t in best_trials(sweep.trials))
    assert [t.number for t in ranked_by_value(sweep.trials)] == [4, 2, 1, 3, 0]


def test_a_run_that_diverged_counts_as_the_worst_value(sweep):
    sweep.add(0.35, **{CONFIRMS: 4})
    sweep.add(0.2, TrialState.PRUNED, **DIVERGED, **{CONFIRMS: 4})
    sweep.add(None, TrialState.FAIL, **{CONFIRMS: 4})  # a lost worker says nothing
    (found,) = confirmed(sweep.trials)
    assert found == Confirmed(4, (0.35, 0.7), (0.35, 0.7), 1, 3)


def test_a_run_that_diverged_counts_no_worse_than_runs_that_end(sweep):
    """Though its first epoch, or another's, was far off: that says nothing of where runs end."""
    sweep.add(0.2, TrialState.PRUNED, [100.0, 0.2], **DIVERGED, **{CONFIRMS: 4})
    (found,) = confirmed(sweep.trials)
    assert found == Confirmed(4, (0.7,), (0.7,), 1, 1)


def test_a_control_that_was_retried_is_one_configuration():
    found = Sweep()
    found.add(None, TrialState.FAIL, **{CONTROL: True})
    found.add(0.5)
    found.add(0.4)
    found.add(0.7, **{RETRIES: 0})
    assert controls(found.trials) == [3]
    asked = []
    while (number := next_to_confirm(found.trials, 1, 2)) is not None:
        asked.append(number)
        found.add([0.7, 0.5, 0.4, 0.7][number], **{CONFIRMS: number})
    assert sorted(asked) == [2, 2, 3, 3]


def test_the_race_goes_on_where_a_confirmed_sweep_gets_more_trials(sweep):
    """What was confirmed at the end counts for no share of the race."""
    for number in (4, 4, 2, 2, 0, 0):  # the first of five trials' race, and five to confirm
        sweep.add(0.5, **{CONFIRMS: number})
    order = ""
    for value in (0.6, 0.55, 0.5, 0.62, 0.58, 0.7, 0.66):
        sweep.add(value)
        order += "n"
        while (number := next_to_race(sweep.trials, 3, 4)) is not None:
            sweep.add(0.5, **{CONFIRMS: number})
            order += "r"
    assert order == "nrnnnrnnnr"


def test_runs_that_always_fail_end_the_race_too(sweep):
    for _ in range(20):
        if (number := next_to_confirm(sweep.trials, 2, 3)) is None:
            break
        sweep.add(None, TrialState.FAIL, **{CONFIRMS: number})
    assert len(sweep.trials) == 5 + 3 * 3
    assert [t.number for t in best_trials(sweep.trials)] == [4, 2, 1, 3, 0], "by value, then"


def test_a_run_that_has_begun_counts(sweep):
    sweep.add(None, TrialState.RUNNING, **{CONFIRMS: 4})
    assert next_to_confirm(sweep.trials, 1, 2) == 0, "the control, which has none"


def test_what_is_expected_of_the_best_is_not_biased_by_having_chosen_it():
    """Of many sweeps the announced mean is right on average, and the interval as often as it says:
    the mean of the fresh runs alone is not, since they were what it was chosen by."""
    rng, off, bare, held = np.random.default_rng(0), [], [], []
    for _ in range(300):
        found, true = Sweep(), rng.normal(0.5, 0.1, 20)
        for mean in true:
            found.add(rng.normal(mean, 0.1))
        while (number := next_to_race(found.trials, 1, 4)) is not None:
            found.add(rng.normal(true[number], 0.1), **{CONFIRMS: number})
        best = ranking(found.trials)[0]
        known = estimates(found.trials)[best]
        low, high = known.interval
        off.append(known.mean - true[best])
        bare += [c.mean - true[best] for c in confirmed(found.trials) if c.number == best]
        held.append(low <= true[best] <= high)
    assert abs(np.mean(off)) < 0.01 and np.mean(bare) < -0.015
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


def test_an_outstanding_configuration_is_not_drawn_far_towards_the_others():
    """As the best one of `make sweep`'s space, where seeds make a fourth of the variance."""
    rng, off, held = np.random.default_rng(0), [], []
    for _ in range(100):
        found, true = Sweep(), np.append(rng.normal(0.66, 0.08, 29), 0.25)
        for mean in true:
            found.add(rng.normal(mean, 0.05))
        while (number := next_to_race(found.trials, 4, 4)) is not None:
            found.add(rng.normal(true[number], 0.05), **{CONFIRMS: number})
        known = estimates(found.trials)[best := ranking(found.trials)[0]]
        low, high = known.interval
        off.append(known.mean - true[best])
        held.append(low <= true[best] <= high)
    assert abs(np.mean(off)) < 0.015 and np.mean(held) > 0.9, "normally distributed: 0.05 off"


def test_a_configuration_is_asked_again_as_it_was(study, point):
    study._study.enqueue_trial({"lr_d": 3e-4})
    first = study.ask(point)
    study.enqueue_again(first.number)
    again = study.ask(point)
    assert again.params == first.params and again.user_attrs[CONFIRMS] == first.number
    assert isinstance(study.records, optuna.Study)


def test_without_fresh_seeds_the_best_is_the_lowest_value(sweep):
    assert [t.number for t in best_trials(sweep.trials)] == [4, 2, 1, 3, 0]
    assert 0.35 < estimates(sweep.trials)[4].mean < 0.45, "half way to the others"


def test_a_good_value_counts_less_than_several_fair_ones(sweep):
    for value in (0.38, 0.4, 0.39):
        sweep.add(value, **{CONFIRMS: 2})
    runs, overall = np.array([0.4, 0.38, 0.4, 0.39]), 0.5
    mean = estimates(sweep.trials)[2].mean
    assert runs.mean() < mean < (runs.sum() + overall) / 5, "its runs agree: less of them is luck"
    assert [t.number for t in best_trials(sweep.trials)][:2] == [4, 2]
    sweep.add(0.6, **{CONFIRMS: 4})
    assert [t.number for t in best_trials(sweep.trials)][:2] == [2, 4]


def test_after_so_many_new_configurations_the_best_gets_another_seed(sweep):
    assert next_to_race(sweep.trials, 0, 4) is None, "--race 0"
    assert next_to_race(sweep.trials[:1], 1, 4) is None, "nothing to compare it with"
    assert next_to_race(sweep.trials, 6, 4) is None, "five have begun"
    assert next_to_race(sweep.trials, 5, 4) == 4
    sweep.add(None, TrialState.RUNNING, **{CONFIRMS: 4})
    assert next_to_race(sweep.trials, 5, 4) is None, "one repetition for five"
    assert next_to_race(sweep.trials, 2, 4) == 2, "the best has one running"
    sweep.add(None, TrialState.WAITING)
    assert next_to_race(sweep.trials, 2, 4) is None, "what waits goes first"


def test_a_race_is_among_the_best_and_ends_with_the_seeds(sweep):
    for value in np.linspace(0.8, 0.9, 30):
        sweep.add(float(value))
    asked = []
    while (number := next_to_race(sweep.trials, 1, 2)) is not None:
        asked.append(number)
        sweep.add(0.1, **{CONFIRMS: number})
    assert sorted(set(asked)) == [1, 2, 3, 4] and len(asked) == 2 * RACED


def test_one_lucky_evaluation_at_the_end_does_not_make_the_best():
    """A run counts with the last fifth of its curve; expected is what runs have at their end."""
    found, steady = Sweep(), [0.9] * 8 + [0.4, 0.38]
    found.add(0.3, curve=[0.9] * 8 + [0.6, 0.3])
    found.add(0.38, curve=steady)
    assert [level(t) for t in found.trials] == pytest.approx([0.45, 0.39])
    assert ranking(found.trials) == [1, 0] and ranked_by_value(found.trials)[0].number == 0
    drift = ((0.3 - 0.45) + (0.38 - 0.39)) / 2
    known = estimate({0: [0.45], 1: [0.39]})[1]
    assert estimates(found.trials)[1].mean == pytest.approx(known.mean + drift)
    found.add(0.38, curve=steady, **{CONFIRMS: 1})
    known = estimate({0: [0.45], 1: [0.39, 0.39]})[1]
    assert estimates(found.trials)[1].mean == pytest.approx(known.mean - 0.01), "the repetition's"
    (again,) = confirmed(found.trials)
    assert again.values == (0.38,) and again.levels == pytest.approx((0.39,))


def test_a_short_run_counts_with_its_last_value():
    found = Sweep()
    found.add(0.5, curve=[0.7, 0.6, 0.8, 0.5])
    assert level(found.trials[0]) == 0.5
