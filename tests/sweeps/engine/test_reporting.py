"""The report: its tables are whole."""

import io
import re
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from rich.console import Console

from ali import output
from ali.config import Config
from sweeps.engine import reporting
from sweeps.engine.confirmation import Confirmed, Estimate
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.options import Options
from sweeps.engine.results import TrialResult

pytestmark = pytest.mark.versions


def test_the_table_of_best_trials_is_not_cut():
    config = Config(bn_x=(True,) * 5, dropout_x=0.25, dropout_z=0.25, dropout_xz=0.25)
    slopes = {f"slope_{who}": 0.125 for who in ("encoder", "decoder", "discriminator")}
    plain = config.replace(**slopes).to_dict()
    metrics = dict.fromkeys(("sample_distance", "sample_diversity", "val_error"), 0.123456)
    run = SimpleNamespace(data=SimpleNamespace(metrics=metrics))
    trial = TrialResult("00000", plain, 0.123456, {1: 0.123456}, None, True)
    other = Config.from_dict(plain).replace(weight_std=0.025, batch_size=128).to_dict()
    trials = [trial, TrialResult("00001", other, 0.123456, {1: 0.123456}, None, True)]
    for count in (1, 2):
        table = reporting._best(Options(name="s"), trials[:count], {"00000": run}, "val_error")
        width = reporting.WIDTH + 2 * reporting.OPTIONAL_WIDTH * (count - 1)
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(table)
        shown = console.file.getvalue()
        assert "…" not in shown
    assert "diversity" in shown and "1.0e-4/1.0e-4" in shown
    assert "11111" in shown and "0.1235" in shown and ".025" in shown and "128" in shown


def best(value, diversity):
    """(trial, runs, parent) of a sweep whose encoder has 0.5 untrained."""
    run = SimpleNamespace(data=SimpleNamespace(metrics={"sample_diversity": diversity}))
    known = {"untrained_error": 0.6, "untrained_bn_error": 0.5, "raw_pixel_error": 0.8}
    parent = SimpleNamespace(data=SimpleNamespace(metrics=known))
    return TrialResult("00000", {}, value, {6: value}, None, True), {"00000": run}, parent


@pytest.mark.parametrize(
    ("value", "diversity", "label"),
    [
        (0.4, 0.9, "train the best"),
        (0.4, 0.1, "train the best, which has collapsed"),
        (0.5, 0.9, "train the best, which is no better than untrained"),
        (0.6, 0.1, "train the best, which has collapsed, which is no better than untrained"),
    ],
)
def test_a_doubtful_best_is_offered_with_the_doubt(value, diversity, label):
    trial, by_id, parent = best(value, diversity)
    doubts = reporting._doubts(trial, [value], by_id, parent)
    commands = dict(reporting._next_commands(Options(name="s"), doubts, "7"))
    assert list(commands) == ["compare the runs", "then open", label]
    assert "/#/experiments/7/runs?" in commands["then open"]


def test_a_budget_that_is_too_short_is_called_so():
    trial, _, parent = best(0.55, 0.9)
    line = reporting._too_short(Options(name="s", epochs=6), [trial.value], parent)
    assert line.startswith("6 epochs are too short: the best trial, 0.5500,")
    assert "0.5000" in line and "--epochs" in line


def study(trials, effect, seed):
    """Trials whose value depends on p0 by `effect`, with noise of 0.3."""
    rng, found = np.random.default_rng(seed), optuna.create_study()
    for _ in range(trials):
        params = {f"p{i}": float(rng.random()) for i in range(8)}
        value = effect * params["p0"] + rng.normal(0, 0.3)
        distributions = dict.fromkeys(params, optuna.distributions.FloatDistribution(0, 1))
        found.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=value,
                intermediate_values={1: value},
            )
        )  # fmt: skip
    return found.get_trials()


def shown(table):
    console = Console(file=io.StringIO(), width=reporting.WIDTH, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_importance_is_shown_where_it_exceeds_chance():
    text = shown(reporting._importance(study(60, effect=2, seed=0)))
    assert "p0" in text and "90 % interval" in text
    assert not any(f"p{i}" in text for i in range(1, 8))


def test_what_is_chance_is_called_chance():
    said = [reporting._importance(study(30, effect=0, seed=seed)) for seed in range(8)]
    lines = [text for text in said if isinstance(text, str)]
    assert len(lines) >= 7, "one of twenty may seem important"
    assert re.search(r"none can be told from chance in 30 trials.* some \d+ trials", lines[0])


def test_few_trials_tell_nothing():
    assert "11 trials are too few" in reporting._importance(study(11, effect=2, seed=0))


FOUND = [
    Confirmed(3, (0.30, 0.32, 0.34), 0, 3),
    Confirmed(2, (0.31, 0.33, 0.35), 1, 3),
    Confirmed(0, (0.6, 0.62, 0.7), 0, 3),  # the paper's point
]
KNOWN = {3: Estimate(0.33, 0.02, 6), 2: Estimate(0.34, 0.02, 6), 0: Estimate(0.6, 0.02, 6)}


def test_what_a_sweep_announces():
    line = reporting.announcement(FOUND, KNOWN, control=0)
    assert "trial 00003 has 0.3200 over 3 fresh seeds; expect 0.3300 (95 % interval 0.28" in line
    assert re.search(r"the paper's point, with probability (9\d|100)%", line)
    assert re.search(r"the second, 00002, with probability [67]\d%", line)


def test_one_repetition_has_no_interval():
    found, known = [Confirmed(1, (0.5,), 0, 1)], {1: Estimate(0.49, 0.1, 1)}
    line = reporting.announcement(found, known, control=None)
    says = "the configuration of trial 00001 has 0.5000 over 1 fresh seed; expect 0.4900.\n"
    assert line == f"Confirmed: {says}"
    other = reporting.announcement(found, known, control=None, best="00007")
    ahead = "Not confirmed: trial 00007, ahead with one seed only. Of those repeated, "
    assert other == ahead + says


def test_a_difference_within_the_noise_is_a_tie():
    table = reporting._confirmation(FOUND, KNOWN, {}, [])
    lines = {
        n: line
        for line in shown(table).splitlines()
        for n in ("00003", "00002", "00000")
        if n in line
    }
    assert "tie" in lines["00002"] and "1 diverged" in lines["00002"]
    assert "worse" in lines["00000"] and "tie" not in lines["00003"]


def test_the_best_is_judged_by_all_runs_of_its_configuration():
    trial, by_id, parent = best(0.52, 0.9)
    again = optuna.trial.create_trial(value=0.44, user_attrs={"confirms": 0})
    again.number = 1
    own = optuna.trial.create_trial(value=0.52)
    own.number = 0
    values = reporting.runs_of(trial, reporting.confirmed([own, again]))
    assert values == [0.52, 0.44]
    assert reporting._doubts(trial, values, by_id, parent) == []
    assert reporting._doubts(trial, values[:1], by_id, parent) == [reporting.UNTRAINED]
    line = reporting._too_short(Options(name="s", epochs=6), [0.52, 0.54], parent)
    assert "0.5300 on average over 2 seeds" in line


def test_the_text_of_an_error_is_shown_as_it_is():
    reason = "KeyError: size [64, 3] of [/layers/0] in [bold] :smile:"
    ended = TrialResult("00000", {}, None, {}, Ending(EndState.FAILED, reason), False)
    out = output.console(file=io.StringIO(), width=reporting.WIDTH, color_system=None)
    out.print(reporting._ends([ended]))
    assert reason in out.file.getvalue()
