"""A space of one's own: by value and by file, and what is refused."""

import json
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ali.config import Config
from ali.errors import UserError
from ali.models.tables import apply_config
from sweeps.engine.space import Space, read_space, suggest, with_optional
from tests.paths import ROOT

BASE = Config(width=0.25)
OWN = """
lr = {low = 1e-4, high = 1e-3}
lr_g = {low = 1e-5, high = 1e-3, log = true}
dropout = {choices = [0.1, 0.2]}
dropout_z = 0.3
slope = 0.15
bn_x = {choices = ["11111", "11101"]}
bn_xz = {choices = [true, false]}
width = {low = 0.1, high = 0.5}
levels = {low = 1, high = 2}
batch_size = {choices = [16, 32]}
"""


def own_file(tmp_path: Path, text: str = OWN, name: str = "own.toml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_ranges_choices_fixed_values_and_further_dimensions(study, tmp_path):
    space = read_space(own_file(tmp_path), Space(beta1=(0.2, 0.3)))
    base = space.apply_fixed(BASE)
    drawn = [study.ask(lambda trial: suggest(trial, space, base)) for _ in range(20)]
    configs = [Config.from_dict({**base.to_dict(), **t.user_attrs["config"]}) for t in drawn]
    for config in configs:
        assert 1e-4 <= config.lr_d <= 1e-3 and 1e-5 <= config.lr_g <= 1e-3
        assert 0.2 <= config.beta1_d <= 0.3, "the script's own"
        assert config.dropout_x in (0.1, 0.2) and config.dropout_z == 0.3
        assert (config.slope_encoder, config.slope_discriminator) == (0.15, 0.15)
        assert config.bn_x in ((True,) * 5, (True, True, True, False, True))
        assert 0.1 <= config.width <= 0.5 and config.batch_size in (16, 32)
        assert apply_config(config)
    assert {config.levels for config in configs} == {1, 2}
    assert {config.bn_xz for config in configs} == {True, False}
    assert len({config.width for config in configs}) == 20
    assert all("slope_encoder" not in trial.params for trial in drawn)
    largest = space.largest(Config())
    assert (largest.batch_size, largest.width, largest.levels) == (32, 0.5, 2)


def test_a_space_is_the_same_by_value_by_toml_and_by_yaml(tmp_path):
    by_value = Space(
        lr=(1e-4, 1e-3),
        dropout=CategoricalDistribution([0.1, 0.2]),
        fixed={"dropout_z": 0.3, "slope": 0.15},
        extra={
            "lr_g": FloatDistribution(1e-5, 1e-3, log=True),
            "bn_x": CategoricalDistribution(["11111", "11101"]),
            "bn_xz": CategoricalDistribution([True, False]),
            "width": (0.1, 0.5),
            "levels": (1, 2),
            "batch_size": CategoricalDistribution([16, 32]),
        },
    )
    assert by_value.extra["levels"] == IntDistribution(1, 2)
    yaml = OWN.replace(" =", ":").replace("= ", ": ").replace("1e-", "1e-")
    for file in (own_file(tmp_path), own_file(tmp_path, yaml, "own.yaml")):
        assert read_space(file).to_dict() == by_value.to_dict()


@pytest.mark.parametrize(
    "space",
    [
        Space(),
        with_optional(Space(), BASE, bn_with_z=True, weight_std=True, batch_size=True),
        Space(fixed={"dropout_x": None, "adam_apart": True, "bn": False, "one_minus_beta2": 1e-3}),
        Space(extra={"lr_d": (1e-4, 1e-3), "weight_std": (0.01, 0.1), "bn_z": {"choices": [True]}}),
        Space(fixed={"bn_x": [True, False, True, True, True]}),
    ],
)
def test_what_is_recorded_draws_the_same_points(space, study, tmp_path):
    from sweeps.engine.study import Study

    again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again.to_dict() == space.to_dict()
    other = Study(tmp_path / "other", "s", seed=1, startup_trials=3)
    for _ in range(4):
        points = [
            it.ask(lambda trial, its=its: suggest(trial, its, its.apply_fixed(BASE))).user_attrs
            for it, its in ((study, space), (other, again))
        ]
        assert points[0] == points[1]


def test_the_choices_of_the_search_itself_can_be_fixed(study):
    space = Space(fixed={"adam_apart": False, "bn": False})
    for _ in range(4):
        trial = study.ask(lambda trial: suggest(trial, space, BASE))
        assert not {"adam_apart", "bn", "lr_g", "bn_x1"} & set(trial.params)
        assert trial.user_attrs["config"]["bn_x"] == [False] * 5
    none_left = Space(fixed={"lr": 1e-4, "beta1": 0.5, "one_minus_beta2": 1e-3})
    trial = study.ask(lambda trial: suggest(trial, none_left, none_left.apply_fixed(BASE)))
    assert "adam_apart" not in trial.params and trial.user_attrs["config"]["beta2_g"] == 0.999


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("widht = 1", "line 1: widht is unknown: do you mean width?"),
        ("\nepochs = 3", "line 2: epochs cannot be searched: trials share it; give --epochs"),
        ("seed = 3", "give --seed"),
        ("width = 9", "width must be in (0, 8], not 9"),
        ("width = 'wide'", "width cannot be 'wide'"),
        ("width = {low = 0.5, high = 0.1}", "low must be below high"),
        ("width = {low = 0.5, high = 9}", "width must be in (0, 8], not 9.0"),
        ("width = {low = 0.5}", "width must be a value, {low"),
        ("width = {low = 'a', high = 1}", "low 'a', which is not a finite number"),
        ("width = {low = 0.1, high = inf}", "not a finite number"),
        ("lr = {low = 0, high = 1e-3}", "a log scale needs a low above 0"),
        ("lr = [1e-4, 1e-3]", "lr must be a number, or a range {low"),
        ("dropout = {low = 0.5, high = 1}", "dropout must be in [0, 1), not 1.0"),
        ("one_minus_beta2 = 2", "one_minus_beta2 must be in (0, 1], not 2"),
        ("levels = {low = 1, high = 2.5}", "whole numbers"),
        ("levels = {choices = []}", "a list of values"),
        ("levels = {choices = [1, 1]}", "each must be there once"),
        ("bn_x = {choices = ['12']}", "bn_x cannot be '12'"),
        ("bn_with_z = 1", "bn_with_z must be true or false"),
        ("adam_apart = {choices = [true]}", "is searched anyway"),
        ("lr = ", "line 1: not TOML"),
    ],
)
def test_a_file_that_is_no_space_is_refused_with_line_and_name(tmp_path, text, says):
    file = own_file(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_space(file)
    assert str(refused.value).startswith(f"{file}, line ") and says in str(refused.value)


def test_what_a_space_cannot_be(tmp_path):
    for wrong, says in (
        ({"fixed": {"width": 0.5}, "extra": {"width": (0.1, 0.5)}}, "both fixed and searched"),
        ({"extra": {"lr": (1e-4, 1e-3)}}, "is no further dimension"),
        ({"lr": (1e-3, 1e-4)}, "low must be below high"),
        ({"extra": {"width": FloatDistribution(0.1, 0.5, step=0.1)}}, "has a step"),
    ):
        with pytest.raises(UserError, match=says):
            Space(**wrong)
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.toml"):
        read_space(tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="networks of mixture lack it"):
        Space(extra={"dropout_x": (0.0, 0.1)}).apply_fixed(Config(data="mixture"))
    with pytest.raises(UserError, match="levels must be 1 for a gan"):
        Space(extra={"levels": (1, 2)}).apply_fixed(Config(model="gan"))
    of_a_vae = "slope must be left out with --model vae-m2, not 0.1"
    with pytest.raises(UserError, match=f"^space: {of_a_vae}"):
        Space(fixed={"lr": 1e-3, "slope": 0.1}).apply_fixed(Config(model="vae-m2"))
    with pytest.raises(UserError, match=r"^--sigma must be exp here"):
        two = Config(data="mixture", levels=2, sigma="sigmoid")
        Space(fixed={"levels": 1}).apply_fixed(two)
    with pytest.raises(UserError, match="bn_x does not fit"):
        Space(fixed={"bn_x": "111"}).apply_fixed(BASE)
    with pytest.raises(UserError, match="leave --vary-batch-size out"):
        with_optional(Space(fixed={"batch_size": 8}), BASE, False, False, batch_size=True)


def test_the_example_is_a_space(study):
    space = read_space(ROOT / "docs" / "space.toml")
    assert suggest(study.records.ask(), space, space.apply_fixed(Config()))["slope_decoder"] == 0.15
