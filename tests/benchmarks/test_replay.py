"""Replays: the real searches on a table whose truth is known."""

import numpy as np
import optuna
import pytest

from ali.config import Config
from ali.errors import UserError
from benchmarks import blackbox, learning_curves, search
from benchmarks.blackbox import Blackbox
from benchmarks.learning_curves import TABLES, Table, effective
from benchmarks.replay import Curves, TableSampler, key, regret, simulate
from benchmarks.search import Race, epochs_to, interquartile_mean
from benchmarks.search_methods import METHODS, ORACLE, Rows
from sweeps import Objective, Space, paper_defaults

EPOCHS, ROWS, SEEDS = 9, 40, 3
TOY = Table(
    Config(data="mixture", epochs=EPOCHS, width=0.25),
    Space(lr=(1e-5, 1e-2)),
    (paper_defaults,),
    "modes_missed",
    configurations=ROWS,
    seeds=SEEDS,
    more_seeds=SEEDS,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A table where a larger lr_d is better, from the first epoch on; little noise."""
    import pandas as pd

    patch = pytest.MonkeyPatch()
    patch.setitem(TABLES, "toy", TOY)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = [TOY.trial(number)[1] for number in range(ROWS)]
    distributions = {name: d for trial in drawn for name, d in trial.distributions.items()}
    frame = pd.DataFrame([effective(trial.params, distributions) for trial in drawn])
    level = -np.log10(frame.lr_d.to_numpy())
    noise = np.random.default_rng(0).normal(0, 0.05, (ROWS, SEEDS, EPOCHS))
    values = level[:, None, None] + 3 / np.arange(1, EPOCHS + 1) + noise
    objectives = np.stack([np.zeros_like(values), values, np.ones_like(values)], axis=-1)
    table = Blackbox(
        frame, objectives.astype(np.float32), ("diverged", "modes_missed", "cpu_seconds"),
        {"objective": "modes_missed", "runs": ROWS * SEEDS},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tables")
    blackbox.write(folder / "toy", table, "toy", distributions)
    yield Rows("toy", folder)
    patch.undo()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_a_good_row_and_spends_what_it_is_given(rows, method, tmp_path):
    made = METHODS[method](rows, np.random.default_rng(0), tmp_path)
    trace = simulate(made, rows.curves, np.random.default_rng(1), budget=20 * EPOCHS, slots=4)
    assert trace.spent == sorted(trace.spent) and trace.spent[-1] <= 20 * EPOCHS
    ranks = np.argsort(np.argsort(rows.curves.means))
    assert ranks[trace.choices[-1].row] < ROWS / 4
    assert trace.clock == sorted(trace.clock)


def test_a_choice_is_judged_by_seeds_that_the_search_has_not_seen(rows, tmp_path):
    made = METHODS["random"](rows, np.random.default_rng(0), tmp_path)
    trace = simulate(made, rows.curves, np.random.default_rng(1), 5 * EPOCHS, slots=1)
    row = trace.choices[0].row
    ends = rows.curves.ends[row]
    seen = int(np.argmin(abs(ends - trace.choices[0].mean)))
    assert ends[seen] == pytest.approx(trace.choices[0].mean)
    assert trace.truth[0] == pytest.approx(np.delete(ends, seen).mean())


def test_replays_repeat(rows, tmp_path):
    def once(folder):
        folder.mkdir()
        made = METHODS["shipped"](rows, np.random.default_rng(3), folder)
        return simulate(made, rows.curves, np.random.default_rng(4), 15 * EPOCHS, slots=4)

    assert once(tmp_path / "a") == once(tmp_path / "b")


def test_what_is_stopped_for_good_is_told(rows, tmp_path):
    made = METHODS["shipped"](rows, np.random.default_rng(0), tmp_path)
    trace = simulate(made, rows.curves, np.random.default_rng(1), 20 * EPOCHS, slots=4)
    assert trace.stopped
    assert np.mean(rows.curves.means[list(trace.stopped)]) > np.mean(rows.curves.means)


def test_a_draw_becomes_the_nearest_row_that_is_free(rows):
    class Fixed(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study, trial):
            return rows.distributions

        def sample_relative(self, study, trial, search_space):
            return rows.points[7]

    sampler = TableSampler(Fixed(), rows.points, rows.distributions, np.random.default_rng(0))
    study = optuna.create_study(sampler=sampler)
    seen = []
    for _ in range(ROWS):
        trial = study.ask()
        rows.draw(trial)
        seen.append(sampler.row(trial.params))
    assert seen[0] == 7 and sorted(seen) == list(range(ROWS))


def test_regret_before_the_first_choice_is_a_random_rows(rows, tmp_path):
    made = METHODS["random"](rows, np.random.default_rng(0), tmp_path)
    trace = simulate(made, rows.curves, np.random.default_rng(1), 10 * EPOCHS, slots=1)
    values = regret([trace], rows.curves, np.array([1, EPOCHS, 10 * EPOCHS]))[0]
    means = rows.curves.means
    assert values[0] == pytest.approx(means.mean() - means.min())
    assert values[1] == pytest.approx(trace.truth[0] - means.min())


def test_a_search_that_sees_another_objective_is_judged_by_the_tables(rows, tmp_path):
    """It minimizes the negative here, so what it chooses is bad, and what it announces negative."""
    seen = Curves(rows.curves.table, Objective.parse("worst = 0 - modes_missed"))
    assert np.allclose(seen.seen, -rows.curves.values, equal_nan=True)
    made = METHODS["random"](rows, np.random.default_rng(0), tmp_path)
    trace = simulate(made, seen, np.random.default_rng(1), 20 * EPOCHS, slots=1)
    truth, expected = trace.truth[-1], trace.expected[-1]
    assert truth == pytest.approx(-expected) and truth > np.quantile(rows.curves.means, 0.8)
    for wrong, says in (("a + b", "has no metric"), ("code_use", "has no metric")):
        with pytest.raises(UserError, match=says):
            Curves(rows.curves.table, Objective.parse(wrong))
    with pytest.raises(UserError, match="write its negative"):
        Curves(rows.curves.table, Objective.parse("diverged", "maximize"))


def test_a_diverged_run_counts_as_the_worst_value(rows):
    table = rows.curves.table
    broken = table.objectives.copy()
    broken[5, 1, 4:, 1], broken[5, 1, 4:, 0] = np.nan, 1
    curves = Curves(Blackbox(table.hyperparameters, broken, table.names, table.metadata))
    assert curves.ends[5, 1] == np.nanmax(broken[..., 1])


def test_a_table_that_is_not_whole_is_replayed_on_what_it_has(rows):
    table = rows.curves.table
    some = table.objectives.copy()
    some[[0, 5]], some[3, 1] = np.nan, np.nan  # two without a run, one that lacks a seed
    begun = Blackbox(table.hyperparameters, some, table.names, table.metadata).begun()
    assert len(begun.hyperparameters) == ROWS - 2
    assert begun.hyperparameters.loc[4, "lr_d"] == table.hyperparameters.loc[6, "lr_d"]
    curves = Curves(begun)
    assert np.isfinite(curves.means).all() and not curves.ran[2, 1]


def test_interquartile_mean_and_epochs_to_a_target():
    assert interquartile_mean(np.array([0.0, 1, 2, 100])) == 1.5
    grid = np.array([10, 20, 40])
    assert epochs_to(0.5, np.array([0.9, 0.5, 0.4]), grid) == 20
    assert epochs_to(0.5, np.array([0.4, 0.6, 0.4]), grid) == 40, "it stays there"
    assert epochs_to(0.3, np.array([0.9, 0.5, 0.4]), grid) == np.inf


def test_a_point_is_its_active_parameters(rows):
    assert len({key(point) for point in rows.points}) == ROWS
    for point in rows.points:
        assert ("lr_g" in point) == point["adam_apart"]
    assert learning_curves.KEPT == search.KEPT


def test_methods_are_compared_with_the_best_of_the_baselines():
    grid = np.array([100, 200, 400, 800])
    below = {"random": 800, "Ray ASHA": 400, ORACLE: 100, "shipped": 200}
    regrets = {name: np.tile(np.where(grid < at, 2.0, 1.0), (8, 1)) for name, at in below.items()}
    race = Race(regrets, target=1.0, grid=grid)
    assert race.speed_up("shipped", ["random"]) == (4, 4, 4)
    said = race.against_baselines()
    assert said.startswith(
        "shipped: 2.00 times fewer epochs than the best of 2 baselines, Ray ASHA"
    )
    assert ORACLE not in said
