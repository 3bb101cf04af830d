"""What is done before MLflow is asked: its database's lock, and whose file that is."""

import errno
import fcntl
import os

import pytest

from ali.errors import UserError
from sweeps.engine.tracking.client import _database_lock, connect


def test_a_planted_lock_truncates_nothing(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "mlflow.db.lock").symlink_to(victim)
    with pytest.raises(UserError, match=r"mlflow\.db\.lock is a link or no file: remove it"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert victim.read_text() == "precious"


def test_what_is_no_database_is_refused_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "0.png").write_bytes(b"\x89PNG")
    for name in ("folder", "0.png"):
        with pytest.raises(UserError, match="is no database of SQLite"):
            connect(f"sqlite:///{tmp_path}/{name}", existing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "folder"]


def test_a_database_that_another_user_has_linked_is_refused(tmp_path, foreign_link):
    foreign_link(tmp_path / "mlflow.db", tmp_path / "victim")
    with pytest.raises(UserError, match=r"mlflow\.db is a link that another user made"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "victim").exists()


def test_sqlite_needs_no_more_locks_than_its_own(tmp_path, monkeypatch, without_locks):
    without_locks(errno.ENOLCK)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with _database_lock(uri):
        pass

    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(UserError, match=r"has no locks .*: give the --tracking-uri of a server"):
        connect(uri)
