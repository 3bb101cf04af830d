"""The driver of a sweep, as far as it is without Ray."""

import contextlib
from types import SimpleNamespace

import pytest

from sweeps.engine.driver import Driver
from sweeps.engine.endings import LOST, Ending, EndState
from sweeps.engine.objective import Objective
from sweeps.engine.options import Options
from sweeps.engine.retry import Retry


@pytest.fixture
def driver(tmp_path, point, monkeypatch):
    """One that hands nothing to Tune, but keeps what follows the trials."""
    driver = object.__new__(Driver)
    driver.options = Options(name="s", output_dir=tmp_path, epochs=9, num_trials=20, race=0)
    driver.objective, driver.ask_storage = Objective("val_error"), Retry("the storage", 0.0)
    driver.resources = SimpleNamespace(concurrent=2, cpus=1, gpus=0)
    driver.mirror = SimpleNamespace(storage=SimpleNamespace(remote=False))
    driver.view = SimpleNamespace(show=lambda lines: contextlib.nullcontext())
    driver.suggest, driver.followers = point, ()

    def tune(study, search, scheduler, followers, to):
        driver.followers = followers

    monkeypatch.setattr(driver, "_tune", tune)
    return driver


def test_what_a_resume_ends_itself_has_ended_before(driver, study, point, capsys):
    """A trial whose stop was decided when the driver was killed, and one that is tried again."""
    for n in range(12):
        number = study.ask(point).number
        for epoch in (1, 9):
            study.report(number, epoch, n / 20)
        study.tell(number, Ending(EndState.COMPLETED, ""), n / 20)
    study.decide(study.ask(point).number, Ending(EndState.STOPPED_EARLY, "unlikely"))
    study.tell(study.ask(point).number, LOST, None)
    shutdown = SimpleNamespace(
        postponed=contextlib.nullcontext, ends_tune=contextlib.nullcontext, requested=False
    )
    to = SimpleNamespace(uri="sqlite:///unused", objective="val_error", direction="minimize")
    driver._train(study, to, shutdown)
    assert "20 trials (14 of them ended before)" in capsys.readouterr().out
    _, overview = driver.followers
    assert "14 of 20 trials ended" in overview.lines(100, 24)[0].plain
    assert list(overview._waiting) == ["00014"], "the lost one, once more"
