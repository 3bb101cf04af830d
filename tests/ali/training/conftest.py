"""Fixtures of the tests of states and checkpoints."""

from pathlib import Path

import pytest

from tests.ali.training.states import trained


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A checkpoint that tests copy before they change it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    trained().save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    copied = tmp_path / "checkpoint"
    copied.mkdir()
    for path in saved.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied
