"""The journal's file: whatever is wrong with it is one line, with file, line and way on."""

import errno
import itertools
import json
import math
import os
import re

import pytest

from ali.config import Config
from ali.errors import UserError
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.options import JOURNAL, Location
from sweeps.engine.results import results
from sweeps.engine.space import Space, suggest
from sweeps.engine.study import CONFIG, Study, read_study

pytestmark = pytest.mark.versions

STUDY, TRIAL, PARAMETER, END, VALUE, ATTRIBUTE = 0, 4, 5, 6, 7, 8  # Optuna's numbers


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The journal of two trials, one that ended."""
    journal = tmp_path_factory.mktemp("whole") / JOURNAL
    study = Study(journal, "s", seed=0)
    for number in range(2):
        study.ask(lambda trial: suggest(trial, Space(), Config()))
        study.report(number, 1, 0.5)
    study.tell(0, Ending(EndState.COMPLETED, "done"), 0.5)
    return journal.read_bytes()


@pytest.fixture
def here(tmp_path, whole):
    made = Location(name="s", output_dir=tmp_path)
    made.folder.mkdir()
    (made.folder / JOURNAL).write_bytes(whole)
    return made


def change(here, line, text):
    """Puts `text` in place of a line, by its number; None: leaves it out."""
    journal = here.folder / JOURNAL
    lines = journal.read_bytes().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    journal.write_bytes(b"".join(one + b"\n" for one in lines))


def first(here, wanted):
    """Number and content of the first line for which `wanted` holds."""
    for number, line in enumerate((here.folder / JOURNAL).read_bytes().splitlines(), start=1):
        if wanted(log := json.loads(line)):
            return number, log
    raise AssertionError


def check_refused(here, *says):
    """By those who read and by the driver who would write, who leaves it as it is."""
    journal = here.folder / JOURNAL
    before = journal.read_bytes()
    for use in (lambda: results(here), lambda: Study(journal, "s", seed=0)):
        with pytest.raises(UserError) as refused:
            use()
        assert str(journal) in str(refused.value) and "\n" not in str(refused.value)
        for text in says:
            assert text in str(refused.value)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    "text", [b"garbage", b"", b"\0" * 40, b"\xff\xfe", b'{"op_code":', b"[" * 9999]
)
@pytest.mark.parametrize("line", [1, 7, -1])
def test_a_line_of_garbage(here, line, text):
    last = (here.folder / JOURNAL).read_bytes().count(b"\n")
    line = last if line < 0 else line
    change(here, line, text)
    check_refused(here, f"line {line}: not JSON", "restore it from a copy")


@pytest.mark.parametrize("operation", [STUDY, TRIAL, PARAMETER, END, VALUE, ATTRIBUTE])
def test_values_of_a_wrong_type(here, operation):
    """Each is refused, or does as well as the right one."""
    line, log = first(here, lambda log: log["op_code"] == operation)
    wrong = [None, "x", -1, 1.5, [], {}, True, [None], {"a": "b"}]
    for key, value in itertools.product(sorted(log), wrong):
        change(here, line, json.dumps({**log, key: value}).encode())
        try:
            for trial in results(here):
                assert isinstance(trial.config, dict) and isinstance(trial.values, dict)
                assert all(isinstance(v, float | int) for v in trial.values.values())
        except UserError as refused:
            assert re.search(r"line \d+: |is of sweep|is empty", str(refused)), key
    change(here, line, json.dumps(log).encode())
    assert len(results(here)) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (CONFIG, "x"),
        (CONFIG, {"epochs": "six"}),
        (CONFIG, {"from_the_future": 1}),
        ("end_state", "transcended"),
        ("end_state", 3),
        ("end_reason", []),
        ("confirms", "00001"),
        ("as_printed", "bn_x"),
    ],
)
def test_attributes_that_are_none_of_ours(here, key, value):
    line, log = first(here, lambda log: log["op_code"] == ATTRIBUTE)
    change(here, line, json.dumps({**log, "user_attr": {key: value}}).encode())
    check_refused(here, f"line {line}: ")


@pytest.mark.parametrize("value", [7, -1.5, math.inf])
def test_a_parameter_outside_its_distribution(here, value):
    line, log = first(here, lambda log: log["op_code"] == PARAMETER)
    change(here, line, json.dumps({**log, "param_value_internal": value}).encode())
    check_refused(here, f"line {line}: ")


def test_a_newer_version_wrote_it(here):
    change(here, 3, b'{"op_code": 77, "worker_id": "a"}')
    check_refused(here, "line 3: operation 77", "newer")


def test_a_file_system_without_links(tmp_path, monkeypatch):
    """FAT, shares of Windows: Optuna's lock of a journal is one."""

    def symlink(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", symlink)
    study = Study(tmp_path / JOURNAL, "s", seed=0)
    study.ask(lambda trial: suggest(trial, Space(), Config()))
    assert len(read_study(tmp_path / JOURNAL, "s").get_trials()) == 1


def test_a_line_that_is_missing(here):
    line, _ = first(here, lambda log: log["op_code"] == TRIAL)
    change(here, line, None)
    check_refused(here, f"line {line}: trial 0 was never created")


def test_a_journal_of_another_sweep_and_one_without_any(here, tmp_path):
    journal = here.folder / JOURNAL
    other = Location(name="t", output_dir=tmp_path)
    here.folder.rename(other.folder)
    with pytest.raises(UserError, match="is of sweep 's'"):
        results(other)
    with pytest.raises(UserError, match="is of sweep 's'"):
        Study(other.folder / JOURNAL, "t", seed=0)
    here.folder.mkdir()
    journal.touch()
    with pytest.raises(UserError, match="is empty"):
        read_study(journal, "s")
    journal.unlink()
    journal.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*optuna\.journal"):
        read_study(journal, "s")
