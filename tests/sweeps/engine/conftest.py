"""A study for tests to fill."""

import pytest

from ali.config import Config
from sweeps.engine.space import Space, suggest
from sweeps.engine.study import Study


@pytest.fixture
def point():
    """Draws a point of the default space."""
    return lambda trial: suggest(trial, Space(), Config())


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "journal", "s", seed=1, startup_trials=3)
