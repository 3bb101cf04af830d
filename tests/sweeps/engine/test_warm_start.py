"""The best of an earlier sweep as the first points of a new one."""

import pytest

from ali.config import Config
from ali.errors import UserError
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.options import JOURNAL, Options
from sweeps.engine.space import InitialPoint, Space, paper_defaults, suggest
from sweeps.engine.study import CONFIG, Study
from sweeps.engine.warm_start import BEST_TAKEN, moved, warm_points

BASE = Config(data="svhn")


@pytest.fixture
def options(tmp_path):
    return Options(name="new", data="svhn", output_dir=tmp_path, warm_start="old")


@pytest.fixture
def earlier(options):
    """The study of the sweep "old", and its trials."""
    (options.output_dir / "old").mkdir()
    study = Study(options.output_dir / "old" / JOURNAL, "old", seed=1, startup_trials=20)
    study.enqueue(paper_defaults(BASE), control=True)
    for number in range(8):
        study.ask(lambda trial: suggest(trial, Space(), BASE))
        if number < 7:
            study.tell(number, Ending(EndState.COMPLETED, ""), 0.9 - number / 10)
    return study


def test_the_best_come_first(options, earlier):
    points = warm_points(options, Space(), BASE)
    best = [earlier.trial(number).params for number in (6, 5, 4, 3, 2)]
    assert [point.params for point in points] == best and len(best) == BEST_TAKEN


def test_what_is_tried_anyway_is_left_out(options, earlier):
    again = InitialPoint({**earlier.trial(6).params, "not_in_the_space": 1})
    points = warm_points(options, Space(), BASE, [again])
    assert [p.params for p in points] == [earlier.trial(n).params for n in (5, 4, 3, 2, 1)]


def test_in_another_space_each_value_is_the_nearest_and_what_is_new_is_left_to_the_search(earlier):
    trial = earlier.trial(3)
    narrow = Space(
        lr=(1e-3, 2e-3), dropout=(0.0, 0.01), bn_with_z=True, extra={"width": (0.1, 0.5)}
    )
    point = moved(trial, narrow, BASE)
    assert 1e-3 <= point.params["lr_d"] <= 2e-3 and point.params["dropout_x"] <= 0.01
    assert point.params["slope_encoder"] == trial.params["slope_encoder"]
    assert "width" not in point.params
    assert point.params["bn_z"] is point.params["bn_xz"] is False, "as they were"


def test_what_the_earlier_space_had_fixed_is_as_it_was(options):
    """The README's example fixes the slopes: the best of it has them, and Adam's rates apart."""
    (options.output_dir / "old").mkdir()
    study = Study(options.output_dir / "old" / JOURNAL, "old", seed=1, startup_trials=20)
    fixed = Space(
        fixed={"slope": 0.1, "adam_apart": True, "bn_x": [True, False, True, True, False]}
    )
    base = fixed.apply_fixed(BASE)
    study.ask(lambda trial: {**base.to_dict(), **suggest(trial, fixed, base)})
    study.tell(0, Ending(EndState.COMPLETED, ""), 0.5)
    (point,) = warm_points(options, Space(), BASE)
    got = Study(options.output_dir / "journal", "new", seed=2)
    got.enqueue(point)
    found = got.ask(lambda t: suggest(t, Space(), BASE)).user_attrs[CONFIG]
    earlier = study.trial(0).user_attrs[CONFIG]
    names = ("lr_d", "lr_g", "beta2_d", "beta2_g", "slope_encoder", "bn_x", "dropout_xz")
    assert {name: found[name] for name in names} == {
        name: pytest.approx(earlier[name]) for name in names
    }


def test_what_other_networks_lack_is_left_out(earlier):
    params = moved(earlier.trial(3), Space(), Config(data="mixture")).params
    assert "dropout_xz" in params and not {"dropout_x", "bn", "slope_encoder"} & set(params)


def test_a_moved_point_is_what_a_trial_gets(earlier, tmp_path):
    point = moved(earlier.trial(5), Space(), BASE)
    new = Study(tmp_path / "journal", "new", seed=2)
    new.enqueue(point)
    trial = new.ask(lambda t: suggest(t, Space(), BASE))
    assert trial.params == earlier.trial(5).params
    assert trial.user_attrs[CONFIG] == earlier.trial(5).user_attrs[CONFIG]


def test_values_that_the_paper_has_outside_the_space_are_kept(earlier):
    base = Config(data="cifar10")
    study_point = paper_defaults(base)
    assert study_point.paper_values
    trial = type("T", (), {"params": study_point.params, "user_attrs": {"as_printed": ["bn_x"]}})
    assert isinstance(moved(trial, Space(), base), InitialPoint)
    assert moved(trial, Space(), base).paper_values == ("bn_x",)


def test_an_earlier_sweep_that_does_not_help_is_refused(options, tmp_path):
    with pytest.raises(UserError, match="there is no sweep 'old'"):
        warm_points(options, Space(), BASE)
    (tmp_path / "old").mkdir()
    Study(tmp_path / "old" / JOURNAL, "old", seed=1)
    with pytest.raises(UserError, match="has completed its full budget"):
        warm_points(options, Space(), BASE)
    own = Options(name="old", output_dir=tmp_path, warm_start="old")
    with pytest.raises(UserError, match="own name"):
        warm_points(own, Space(), BASE)
    assert warm_points(Options(name="n", output_dir=tmp_path), Space(), BASE) == []


def test_a_space_of_ones_own_takes_what_the_earlier_trial_was_trained_with(earlier):
    space = Space(
        fixed={"dropout_x": 0.1},
        extra={"width": (0.3, 0.8), "lr_g": (1e-6, 1e-5), "bn_x": {"choices": ["11111", "01111"]}},
    )
    own = {**BASE.to_dict(), **earlier.trial(0).user_attrs[CONFIG], "bn_x": [False, *[True] * 4]}
    trial = type("T", (), {"params": earlier.trial(0).params, "user_attrs": {CONFIG: own}})
    params = moved(trial, space, space.apply_fixed(BASE)).params
    assert (params["width"], params["lr_g"], params["bn_x"]) == (0.8, 1e-5, "01111")
    assert not {"dropout_x", "bn", "bn_x1"} & set(params)
