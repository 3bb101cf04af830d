"""Command lines in groups: every option once, examples that work, no line that breaks."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from ali.__main__ import Commands
from ali.arguments import options_of
from ali.cli import parse_args
from sweeps.engine.final import FinalOptions
from sweeps.engine.options import Location, Options

KINDS = [get_args(command)[0] for command in get_args(Commands)] + [Location, Options, FinalOptions]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_option_is_in_one_group_and_has_a_text(kind):
    options = dict(options_of(kind))
    names = [name for group in kind.GROUPS for name in group.names.split()]
    assert len(set(names)) == len(names) and set(names) <= set(options)
    rest = [group for group in kind.GROUPS if not group.names]
    assert len(rest) == (set(names) != set(options)), "all are in a group"
    assert [name for name, option in options.items() if not option.help] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_example_of_each_group_is_a_command_line(kind):
    for group in kind.GROUPS:
        default = {"default": Options(name="s")} if kind is Options else {}
        assert isinstance(parse_args(kind, shlex.split(group.example), **default), kind)


@pytest.mark.parametrize(
    "kind", [*KINDS, Commands], ids=lambda kind: getattr(kind, "__name__", "ali")
)
def test_help_fits_into_80_columns(kind, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse_args(kind, ["--help"], prog="python -m ali")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    titles = [group.title for group in getattr(kind, "GROUPS", ())]
    assert all(f"{title} options" in shown for title in titles)
    assert "(default: None)" not in shown


@dataclass(frozen=True, kw_only=True)
class More(Location):
    data: Path = Path("here")
    """An option that no group names, though it is called like one."""


def test_an_option_in_no_group_is_there_all_the_same():
    made = parse_args(More, ["--name", "s", "--data", "there"])
    assert made == More(name="s", data=Path("there"))


def test_what_is_parsed_is_the_dataclass_with_the_values_that_were_given():
    given = Options(name="s", width=0.5)
    made = parse_args(Options, ["--epochs", "3"], default=given)
    assert made == Options(name="s", width=0.5, epochs=3) and type(made) is Options
