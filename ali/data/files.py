"""The files of a data set: their folder, download, identity, and small text tables."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from ali.config import Config
from ali.errors import UserError

# What systems and archivers leave beside a user's files, in lower case
LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle"}
LITTER |= {"$recycle.bin", "system volume information", "lost+found", "__pycache__"}
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def data_folder(config: Config, *inner: str) -> Path:
    """--data-dir, or ./data/<name>; the first of the subfolders `inner` that it has.

    Raises UserError if --data-dir is not a folder.
    """
    folder = config.data_dir or Path("data") / config.data
    if config.data_dir is not None and not os.path.isdir(folder):
        unpack = os.path.isfile(folder) and folder.name.lower().endswith(ARCHIVES)
        otherwise = ": unpack it, and give the folder" if unpack else ""
        raise UserError(f"--data-dir {folder} is not a folder{otherwise}")
    found = next((folder / name for name in inner if os.path.isdir(folder / name)), folder)
    return undouble(found)


def undouble(folder: Path) -> Path:
    """The folder of the same name in `folder` if it holds nothing else, as in Kaggle's archives.

    `folder` itself if there is none.
    """
    inner = folder / folder.absolute().name
    alone = os.path.isdir(inner) and [entry.name for entry in entries(folder)] == [inner.name]
    return inner if alone else folder


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is directly in a folder, by name, without hidden files and LITTER.

    Raises UserError if it cannot be read.
    """
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [e for e in found if not e.name.startswith(".") and e.name.lower() not in LITTER]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def unpack_hint(folder: Path) -> str:
    """What to add to a message that `folder` lacks files: the archives in it; "" without any."""
    inside = entries(folder) if os.path.isdir(folder) else []
    packed = [entry.name for entry in inside if entry.name.lower().endswith(ARCHIVES)]
    return f"; unpack {listed(packed, 3)} there first" if packed else ""


def matlab_arrays(path: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of each array in a MATLAB file, of which nothing else is read.

    Raises UserError for a file of version 7.3, and scipy's many errors for a damaged one.
    """
    import scipy.io

    try:
        return scipy.io.whosmat(path)
    except NotImplementedError as error:
        raise UserError(f"{path} is a MATLAB 7.3 file: save it with -v7") from error


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names in one line."""
    return printable(", ".join(names[:most]) + (", …" if len(names) > most else ""))


def printable(text: str) -> str:
    """`text` in one line that any terminal can print: file names may hold any byte."""
    return "".join(c if c.isprintable() else "�" for c in text)


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
            hint = f"{expected}{unpack_hint(path.parent)}"
            raise UserError(f"cannot read {path} ({error.strerror}): {hint}") from error
        identity.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.blake2b(os.fsencode(" ".join(identity)), digest_size=8).hexdigest()


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


def columns(line: str) -> list[str]:
    """The fields of a line of a text table, whose separators are spaces or, in Kaggle's, commas."""
    return line.replace(",", " ").split()


def read_pairs(path: Path) -> dict[str, str]:
    """Second column of a text file by the first. Raises UserError if a line has only one."""
    rows = [columns(line) for line in read_lines(path)]
    if any(len(row) < 2 for row in rows):
        raise UserError(f"{path} has lines with fewer than two columns: download it again")
    return {row[0]: row[1] for row in rows}
