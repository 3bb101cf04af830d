"""Given points in a space of one's own: the nearest there, and what is said of it."""

import pytest
from optuna.distributions import CategoricalDistribution

from ali.config import Config
from sweeps.engine.points import within
from sweeps.engine.space import InitialPoint, Space, paper_defaults, suggest
from sweeps.engine.study import Study

SVHN = Config(data="svhn")


def test_in_the_default_space_the_papers_point_stays():
    for base in (SVHN, Config(data="cifar10"), Config(data="mixture")):
        point, changes = within(paper_defaults(base), Space(), base)
        assert point == paper_defaults(base) and changes == {}


@pytest.mark.parametrize(
    ("space", "changes"),
    [
        (Space(lr=(2e-4, 1e-3)), {"lr_d": (1e-4, 2e-4)}),
        (Space(dropout=CategoricalDistribution([0.0, 0.15])), {"dropout_x": (0.2, 0.15)}),
        (Space(fixed={"slope": 0.1}), {"slope_encoder": (0.01, 0.1)}),
        (Space(extra={"lr_g": (1e-5, 1e-3)}), {}),
        (Space(extra={"lr_g": (2e-4, 1e-3)}), {"lr_g": (1e-4, 2e-4)}),
        (Space(extra={"beta2_d": (0.9, 0.99)}), {"beta2_d": (0.999, 0.99)}),
        (Space(extra={"width": (0.1, 0.5), "batch_size": {"choices": [32]}}), {}),
        (
            Space(extra={"bn_x": {"choices": ["11111", "11101"]}}),
            {"bn_x": ("01111", "a drawn one")},
        ),
    ],
)
def test_the_nearest_value_is_taken_and_told(study, space, changes):
    base = space.apply_fixed(SVHN)
    point, found = within(paper_defaults(SVHN), space, base)
    assert found.items() >= changes.items() and bool(found) == bool(changes)
    study.enqueue(point)
    trial = study.ask(lambda trial: suggest(trial, space, base))  # in its distributions
    config = trial.user_attrs["config"]
    for name in ("lr_d", "dropout_x", "slope_encoder", "lr_g", "beta2_d"):
        if name in changes:
            assert config[name] == pytest.approx(changes[name][1])


def test_what_is_printed_in_the_table_gives_way_to_a_fixed_value():
    base = Config(data="cifar10")  # dropout 0.2, then 0.5: as printed
    space = Space(fixed={"dropout_x": 0.1})
    point, changes = within(paper_defaults(base), space, space.apply_fixed(base))
    assert changes == {"dropout_x": ("the table's", 0.1)} and "dropout_x" in point.paper_values


def test_what_a_point_does_not_name_is_left_to_the_search():
    point, changes = within(InitialPoint({"lr_d": 1e-3}), Space(extra={"lr_g": (1e-5, 1e-4)}), SVHN)
    assert point.params == {"lr_d": 1e-3, "lr_g": 1e-4} and changes == {"lr_g": (1e-3, 1e-4)}
    point, changes = within(InitialPoint({}), Space(extra={"lr_g": (1e-5, 1e-4)}), SVHN)
    assert point.params == {} and changes == {}


@pytest.mark.parametrize("seed", range(6))
def test_values_imply_their_switch(tmp_path, seed):
    """Else a search that draws the switch would take them unchecked, or not at all."""
    given = InitialPoint({"lr_d": 1e-3, "lr_g": 5e-3, "bn_x2": True})
    point, changes = within(given, Space(), SVHN)
    assert changes == {"lr_g": (5e-3, 2e-3)}
    study = Study(tmp_path / "journal", "s", seed=seed)
    study.enqueue(point)
    config = study.ask(lambda trial: suggest(trial, Space(), SVHN)).user_attrs["config"]
    assert (config["lr_d"], config["lr_g"]) == (1e-3, 2e-3) and config["bn_x"][1]
    _, changes = within(given, Space(fixed={"adam_apart": False}), SVHN)
    assert changes["adam_apart"] == (True, False), "said, since lr_g is then not used"
