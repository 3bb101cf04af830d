"""The connection to MLflow: a server that is checked, or a local database; and its experiment."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

from ali import environment
from ali.errors import UserError
from ali.files import open_regular, refuse_foreign_links
from sweeps.engine.tracking.schema import EXPERIMENT

if TYPE_CHECKING:
    from mlflow import MlflowClient

OUTAGE_SECONDS = 600.0  # how long a trial keeps trying to deliver its log records


def without_password(uri: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"://[^/@]*:[^/@]*@", "://…@", uri)


def default_uri(output_dir: Path) -> str:
    """The sqlite database of a sweep that was given no tracking server."""
    return f"sqlite:///{output_dir.resolve() / 'mlflow.db'}"


def open_client(uri: str) -> MlflowClient:
    """A client, without asking whether its server answers."""
    from mlflow import MlflowClient

    # After the import, which sets levels of its own. AsyncLogQueue logs errors in a line.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def connect(uri: str, existing: bool = False) -> MlflowClient:
    """A client whose server answers. Raises UserError within seconds if it does not.

    `existing`: no database is created, as by commands that only read.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    if existing and uri.startswith("sqlite:///") and not file.exists():
        raise UserError(
            f"there is no MLflow database {file}: run a sweep, or give --output-dir or "
            "--tracking-uri"
        )
    environment.set_defaults(MLFLOW_HTTP_REQUEST_TIMEOUT="30")
    if uri.startswith(("http://", "https://")):
        try:
            with urlopen(uri.rstrip("/") + "/health", timeout=10):
                pass
        except (URLError, OSError, ValueError) as error:
            raise UserError(
                f"no MLflow server answers at {uri} ({getattr(error, 'reason', error)}): start it, "
                "correct --tracking-uri, or leave it out to log to a local database"
            ) from None
    try:
        with _database_lock(uri):
            client = open_client(uri)
            client.search_experiments(max_results=1)
    except UserError:
        raise
    except Exception as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"cannot use the tracking store {uri}: {first_line}") from None
    return client


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
        yield


def experiment_id(client: MlflowClient, output_dir: Path) -> str:
    """The experiment of all sweeps; artifacts of a local database go to `output_dir`/artifacts."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"the MLflow experiment {EXPERIMENT!r} was deleted: restore it "
                f"(mlflow experiments restore --experiment-id {found.experiment_id})"
            )
        return found.experiment_id
    local = client.tracking_uri.startswith("sqlite:")
    location = (output_dir.resolve() / "artifacts").as_uri() if local else None
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(EXPERIMENT, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment_id(client, output_dir)  # another sweep has just created it
