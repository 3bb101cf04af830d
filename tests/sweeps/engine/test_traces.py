"""What an earlier driver left: trials that the study lacks, and data that is not theirs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ali.errors import UserError
from sweeps.engine.objective import Objective
from sweeps.engine.options import JOURNAL, Options
from sweeps.engine.space import Space, read_space
from sweeps.engine.study import Study
from sweeps.engine.traces import (
    Begun,
    begun_space,
    read_begun,
    refuse_lost_trials,
    refuse_other_data,
    refuse_other_objective,
    refuse_other_options,
)

pytestmark = pytest.mark.versions


@pytest.fixture
def options(tmp_path, point):
    """A sweep of two trials, with folders."""
    made = Options(name="s", output_dir=tmp_path)
    made.folder.mkdir()
    study = Study(made.folder / JOURNAL, "s", seed=0)
    study.set_data("a")
    study.set_data("b")  # not again
    for number in range(2):
        study.ask(point)
        (made.folder / f"{number:05d}").mkdir()
    return made


def run(trial, **params):
    return SimpleNamespace(data=SimpleNamespace(tags={"trial_id": trial}, params=params))


def check_lost(options, lost, logged=(), storage=None):
    with pytest.raises(UserError, match=rf"optuna\.journal lacks {lost}, .*another --name"):
        refuse_lost_trials(read_begun(options), options, storage or options.storage, logged)


def test_what_is_whole_goes_on(options):
    begun = read_begun(options)
    assert begun == Begun(frozenset({"00000", "00001"}), "a")
    refuse_lost_trials(begun, options, options.storage, [run("00000"), run("00001")])
    refuse_other_data(begun, options, "a", [run("00000", data_fingerprint="a")])


def test_a_journal_that_is_gone_is_not_begun_anew(options):
    journal = options.folder / JOURNAL
    whole = journal.read_bytes()
    journal.unlink()
    check_lost(options, "00000, 00001")
    for number in range(2):
        (options.folder / f"{number:05d}").rmdir()
    refuse_lost_trials(read_begun(options), options, options.storage)  # nothing had begun
    check_lost(options, "00000", [run("00000")])
    for content in (b"", b'{"op_code": 0, "wor', whole.splitlines(keepends=True)[0]):
        journal.write_bytes(content)
        check_lost(options, "00000", [run("00000")])
        assert journal.read_bytes() == content


def test_an_old_copy_of_a_journal_is_noticed(options):
    check_lost(options, "00002", [run("00001"), run("00002")])
    # A bucket's copy may be older by seconds; a study without any trial is no such copy.
    away = replace(options.storage, remote=True)
    refuse_lost_trials(read_begun(options), options, away, [run("00002")])
    (options.folder / JOURNAL).unlink()
    check_lost(options, "00000, 00001", storage=away)


def test_other_data_than_the_trials_have(options):
    begun = read_begun(options)
    with pytest.raises(UserError, match=r"fingerprint a, now b.*--data-dir"):
        refuse_other_data(begun, options, "b")
    # a study of an earlier version does not know it
    logged = [run("00000", data_fingerprint="a"), run("00001")]
    refuse_other_data(Begun(begun.trials), options, "a", logged)
    with pytest.raises(UserError, match="fingerprint a, now b"):
        refuse_other_data(Begun(begun.trials), options, "b", logged)


def test_a_resume_keeps_the_space_that_the_sweep_was_begun_with(tmp_path, capsys):
    file = tmp_path / "own.toml"
    file.write_text("slope = 0.1")
    options = Options(name="s", output_dir=tmp_path, space=file)
    options.folder.mkdir()
    options.save()
    own = read_space(file)
    begun = Begun(frozenset({"00000"}), space=own.to_dict())
    asked = lambda: read_space(file)  # noqa: E731
    assert begun_space(Begun(), options, asked).fixed == own.fixed, "a new sweep"
    assert begun_space(begun, options, asked).to_dict() == own.to_dict()
    assert capsys.readouterr().out == ""
    file.write_text("slope = 0.2")
    assert begun_space(begun, options, asked).to_dict() == own.to_dict()
    assert f"note: {file} has changed; the sweep keeps" in capsys.readouterr().out
    file.unlink()
    assert begun_space(begun, options, asked).to_dict() == own.to_dict()
    without = replace(options, space=None)
    with pytest.raises(UserError, match=r"\(slope_decoder 0.1, slope_discriminator 0.1, …; now"):
        begun_space(begun, without, Space)
    assert begun_space(begun, without, lambda: own) is own, "of a script of one's own"


def test_a_resume_compares_trials_the_same_way_round():
    options = Options(name="s")
    more, less = Objective("sample_diversity"), Objective("val_error")
    begun = Begun(frozenset({"00000"}), maximize=True)
    refuse_other_objective(begun, options, more)
    refuse_other_objective(Begun(), options, more)
    with pytest.raises(UserError, match="does not minimize val_error"):
        refuse_other_objective(begun, options, less)


def test_a_resume_from_python_has_the_same_options(tmp_path):
    options = Options(name="s", output_dir=tmp_path, epochs=3, labels=10)
    refuse_other_options(options)  # there is none to resume, as others say
    options.folder.mkdir()
    options.save()
    refuse_other_options(replace(options, resume=True, num_trials=80))
    with pytest.raises(UserError, match="was started with epochs=3, labels=10: resume it with"):
        refuse_other_options(Options(name="s", output_dir=tmp_path, resume=True))
