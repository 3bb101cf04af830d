"""What trials are compared by: metrics, arithmetic of them, functions; either way round."""

import math

import pytest

from ali.config import Config
from ali.data import load
from ali.errors import UserError
from ali.experiment import metric_names
from sweeps.engine.confirmation import CONFIRMS, estimates, next_to_confirm, worst_value
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.importance import importance
from sweeps.engine.objective import Objective, sign
from sweeps.engine.results import valued
from sweeps.engine.study import Study, best_trials

COMPLETED = Ending(EndState.COMPLETED, "")


@pytest.mark.parametrize(
    ("text", "name", "maximize", "metrics"),
    [
        ("val_error", "val_error", False, {"val_error"}),
        ("sample_diversity", "sample_diversity", True, {"sample_diversity"}),
        ("-val_error", "objective", False, {"val_error"}),
        ("score = val_error + 2 * d_loss", "score", False, {"val_error", "d_loss"}),
        ("worst=max(a, abs(b))", "worst", False, {"a", "b"}),
    ],
)
def test_an_objective_is_a_metric_or_arithmetic(text, name, maximize, metrics):
    found = Objective.parse(text)
    assert (found.name, found.maximize, found.metrics) == (name, maximize, metrics)
    assert Objective.parse(text, "maximize").maximize
    assert not Objective.parse(text, "minimize").maximize


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a b", "write it as in Python"),
        ("", "write it as in Python"),
        ("score = ", "write it as in Python"),
        ("two words = val_error", "is no metric's name"),
        ("__import__('os').system('true')", "no arithmetic"),
        ("val_error.real", "no arithmetic"),
        ("open('x')", "none of min, max"),
        ("x = 'a' * val_error", "no arithmetic"),
        ("x = [val_error for val_error in 'ab']", "no arithmetic"),
        ("3 + 4", "names none"),
        ("min(val_error)", "needs 2 arguments or more"),
        ("abs(val_error, 2)", "needs one argument"),
        ("log() * val_error", "needs 1 arguments or more"),
    ],
)
def test_anything_else_is_refused(text, says):
    if text == "val_error.real":  # a name with a point, as MLflow takes it: no experiment has it
        with pytest.raises(UserError, match="has no metric"):
            Objective.parse(text).check({"val_error"})
        return
    with pytest.raises(UserError, match=says):
        Objective.parse(text)


@pytest.mark.parametrize(
    "text", ["(val_error - 1) ** 0.5", "val_error ** 9 ** 9 ** 9", "1 / 0 * val_error"]
)
def test_what_has_no_value_has_none(text):
    """Not complex numbers, nor whole ones that take for ever."""
    metrics = {"val_error": 3 if "9" in text else 0.5}
    Objective.parse(f"score = {text}").add_to(metrics)
    assert math.isnan(metrics["score"])


def test_its_value_is_added_to_the_metrics():
    formula = Objective.parse("score = val_error + 2 * d_loss")
    metrics = {"val_error": 0.5, "d_loss": 1.0}
    formula.add_to(metrics)
    assert metrics["score"] == 2.5
    lacking = {"d_loss": 1.0}
    formula.add_to(lacking)  # not evaluated in this epoch
    assert "score" not in lacking
    with pytest.raises(UserError, match="needs a metric 'val_error'; there are d_loss"):
        formula.add_to(lacking, last=True)
    Objective("f", function=lambda m: m["d_loss"] / 0).add_to(lacking)
    assert math.isnan(lacking["f"])
    Objective("d_loss").add_to(lacking)
    assert lacking["d_loss"] == 1.0


def test_what_an_experiment_does_not_have_is_refused_before_it_starts():
    config = Config(train_size=1000, labels=100, width=0.1)
    known = metric_names(config, load(config))
    Objective.parse("score = val_error + sample_distance").check(known)
    with pytest.raises(UserError, match=r"no metric 'fidelity'; it has .*val_error"):
        Objective.parse("fidelity").check(known)
    with pytest.raises(UserError, match="d_loss is a metric already"):
        Objective.parse("d_loss = 2 * g_loss").check(known)
    Objective.parse("anything").check(None)


def fill(study, point, values):
    for number, value in enumerate(values):
        study.ask(point)
        study.report(number, 1, value)
        study.tell(number, COMPLETED, value)


def test_the_name_of_a_known_metric_is_no_arithmetic():
    for name in ("val/loss", "val-loss", "2x"):
        assert Objective.parse(name, known={name, "epoch"}) == Objective(name)
        assert Objective.parse(name, known={name}).metrics == {name}
    with pytest.raises(UserError, match="has no metric 'loss'"):
        Objective.parse("val/loss", known={"epoch"}).check({"epoch", "val"})


def test_to_maximize_is_to_minimize_the_negative(tmp_path, point):
    """The whole ranking: with one seed, with several, and what is confirmed next."""
    values = [0.3, 0.7, 0.5, 0.1]
    both = []
    for maximize in (False, True):
        study = Study(tmp_path / f"{maximize}", "s", seed=1, startup_trials=20, maximize=maximize)
        fill(study, point, values if maximize else [-value for value in values])
        for again in (0.2, 0.4):
            study.enqueue_again(1)
            number = study.ask(point).number
            study.tell(number, COMPLETED, again if maximize else -again)
        both.append(study.trials())
    less, more = both
    assert sign(less) == 1 and sign(more) == -1
    order = [trial.number for trial in best_trials(more)]
    assert order == [trial.number for trial in best_trials(less)] and order[-1] == 3
    known, mirrored = estimates(more), estimates(less)
    assert [known[n].mean for n in known] == [-mirrored[n].mean for n in mirrored]
    assert known[order[0]].beats(known[3]) == mirrored[order[0]].beats(mirrored[3]) > 0.5
    assert worst_value(more) == 0.1 and worst_value(less) == -0.1
    assert next_to_confirm(more, 2, 4) == next_to_confirm(less, 2, 4)
    assert all(CONFIRMS in trial.user_attrs for trial in more[4:])


def test_importance_is_of_what_makes_trials_good(tmp_path, point, monkeypatch):
    monkeypatch.setattr("sweeps.engine.importance.REPEATS", 3)
    found = []
    for maximize in (False, True):
        study = Study(tmp_path / f"{maximize}", "s", seed=1, startup_trials=40, maximize=maximize)
        for number in range(12):
            trial = study.ask(point)
            value = abs(math.log10(trial.params["lr_d"] / 2e-4))
            study.report(number, 1, -value if maximize else value)
            study.tell(number, COMPLETED, -value if maximize else value)
        found.append(importance(valued(study.trials())))
    assert found[0] == found[1]
