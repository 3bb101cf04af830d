"""The report: its tables are whole."""

import copy
import re
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial
from rich.cells import cell_len

from ali.config import Config
from sweeps.engine.confirmation import Confirmed, confirmed, estimates
from sweeps.engine.endings import END_STATE, Ending, EndState
from sweeps.engine.estimate import Estimate
from sweeps.engine.journal import CONFIG
from sweeps.engine.options import Options
from sweeps.engine.reporting import evidence, findings, series, tables, text
from sweeps.engine.results import TrialResult

pytestmark = pytest.mark.versions


def test_the_table_of_best_trials_is_not_cut():
    config = Config(bn_x=(True,) * 5, dropout_x=0.25, dropout_z=0.25, dropout_xz=0.25)
    slopes = {f"slope_{who}": 0.125 for who in ("encoder", "decoder", "discriminator")}
    plain = config.replace(**slopes).to_dict()
    of_samples = ("sample_distance", "sample_diversity", "sample_separation")
    metrics = dict.fromkeys((*of_samples, "val_error"), 0.123456)
    other = Config.from_dict(plain).replace(weight_std=0.025, batch_size=128).to_dict()
    trials = [
        create_trial(value=0.123456, user_attrs={CONFIG: config}, intermediate_values={1: 0.123456})
        for config in (plain, other)
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    run, parent = (
        SimpleNamespace(data=SimpleNamespace(metrics=metrics, tags=tags))
        for tags in ({"trial_id": "00000"}, {"objective": "val_error"})
    )
    for count in (1, 2):
        found = findings.Findings(Options(name="s"), trials[:count], [run], parent)
        table = tables.best_table(found)
        width = text.WIDTH + 2 * text.OPTIONAL_WIDTH * (count - 1)
        (shown,) = text.tables_of(table, width)  # in one piece
        assert "…" not in shown
    assert "diversity  separation" in shown and "1.0e-4/1.0e-4" in shown
    assert "11111" in shown and "0.1235" in shown and ".025" in shown and "128" in shown


def best(value, diversity, separation=0.8):
    """(trial, runs, parent) of a sweep whose encoder has 0.5 untrained."""
    metrics = {"sample_diversity": diversity, "sample_separation": separation}
    run = SimpleNamespace(data=SimpleNamespace(metrics=metrics))
    known = {"untrained_error": 0.6, "untrained_bn_error": 0.5, "raw_pixel_error": 0.8}
    parent = SimpleNamespace(data=SimpleNamespace(metrics=known))
    return TrialResult("00000", {}, value, {6: value}, None, True), {"00000": run}, parent


@pytest.mark.parametrize(
    ("value", "diversity", "separation", "label"),
    [
        (0.4, 0.9, 0.8, "train the best"),
        (0.4, 0.1, 0.8, "train the best, which has collapsed"),
        (0.4, 0.9, 0.2, "train the best, which has collapsed"),
        (0.5, 0.9, 0.8, "train the best, which is no better than untrained"),
        (0.6, 0.1, 0.8, "train the best, which has collapsed, which is no better than untrained"),
    ],
)
def test_a_doubtful_best_is_offered_with_the_doubt(value, diversity, separation, label):
    trial, by_id, parent = best(value, diversity, separation)
    doubts = findings._doubts(trial, value, by_id, parent)
    commands = dict(findings.next_commands(Options(name="s"), doubts, "7"))
    assert list(commands) == ["compare the runs", "then open", label]
    assert "/#/experiments/7/runs?" in commands["then open"]
    assert label not in dict(findings.next_commands(Options(name="s"), None, "7"))
    by_id["00000"].data.metrics["loss"] = 1.0  # a VAE's, which decodes to means
    vae = findings._doubts(trial, value, by_id, parent)
    assert vae == [doubt for doubt in doubts if "collapsed" not in doubt]


def test_beside_a_collapsed_best_the_best_that_is_sound_is_offered():
    trials = [
        create_trial(value=value, user_attrs={CONFIG: Config().to_dict()},
                     intermediate_values={1: value})
        for value in (0.2, 0.3, 0.4)
    ]  # fmt: skip
    runs = []
    for number, (trial, diversity) in enumerate(zip(trials, (0.1, 0.15, 0.9), strict=True)):
        trial.number = number
        metrics, tags = {"sample_diversity": diversity}, {"trial_id": f"{number:05d}"}
        runs.append(SimpleNamespace(data=SimpleNamespace(metrics=metrics, tags=tags)))
    parent = SimpleNamespace(data=SimpleNamespace(metrics={}, tags={"objective": "val_error"}))
    found = findings.Findings(Options(name="s"), trials, runs, parent)
    said = " ".join(findings.verdict(found))
    assert "trial 00000 have collapsed" in said and "whose samples have not is 00002" in said
    command = dict(found.next_commands)["train the best that has not"]
    assert command.endswith("best.py --name s --trial 00002")
    runs[0].data.metrics["sample_diversity"] = 0.9
    found = findings.Findings(Options(name="s"), trials, runs, parent)
    assert found.sound is None and len(found.next_commands) == 3


def test_a_budget_that_is_too_short_is_called_so():
    trial, _, parent = best(0.55, 0.9)
    line = findings._too_short(Options(name="s", epochs=6), [trial.value], trial.value, parent)
    assert line.startswith("6 epochs are too short: the best trial, 0.5500,")
    assert "0.5000" in line and line.endswith("--epochs.")
    line = findings._too_short(Options(name="s", epochs=6), [0.55], 0.55, parent, earlier=True)
    assert line.endswith("or with --objective 'score = val_error + 0.2 * min(sample_distance, 1)'.")


@pytest.mark.parametrize(("error", "says"), [(0.3, "val_error is 0.3000 with"), (0.6, "too short")])
def test_of_an_objective_computed_from_others_the_error_is_said_too(error, says):
    trial = create_trial(
        value=1.2, user_attrs={CONFIG: Config().to_dict()}, intermediate_values={1: 1.2}
    )
    trial.number = 0
    metrics = {"val_error": error, "score": 1.2, "sample_distance": 0.4}
    of_trial = SimpleNamespace(metrics=metrics, tags={"trial_id": "00000"})
    tags = {"objective": "score", "formula": "val_error + sample_distance"}
    of_sweep = SimpleNamespace(metrics={"untrained_error": 0.5}, tags=tags)
    runs = [SimpleNamespace(data=of_trial)]
    found = findings.Findings(Options(name="s"), [trial], runs, SimpleNamespace(data=of_sweep))
    assert says in " ".join(findings.verdict(found))
    table = tables.best_table(found)
    assert table.headings[:5] == ("trial", "score", "expected", "distance", "val_error")
    assert table.rows[0][3:5] == ("0.40", f"{error:.4f}")
    assert not series.baselines(found)


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
    return "\n\n".join([table.title, *text.tables_of(table, text.WIDTH)])


def importance(trials):
    return evidence.importance_table(evidence.importance_of(trials))


def test_importance_is_shown_where_it_exceeds_chance():
    found = evidence.importance_of(study(60, effect=2, seed=0))
    table = shown(evidence.importance_table(found))
    assert "p0" in table and "90 % interval" in table
    assert not any(f"p{i}" in table for i in range(1, 8))
    assert re.match(r"What mattered: p0 \d+% \(90 % interval", evidence.what_mattered(found))


def test_what_is_chance_is_called_chance():
    said = [importance(study(30, effect=0, seed=seed)) for seed in range(8)]
    lines = [line for line in said if isinstance(line, str)]
    assert len(lines) >= 7, "one of twenty may seem important"
    assert re.search(r"none can be told from chance in 30 trials.* some \d+ trials", lines[0])


def with_repetitions(trials, number, values):
    """The trials, and repetitions of one of them with these values."""
    again = []
    for value in values:
        trial = copy.deepcopy(trials[number])
        trial.number, trial.user_attrs = len(trials) + len(again), {"confirms": number}
        trial.value, trial.intermediate_values = value, {1: value}
        again.append(trial)
    return [*trials, *again]


def test_repetitions_of_a_configuration_are_one_observation(monkeypatch):
    """However often a good configuration has been repeated, chance stays what it is."""
    monkeypatch.setattr("sweeps.engine.importance.REPEATS", 20)
    trials = study(30, effect=0, seed=0)
    best = min(trials, key=lambda trial: trial.value)
    values = [best.value + step for step in (-0.03, 0.01, 0.02)] * 4
    again = evidence.importance_of(with_repetitions(trials, best.number, values))
    best.value = best.intermediate_values[1] = float(np.median([best.value, *values]))
    assert again == evidence.importance_of(trials) and again.trials == 30
    assert not again.significant
    eleven = study(11, effect=2, seed=0)
    assert "11 trials are too few" in importance(with_repetitions(eleven, 0, [0.1] * 9))


def test_one_run_that_went_far_off_does_not_make_a_good_configuration_a_bad_one(monkeypatch):
    monkeypatch.setattr("sweeps.engine.importance.REPEATS", 2)
    trials = study(14, effect=2, seed=0)
    best = min(trials, key=lambda trial: trial.value)
    again = with_repetitions(trials, best.number, [best.value, best.value, 40.0])
    assert evidence.importance_of(again) == evidence.importance_of(trials)


def test_repetitions_of_a_retried_trial_are_of_one_configuration(monkeypatch):
    """The control may be repeated before and after a resume retried it."""
    monkeypatch.setattr("sweeps.engine.importance.REPEATS", 2)
    trials = with_repetitions(study(14, effect=0, seed=0), 3, [0.1, 0.2, 0.3])
    trials[3].user_attrs = {END_STATE: EndState.FAILED.value}
    trials[3].state = optuna.trial.TrialState.FAIL
    trials[15].user_attrs, trials[16].user_attrs = {"retries": 3}, {"confirms": 15}
    assert evidence.importance_of(trials).trials == 14


def test_few_trials_tell_nothing():
    assert "11 trials are too few" in importance(study(11, effect=2, seed=0))


FOUND = [
    Confirmed(3, (0.30, 0.32, 0.34), (0.30, 0.32, 0.34), 0, 3),
    Confirmed(2, (0.31, 0.33, 0.35), (0.31, 0.33, 0.35), 1, 3),
    Confirmed(0, (0.6, 0.62, 0.7), (0.6, 0.62, 0.7), 0, 3),  # the paper's point
]
KNOWN = {3: Estimate(0.33, 0.02, 6), 2: Estimate(0.34, 0.02, 6), 0: Estimate(0.6, 0.02, 6)}


def test_what_a_sweep_announces():
    line = evidence.announcement(FOUND, KNOWN, control=0)
    assert "trial 00003 has 0.3200 over 3 fresh seeds; expect 0.3300 (95 % interval 0.28" in line
    assert re.search(r"the paper's point, with probability (9\d|100)%", line)
    assert re.search(r"the second, 00002, with probability [67]\d%", line)


def test_one_repetition_has_no_interval():
    found, known = [Confirmed(1, (0.5,), (0.5,), 0, 1)], {1: Estimate(0.49, 0.1, 1)}
    line = evidence.announcement(found, known, control=None)
    says = "the configuration of trial 00001 has 0.5000 over 1 fresh seed; expect 0.4900.\n"
    assert line == f"Confirmed: {says}"
    other = evidence.announcement(found, known, control=None, best="00007")
    ahead = "Not confirmed: trial 00007, ahead with one seed only. Of those repeated, "
    assert other == ahead + says


def test_columns_that_say_nothing_yet_are_not_shown():
    table = evidence.confirmation_table(FOUND[:1], KNOWN, {}, [])
    assert "95 % interval" in table.headings and "takes" not in table.caption
    one = evidence.confirmation_table(
        [Confirmed(1, (0.5,), (0.5,), 0, 1)], {1: Estimate(0.49, 0.1, 1)}, {}, []
    )
    assert one.headings == ("configuration of", "mean", "seeds", "collapsed", "expected")
    assert list(one.rows) == [("00001", "0.5000", "1", "0", "0.4900")]
    assert "its interval takes 2 repetitions" in one.caption


def test_a_difference_within_the_noise_is_a_tie():
    table = evidence.confirmation_table(FOUND, KNOWN, {}, [])
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
    values = findings.runs_of(trial, confirmed([own, again]))
    assert values == [0.52, 0.44]
    both, one = (estimates(trials)[0].mean for trials in ([own, again], [own]))
    assert findings._doubts(trial, both, by_id, parent) == []
    assert findings._doubts(trial, one, by_id, parent) == [findings.UNTRAINED]
    line = findings._too_short(Options(name="s", epochs=6), [0.52, 0.54], 0.53, parent)
    assert "0.5300 on average over 2 seeds, is no better" in line
    line = findings._too_short(Options(name="s", epochs=6), [0.52, 0.44], 0.51, parent)
    assert "has 0.4800 on average over 2 seeds, in part by luck; expect 0.5100 of another" in line
    assert "another seed, which is no better than an untrained encoder, 0.5000." in line


def test_the_text_of_an_error_is_shown_as_it_is():
    reason = "KeyError: size [64, 3] of [/layers/0] in [bold] :smile:"
    ended = TrialResult("00000", {}, None, {}, Ending(EndState.FAILED, reason), False)
    assert reason in shown(tables.ends_table([ended]))


def test_a_trial_that_has_not_ended_is_named_alone():
    running = TrialResult("00000", {}, None, {}, None, False)
    assert tables.ends_table([running]).rows == [("not ended", "1", "0", "00000")]


LONG = [f"a_hyperparameter_with_a_long_name_{i}" for i in range(7)]


@pytest.mark.parametrize("width", [60, 80, 118])
def test_no_table_is_broken_on_a_narrow_terminal(width):
    """Long names, many columns, wide characters, long reasons: no line is too long, none is cut."""
    rows = [("00000", *(f"{i}.25e-05/{i}.25e-05" for i in range(7)), "why " * 40, "値" * 9)] * 2
    headings = ("trial", *LONG, "why", "labels")
    table = evidence.Table("title", headings, rows, left=("why",), bars=(1.0, 0.5))
    parts = text.tables_of(table, width)
    assert max(cell_len(line) for part in parts for line in part.splitlines()) <= width
    for part in parts:
        assert part.split()[0] == "trial" and "…" not in part
    whole = " ".join("\n".join(parts).split())
    assert all(whole.count(name) == 1 for name in LONG) and whole.count("値" * 9) == 2
    assert whole.count("why") == 81 and "6.25e-05/6.25e-05" in whole


def test_no_cell_is_cut_at_any_width():
    table = evidence.confirmation_table(FOUND, KNOWN, {}, [])
    for width in range(60, 125, 3):
        whole = "\n".join(text.tables_of(table, width))
        assert all(cell in whole for row in table.rows for cell in row[:-1]), width
        assert all(heading in whole for heading in table.headings), width
        assert max(map(cell_len, whole.splitlines())) <= width


def test_importance_that_cannot_be_told_says_why():
    assert "5 trials are too few to tell; it takes 12" in importance(study(5, 1.0, 0))
    alike = study(20, 0.0, 0)
    for one in alike:
        one.value, one.intermediate_values = 3.0, {1: 3.0}
    assert "all 20 trials have the same value" in importance(alike)
    for left, says in ((0, "of nothing alone"), (1, "of p0 alone there are no shares")):
        fixed = study(20, 1.0, 0)
        for one in fixed:
            one.params = dict(list(one.params.items())[:left])
            one.distributions = dict(list(one.distributions.items())[:left])
        assert says in importance(fixed)
