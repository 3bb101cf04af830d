"""One way to write hyperparameters."""

from ali.config import Config
from sweeps.engine.formatting import (
    HYPERPARAMETERS,
    format_hyperparameters,
    format_line,
    varied,
)


def test_all_headings_of_any_configuration():
    cells = format_hyperparameters(Config().to_dict())
    assert list(cells) == list(HYPERPARAMETERS)
    assert cells["lr D/EG"] == "1.0e-4/1.0e-4" and cells["bn D(x)"] == "–"
    assert cells["1−β₂ D/EG"] == "1e-3/1e-3" and cells["dropout x/z/xz"] == "–/–/–"


def test_a_line_leaves_out_what_is_not_searched():
    config = Config(bn_x=(True, False, True), dropout_x=0.125, dropout_z=0.0)
    assert format_line(config.to_dict()) == (
        "lr D/EG 1.0e-4/1.0e-4, dropout x/z/xz .12/.00/–, bn D(x) 101"
    )
    assert format_line(Config().to_dict()) == "lr D/EG 1.0e-4/1.0e-4"
    assert format_line({}) == ""


def test_optional_dimensions_are_shown_where_they_differ():
    one, other = Config(weight_std=0.0315).to_dict(), Config(batch_size=50).to_dict()
    assert varied([one]) == HYPERPARAMETERS == varied([])
    cells = [format_hyperparameters(config, varied([one, other])) for config in (one, other)]
    assert [(c["σ₀"], c["batch"]) for c in cells] == [(".032", "100"), ("–", "50")]


def test_a_model_with_one_optimiser_has_one_rate():
    assert format_line({"model": "sdgm", "lr_d": 1e-4, "lr_g": 3e-4}) == "lr D/EG –/3.0e-4"


def test_small_values_can_be_told_apart():
    found = [
        format_hyperparameters({"model": "sdgm", name: value}, {"one": (name,)})["one"]
        for name, value in (("known_weight", 0.004), ("known_weight", 0.0004), ("weight_std", 3e-4))
    ]
    assert found == ["4.0e-3", "4.0e-4", "3.0e-4"]
