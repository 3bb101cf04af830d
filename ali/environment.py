"""Every environment variable that this project reads, one function each; nothing else reads any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def cache_dir() -> Path:
    """$ALI_CACHE: decoded data sets, shared by all processes; default ~/.cache/ali-sweeps."""
    return Path(os.environ.get("ALI_CACHE") or Path.home() / ".cache" / "ali-sweeps")


def data_dir() -> Path | None:
    """$ALI_DATA_DIR: a folder of data sets by name, used by sweeps where no --data-dir is given."""
    root = os.environ.get("ALI_DATA_DIR")
    return Path(root) if root else None


def output_dir() -> Path:
    """$ALI_OUTPUT_DIR: the folder of all sweeps (--output-dir); default: runs."""
    return Path(os.environ.get("ALI_OUTPUT_DIR") or "runs")


def storage_path() -> str | None:
    """$ALI_STORAGE_PATH: the bucket for checkpoints (--storage-path); default: --output-dir."""
    return os.environ.get("ALI_STORAGE_PATH") or None


def tracking_uri() -> str | None:
    """$MLFLOW_TRACKING_URI: the MLflow server (--tracking-uri)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def ray_address() -> str | None:
    """$RAY_ADDRESS: the Ray cluster to join; default: this user's on this node, or a new one."""
    return os.environ.get("RAY_ADDRESS") or None


def ray_tmpdir() -> Path | None:
    """$RAY_TMPDIR: folder of Ray's sockets and logs; default: ali-UID in $TMPDIR."""
    folder = os.environ.get("RAY_TMPDIR")
    return Path(folder) if folder else None


def tmpdir() -> Path:
    """$TMPDIR: folder of temporary files; default: /tmp."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


def set_defaults(**values: str) -> None:
    """Sets variables that libraries read, where the user has not set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def temporarily(**values: str) -> Iterator[None]:
    """Within, variables that a library reads have these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old
