"""Files of settings: what their numbers mean, and what is refused with its line."""

import pytest

from ali.config import Config
from ali.errors import UserError
from ali.settings import problems, read_settings


def read(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_settings(file)


def test_numbers_are_those_of_yaml_1_2(tmp_path):
    text = "a: 010\nb: 1e-4\nc: .5\nd: -3\ne: 20_000\nf: 1.\ng: 1:30\nh: 0.1\ni: true\n"
    found = read(tmp_path, "own.yaml", text).values
    assert list(found.values()) == [10, 1e-4, 0.5, -3, 20_000, 1.0, "1:30", 0.1, True]


@pytest.mark.parametrize(
    ("name", "text"), [("own.toml", "epochs = 3"), ("own.json", '{"epochs": 3}')]
)
def test_the_mark_that_windows_puts_first_is_no_text(tmp_path, name, text):
    assert read(tmp_path, name, b"\xef\xbb\xbf" + text.encode()).values == {"epochs": 3}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("own.json", '{"epochs": 1, "epochs": 2}', "epochs is there twice"),
        ("own.yaml", "epochs: 1\nepochs: 2", "line 2: .*epochs is there twice"),
        ("own.yaml", "batch-size: 16\nbatch_size: 17", "batch_size is there twice"),
        ("own.yaml", "epochs: 1__0_", "1__0_"),
    ],
)
def test_no_setting_is_there_twice(tmp_path, name, text, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, name, text).check(Config)


def test_what_is_refused_is_shown_in_short(tmp_path):
    """Aliases of aliases: less than 1 kB that would be written out for ever."""
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    ]
    values = read(tmp_path, "own.yaml", "\n".join(lines)).values
    (said,) = problems(Config, {"epochs": values["j"]})
    assert len(said[1]) < 300
    (said,) = problems(Config, {"lr_d": 10**400})
    assert "a number is expected" in said[1] and len(said[1]) < 100


@pytest.mark.parametrize(
    ("epochs", "asked", "every"), [(11, None, 1), (59, None, 2), (100, None, 5), (100, 1, 1)]
)
def test_an_experiment_is_evaluated_some_twenty_times_unless_it_is_told_otherwise(
    epochs, asked, every
):
    assert Config(epochs=epochs, eval_every=asked).evaluation_interval == every
