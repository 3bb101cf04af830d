"""The connection to MLflow: a server that is checked, or a local database; and its experiment."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ali import environment
from ali.errors import UserError
from ali.files import open_regular, refuse_foreign_links
from ali.output import first_line, without_password
from sweeps.engine.tracking.access import (
    bypass_proxies,
    check_server,
    refusals,
)
from sweeps.engine.tracking.schema import experiment_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Telemetry is asked for when MLflow is imported, and its server has seconds for each request.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own 7 take minutes, and Retry tries again itself
}
SQLITE = b"SQLite format 3\0"  # the first bytes of every database
OUTAGE_SECONDS = 600.0  # how long a trial keeps trying to deliver its log records


def default_uri(output_dir: Path) -> str:
    """The sqlite database of a sweep that was given no tracking server.

    Raises UserError if the path has ? or %, which have a meaning in SQLAlchemy's addresses.
    """
    if {"?", "%"} & set(str(output_dir.resolve())):
        raise UserError(
            f"MLflow's database cannot be in {output_dir.resolve()}, a name with ? or %: choose "
            "another --output-dir, or give --tracking-uri"
        )
    return f"sqlite:///{output_dir.resolve() / 'mlflow.db'}"


def is_database(uri: str) -> bool:
    """Whether an address is a database's, not an MLflow server's."""
    return uri.split(":")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def is_server(uri: str) -> bool:
    """Whether an address is one that a browser opens."""
    return uri.startswith(("http://", "https://"))


def open_client(uri: str) -> MlflowClient:
    """A client, without asking whether its server answers."""
    environment.set_defaults(**MLFLOW_ENVIRONMENT)
    bypass_proxies(uri)
    from mlflow import MlflowClient

    # After the import, which sets levels of its own. AsyncLogQueue logs errors in a line.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def connect(uri: str, existing: bool = False) -> MlflowClient:
    """A client whose server answers. Raises UserError within seconds if it does not.

    `existing`: creates no database, for read-only commands.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    if existing and uri.startswith("sqlite:///") and not file.exists():
        raise UserError(
            f"there is no MLflow database {file}: run a sweep, or give --output-dir or "
            "--tracking-uri"
        )
    check_database(uri)
    try:
        with _database_lock(uri):
            client = open_client(uri)
            if is_server(uri):
                check_server(uri)
            else:
                client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:
        said = str(error)
        if "unsupported URI" in said or "Invalid url" in said:
            raise UserError(
                f"{without_password(uri)} is no address that MLflow knows: a server's is "
                "http://HOST:PORT, a database's sqlite:////FOLDER/mlflow.db"
            ) from None
        way_on = "restore it, or move it away: a resume writes what the study knows to a new one"
        raise UserError(
            f"cannot use the tracking store {without_password(uri)}: {first_line(error)}"
            + (f"; {way_on}" if uri.startswith("sqlite:") else "")
        ) from None
    return client


def check_database(uri: str) -> None:
    """Raises UserError if an address names a local file that is no SQLite database."""
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not file.exists():
        return
    other = not file.is_file()
    if not other and file.stat().st_size:
        with file.open("rb") as opened:
            other = opened.read(len(SQLITE)) != SQLITE
    if other:
        raise UserError(f"{file} is no database of SQLite: give another --tracking-uri")


@contextlib.contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Holds a lock beside a sqlite database: when two processes create its tables at once, MLflow
    fails in one of them. Raises UserError where SQLite cannot work, or links lead elsewhere."""
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not os.access(file.parent, os.W_OK):
        yield
        return
    refuse_foreign_links(*file.parent.glob(f"{glob.escape(file.name)}*"))
    with open_regular(file.with_name(file.name + ".lock"), "a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # the kind of lock that SQLite itself needs
        except OSError as error:
            raise UserError(
                f"the file system of {file.parent} has no locks ({error.strerror}), which SQLite "
                "needs: give the --tracking-uri of a server, or sqlite:////LOCAL/DISK/mlflow.db"
            ) from error
        if not (file.exists() and file.stat().st_size):
            _create_database(file)
        yield


def _create_database(file: Path) -> None:
    """Creates all or nothing, holding the lock: MLflow makes the tables one by one, and if a kill
    or a full disk leaves half of them, it never starts again. Raises UserError if that fails."""
    prefix = f".{file.name}-"
    for abandoned in file.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=file.parent) as folder:
            new = Path(folder, file.name)
            with new.open("wb") as out:
                out.write(empty_database())
                out.flush()
                os.fsync(out.fileno())
            os.replace(new, file)
    except Exception as error:
        raise UserError(
            f"cannot create {file}: {first_line(error)}; free space, or choose another --output-dir"
        ) from error


@functools.cache
def empty_database() -> bytes:
    """A database with MLflow's tables; made once per process: it takes seconds."""
    try:  # in memory: MLflow writes each of its many steps to the disk
        return _new_database(Path("/dev/shm"))
    except Exception:
        return _new_database(None)


def _new_database(where: Path | None) -> bytes:
    with tempfile.TemporaryDirectory(dir=where) as folder:
        file = Path(folder, "mlflow.db")
        open_client(f"sqlite:///{file}").search_experiments(max_results=1)
        return file.read_bytes()


def prepare(uri: str) -> None:
    """Does in advance the slow local steps of `connect`: an import, a new database."""
    environment.set_defaults(**MLFLOW_ENVIRONMENT)
    import mlflow  # noqa: F401

    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        with contextlib.suppress(Exception):  # `connect` says what is wrong
            empty_database()


def experiment_id(client: MlflowClient, output_dir: Path, restore: bool = False) -> str:
    """The experiment of all sweeps; artifacts of a database go to `output_dir`/artifacts.

    Raises UserError if it was deleted, unless it may be restored (`restore`).
    """
    name = experiment_name(client.tracking_uri)
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted" and restore:
            client.restore_experiment(found.experiment_id)
        elif found.lifecycle_stage == "deleted":
            raise UserError(
                f"the MLflow experiment {name!r} was deleted: restore it "
                f"(mlflow experiments restore --experiment-id {found.experiment_id})"
            )
        return found.experiment_id
    local = is_database(client.tracking_uri)
    location = (output_dir.resolve() / "artifacts").as_uri() if local else None
    from mlflow.exceptions import MlflowException

    try:
        with refusals(client.tracking_uri):
            return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment_id(client, output_dir)  # another sweep has just created it
