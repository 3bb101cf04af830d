"""The search space: what it has of each table, and the points that are tried first."""

import pytest

from ali.catalog import KINDS
from ali.config import Config
from ali.errors import UserError
from ali.models.tables import apply_config, paper_table
from sweeps.engine.space import (
    Space,
    paper_defaults,
    searched_fields,
    short_budget,
    suggest,
    with_optional,
)
from sweeps.engine.study import CONFIG

PRESETS = {
    "Table 2": Config(data="cifar10"),
    "Table 3": Config(data="svhn"),
    "Table 4": Config(data="celeba"),
    "Table 5": Config(data="tiny-imagenet"),
    "Table 5, images of one's own": Config(data="folder", image_size=64),
    "Fig. 7": Config(data="mixture"),
    "Table 2, GAN": Config(data="cifar10", model="gan"),
    "Table 3, two levels": Config(data="svhn", levels=2),
}
MODELS = [model for model in KINDS if model != "ali"]
# What the data set's table says, and not the model's authors.
TABLE_FIELDS = [f"dropout_{part}" for part in ("x", "z", "xz")] + ["bn_x"]
TABLE_FIELDS += [f"slope_{who}" for who in ("encoder", "decoder", "discriminator")]
presets = pytest.mark.parametrize("base", PRESETS.values(), ids=PRESETS)


def drawn(study, base, space=None):
    """The configuration that the study's next trial trains with, as a sweep over `base` asks."""
    own = {} if base.model in ("ali", "gan") else base.to_dict()  # as a driver has it
    trial = study.ask(lambda trial: own | suggest(trial, space or Space(), base))
    return trial, Config.from_dict({**base.to_dict(), **trial.user_attrs[CONFIG]})


@presets
def test_the_papers_point_is_its_table(study, base):
    study.enqueue(paper_defaults(base))
    _, config = drawn(study, base)
    assert apply_config(config) == paper_table(base)
    for who in ("encoder", "decoder", "discriminator"):
        assert getattr(config, f"slope_{who}") in (None, paper_table(base).slope)
    for who in ("d", "g"):
        adam = [getattr(config, f"{name}_{who}") for name in ("lr", "beta1", "beta2")]
        assert adam == [1e-4, 0.5, 0.999]


@presets
def test_a_space_has_what_its_table_has(study, base):
    trials, configs = zip(
        *(drawn(study, base, Space(bn_with_z=True)) for _ in range(6)), strict=True
    )
    names = {name for trial in trials for name in trial.params}
    table = paper_table(base)
    assert ("dropout_x" in names) == bool(table.d_x)
    assert ("bn_z" in names) == ("dropout_z" in names) == bool(table.d_z and base.model == "ali")
    rows = {"encoder": table.encoder if base.model == "ali" else (), "decoder": table.decoder}
    rows["discriminator"] = (*table.d_x, *table.d_z, *table.d_xz)
    for who, its in rows.items():
        leaky = table.slope > 0 and "leaky ReLU" in {row.nonlinearity for row in its}
        assert (f"slope_{who}" in names) == leaky
    for config in configs:
        assert [row.kernel for row in apply_config(config).d_x] == [row.kernel for row in table.d_x]
        assert config.bn_x is None or len(config.bn_x) == len(table.d_x)
    assert len({apply_config(config).d_xz for config in configs}) > 1


def test_a_point_outside_the_space_is_one_trial_alone(study):
    """Table 2's dropout, 0.2 and then 0.5, is no point of the space; the next trial's is."""
    base = Config(data="cifar10")
    study.enqueue(paper_defaults(base))
    first, config = drawn(study, base)
    assert config.dropout_x is None and first.params["dropout_x"] == pytest.approx(
        (0.2 + 4 * 0.5) / 5
    )
    assert drawn(study, base)[1].dropout_x is not None


