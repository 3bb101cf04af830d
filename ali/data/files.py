"""The files of a data set: their folder, download, identity, and small text tables."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from ali.config import Config
from ali.errors import UserError


def data_folder(config: Config, inner: str = "") -> Path:
    """--data-dir, or ./data/<name>; its subfolder `inner` if it has one.

    Raises UserError if --data-dir is not a folder.
    """
    folder = config.data_dir or Path("data") / config.data
    if config.data_dir is not None and not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder")
    return folder / inner if (folder / inner).is_dir() else folder


def refuse_data_dir(config: Config) -> None:
    """Raises UserError if --data-dir is given for a data set that reads no files."""
    if config.data_dir is not None:
        raise UserError(
            f"{config.data} reads no files: leave out --data-dir, or choose another --data"
        )


def download(url: str, md5: str, folder: Path, otherwise: str, unpack: bool = False) -> None:
    """Downloads a file, or an archive's contents, into `folder`: complete or not at all.

    Raises UserError if the host does not answer or the checksum differs; its message includes
    `otherwise`, what the user can do instead.
    """
    from torchvision.datasets.utils import download_url, extract_archive  # a slow import

    name = url.rsplit("/", 1)[-1]
    try:
        # torchvision sets no timeout, so check first that the host answers.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as partial:
            download_url(url, partial, name, md5)
            done = Path(partial)
            if unpack:
                done /= "unpacked"
                extract_archive(Path(partial) / name, done)
            for path in done.iterdir():
                os.replace(path, folder / path.name)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the checksum
        raise UserError(
            f"cannot download {url} ({error}): {otherwise}, run on a machine with network, or use "
            "--data house-numbers"
        ) from error


def identity(version: str, paths: list[Path], expected: str) -> str:
    """16 hex digits, a hash of the files' paths, sizes and times.

    They stand for the contents, so that a start need not hash 1.3 GB. Raises UserError if a
    file cannot be read; its message ends with what was `expected`.
    """
    identity = [version]
    for path in paths:
        try:
            with open(path, "rb") as file:
                stat = os.fstat(file.fileno())
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}): {expected}") from error
        identity.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.blake2b(" ".join(identity).encode(), digest_size=8).hexdigest()


def md5_of(path: Path) -> str:
    """The md5 of a file's contents, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def read_lines(path: Path) -> list[str]:
    """The lines of an ASCII file that are not empty. Raises UserError if it cannot be read."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): download it again") from error
    return [line for line in text.splitlines() if line.strip()]


def read_pairs(path: Path) -> dict[str, str]:
    """Second column of a text file by the first. Raises UserError if a line has only one."""
    rows = [line.split() for line in read_lines(path)]
    if any(len(row) < 2 for row in rows):
        raise UserError(f"{path} has lines with fewer than two columns: download it again")
    return {row[0]: row[1] for row in rows}
