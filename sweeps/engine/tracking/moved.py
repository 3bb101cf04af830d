"""An output folder that was moved or copied: its database says where the artifacts were."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ali.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Columns of MLflow's tables with addresses of artifacts
_ADDRESSES = {"artifact_location", "artifact_uri", "source", "storage_location"}


def follow_move(client: MlflowClient, experiment: str, output_dir: Path) -> None:
    """Has a local database that was moved with its output folder find its artifacts beside it.

    Without that, what is logged next goes to the old place. Raises UserError if the database is
    elsewhere and the folder of its artifacts is gone.
    """
    location = client.get_experiment(experiment).artifact_location
    if not client.tracking_uri.startswith("sqlite:///") or not location.startswith("file:"):
        return
    database = Path(client.tracking_uri.removeprefix("sqlite:///")).resolve()
    before, now = Path(unquote(urlsplit(location).path)), output_dir.resolve() / "artifacts"
    if before == now or (before.parent.exists() and before.parent.samefile(now.parent)):
        return
    beside = database.parent == now.parent
    if before.exists() and not (beside and now.exists()):
        return  # several output folders have one database, or its artifacts are elsewhere by intent
    if not beside and not now.exists():
        raise UserError(
            f"MLflow's artifacts are to be in {before}, which is gone: move that folder back, or "
            f"to {now}"
        )
    _replace_addresses(database, location, now.as_uri())
    print(f"note: {before} is now {now}; MLflow's records were changed accordingly", flush=True)


def _replace_addresses(database: Path, before: str, now: str) -> None:
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            for column in _ADDRESSES & {name for _, name, *_ in columns}:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, before + "/"),
                )
