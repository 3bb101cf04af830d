"""The user's files: their folder, download, identity, and small tables of text."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from ali.config import Config
from ali.errors import UserError


def folder(config: Config, inner: str = "") -> Path:
    """The user's folder, or ./data/<name>; what it has of the name `inner`, where it has that."""
    folder = config.data_dir or Path("data") / config.data
    if config.data_dir is not None and not folder.is_dir():
        raise UserError(f"--data-dir {folder} is not a folder")
    return folder / inner if (folder / inner).is_dir() else folder


def no_folder(config: Config) -> None:
    if config.data_dir is not None:
        raise UserError(
            f"{config.data} reads no files: leave out --data-dir, or choose other --data"
        )


def download(url: str, md5: str, folder: Path, otherwise: str, unpack: bool = False) -> None:
    """Puts a file, or what is in an archive, into `folder`, complete or not at all."""
    from torchvision.datasets.utils import download_url, extract_archive  # costs seconds

    name = url.rsplit("/", 1)[-1]
    try:
        # torchvision sets no timeout: ask first whether the host answers.
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
    """16 hex digits of the files' places, sizes and times, which stand for the contents: a start
    need not hash 1.3 GB again."""
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def lines(path: Path) -> list[str]:
    """The lines of a text file; empty ones left out."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): fetch it again") from error
    return [line for line in text.splitlines() if line.strip()]


def rows(path: Path) -> list[list[str]]:
    """The lines of a text file, each cut at white space; empty ones left out."""
    return [line.split() for line in lines(path)]


def pairs(path: Path) -> dict[str, str]:
    """Second column of a text file by the first."""
    found = rows(path)
    if any(len(row) < 2 for row in found):
        raise UserError(f"{path} has lines of less than two columns: fetch it again")
    return {row[0]: row[1] for row in found}