def test_the_short_budgets_point_is_in_the_space(study):
    for data in ("house-numbers", "svhn"):
        study.enqueue(short_budget(Config(data=data)))
    _, config = drawn(study, Config())
    assert (config.lr_g, config.dropout_x, config.slope_encoder) == (1e-3, 0.3, 0.15)
    assert config.bn_x == (False, False, False, True, True) and config.slope_discriminator == 0.2
    _, config = drawn(study, Config(data="svhn"))
    assert (config.lr_g, config.dropout_x, config.slope_encoder) == (4e-4, 0.1, 0.15)
    assert config.bn_x == (True, True, True, False, True) and config.slope_discriminator == 0.15


def test_the_space_is_conditional_and_within_its_bounds(study):
    space = Space(bn_with_z=True)
    seen = [drawn(study, Config(), space) for _ in range(30)]
    for trial, config in seen:
        assert ("lr_g" in trial.params) == trial.params["adam_apart"]
        assert ("bn_x1" in trial.params) == trial.params["bn"]
        if not trial.params["adam_apart"]:
            assert (config.lr_g, config.beta1_g) == (config.lr_d, config.beta1_d)
        assert space.lr[0] <= config.lr_d <= space.lr[1]
    assert any(config.bn_z for _, config in seen)
    _, without = drawn(study, Config())
    assert not (without.bn_z or without.bn_xz)


@presets
def test_optional_dimensions_start_from_the_paper(study, base):
    space = with_optional(Space(), base, bn_with_z=False, weight_std=True, batch_size=True)
    study.enqueue(paper_defaults(base))
    _, paper = drawn(study, base, space)
    assert apply_config(paper) == paper_table(base) and paper.batch_size == base.batch_size
    std = paper_table(base).weight_std
    configs = [drawn(study, base, space)[1] for _ in range(12)]
    assert all(std <= config.weight_std <= 10 * std for config in configs)
    assert {config.batch_size for config in configs} == {50, 100, 200}
    assert with_optional(Space(), base, False, False, False) == Space()


@presets
def test_searched_fields_are_those_in_which_points_differ(base):
    found = searched_fields(Space(), base)
    assert {"lr_d", "beta1_g", "beta2_d"} <= set(found) and found == searched_fields(Space(), base)
    table = paper_table(base)
    assert ("dropout_x" in found) == ("bn_x" in found) == bool(table.d_x)
    assert not {"bn_z", "bn_xz", "batch_size", "seed", "epochs"} & set(found)
    fixed = Space(fixed={"beta1": 0.5}, batch_sizes=(50, 100))
    assert "beta1_d" not in (other := searched_fields(fixed, base)) and "batch_size" in other


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_space_and_its_authors_point(study, model):
    base = Config(model=model)
    kind = KINDS[model]
    study.enqueue(paper_defaults(base))
    _, config = drawn(study, base)
    assert config == Config.of_model(model).replace(
        **{name: getattr(config, name) for name in ("seed", *TABLE_FIELDS)},
        **{name: one.value for name, one in kind.settings.items() if one.search},
        **({f"{name}_g": getattr(config, f"{name}_d") for name in ("lr", "beta1", "beta2")}
           if kind.adam == ("d", "g") else {}),
    )  # fmt: skip
    searched = set(searched_fields(Space(), base))
    assert {name for name, one in kind.settings.items() if one.search} <= searched
    assert {f"lr_{who}" for who in kind.adam} <= searched
    assert not {f"lr_{who}" for who in {"d", "g"} - set(kind.adam)} & searched
    assert bool(kind.parts) == ("dropout_x" in searched)
    for _ in range(6):  # Config takes whatever is drawn
        drawn(study, base)


def test_a_models_own_setting_is_searched_as_one_asks_and_by_no_other(study):
    base = Config(model="sdgm")
    space = Space(fixed={"z_size": 7}, extra={"label_weight": (2.0, 3.0)})
    _, config = drawn(study, space.apply_fixed(base), space)
    assert config.z_size == 7 and 2 <= config.label_weight <= 3
    for wrong in (Space(extra={"label_weight": (2.0, 3.0)}), Space(fixed={"z_size": 7})):
        with pytest.raises(UserError, match=r"label_weight|z_size|--z-size"):
            wrong.apply_fixed(Config())
    with pytest.raises(UserError, match="no networks of the paper's tables"):
        with_optional(Space(), base, False, True, False)
