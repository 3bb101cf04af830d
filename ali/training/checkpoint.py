"""The files of a checkpoint: one layout, one finder; a kill at any moment leaves a whole one.

A checkpoint is a folder with `state.json` (the manifest), `weights-*.safetensors` and
`optimizer-*.safetensors`. Any damaged byte in them is found on reading: the manifest holds the
checksums of the other two and one of itself. Files of any other name in the folder are left alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ali.config import Config
from ali.errors import UserError
from ali.files import is_full, replacing

FORMAT = 2  # 1: without a checksum of the manifest itself; still read
MANIFEST = "state.json"
WEIGHTS, OPTIMIZER = "weights", "optimizer"  # groups of tensors, a file each
CHECKSUM = "sha256"
_NAMES = rf"(({WEIGHTS}|{OPTIMIZER})-\w+\.safetensors|{re.escape(MANIFEST)})"
# Last, partly written files that a kill left, of this version or an earlier one.
_OURS = re.compile(rf"{_NAMES}|\.{_NAMES}\.\w+\.partial|{_NAMES}\.partial")
_KEYS = {"format", "config", "epoch", "step", "generator", "files"}


@dataclass(frozen=True)
class Manifest:
    """What state.json holds.

    Attributes:
        epoch, step: how many are done.
        generator: kind of device and state of the random generator.
        files: by group of tensors, the name and the SHA-256 of its file.
    """

    config: Config
    epoch: int
    step: int
    generator: dict[str, str]
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def checksum(self, group: str) -> str:
        """The SHA-256 of a group's tensors: the same weights, the same checksum."""
        return self.files[group][CHECKSUM]

    def to_json(self) -> bytes:
        """The content of state.json; its checksum is over all other bytes."""
        plain = {"format": FORMAT, "config": self.config.to_dict(), "epoch": self.epoch}
        plain |= {"step": self.step, "generator": self.generator, "files": self.files}
        unsigned = json.dumps({**plain, CHECKSUM: ""}, indent=1).encode()
        return json.dumps({**plain, CHECKSUM: _digest(unsigned)}, indent=1).encode()


def find_checkpoint(path: Path | str) -> Path:
    """The folder of the checkpoint that `path` leads to.

    `path` is a checkpoint, a run of `python -m ali train` or a full training of sweeps/best.py
    (its `checkpoint`), a model downloaded from MLflow, or a trial of a sweep (the newest of its
    `checkpoint_<number>`). Trials keep a checkpoint's files in `state` where an older version wrote
    them. Raises UserError where there is none.
    """
    path = Path(path)
    numbered = [folder for folder in path.glob("checkpoint_*") if folder.name[11:].isdigit()]
    newest_first = sorted(numbered, key=lambda folder: int(folder.name[11:]), reverse=True)
    for folder in (path, path / "checkpoint", path / "state", path / "artifacts" / "checkpoint"):
        if (folder / MANIFEST).is_file():
            return folder
    for trial_checkpoint in newest_first:
        for folder in (trial_checkpoint, trial_checkpoint / "state"):
            if (folder / MANIFEST).is_file():
                return folder
    raise UserError(
        f"no checkpoint in {path}: neither it nor a folder checkpoint, state or "
        f"checkpoint_<number> in it has a {MANIFEST}; give the folder of a checkpoint, of a run "
        "of `train` or of a trial"
    )


def write(folder: Path, manifest: Manifest, groups: dict[str, dict[str, Tensor]]) -> None:
    """Writes each group of tensors under a new name; replacing state.json then is the commit.

    state.json names the tensor files that belong to it, and os.replace is atomic: a reader finds
    either the old set or the new one. Names come from the content, so no file changes its content.
    Only after the commit are older files deleted. Raises UserError if the folder cannot be
    written or the disk is full; the old checkpoint is then untouched and nothing is left behind.
    """
    written: list[Path] = []
    files: dict[str, dict[str, str]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for group, named in groups.items():
            content = safetensors.torch.save(
                {name: t.cpu().contiguous() for name, t in named.items()}
            )
            digest = _digest(content)
            name = f"{group}-{digest[:16]}.safetensors"
            files[group] = {"name": name, CHECKSUM: digest}
            if not (folder / name).exists():
                written.append(folder / name)
            with replacing(folder / name) as partial:
                partial.write_bytes(content)
        _sync_folder(folder)
        with replacing(folder / MANIFEST) as partial:
            partial.write_bytes(replace(manifest, files=files).to_json())
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        way_on = "free space or choose" if is_full(error) else "choose"
        raise UserError(
            f"cannot save the checkpoint in {folder}: {error.strerror or error}; "
            f"{way_on} another folder"
        ) from error
    _sync_folder(folder)
    kept = {MANIFEST, *(entry["name"] for entry in files.values())}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def read(folder: Path | str, *groups: str) -> tuple[Manifest, list[dict[str, Tensor]]]:
    """The manifest and the groups of tensors that are named, all of one checkpoint.

    If a running training replaces it meanwhile, the new one is read. Raises UserError if
    there is no checkpoint in `folder` or it is damaged.
    """
    while True:
        manifest = read_manifest(folder)
        try:
            return manifest, [_read_tensors(folder, manifest, group) for group in groups]
        except UserError:
            if read_manifest(folder) == manifest:
                raise


def read_manifest(folder: Path | str) -> Manifest:
    """Raises UserError if there is no checkpoint in `folder` or its manifest is damaged."""
    path = Path(folder) / MANIFEST
    try:
        content = path.read_bytes()
        plain = json.loads(content.decode())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no checkpoint in {folder}: there is no {MANIFEST}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST} is not JSON") from error
    if not isinstance(plain, dict) or not plain.keys() >= _KEYS:
        raise UserError(f"{path} is not a checkpoint of this program")
    if plain["format"] not in (1, FORMAT):
        raise UserError(
            f"checkpoint {path} has format {plain['format']!r}; this version reads 1 and {FORMAT}: "
            "update this program"
        )
    if plain["format"] == FORMAT or CHECKSUM in plain:
        checksum = str(plain.get(CHECKSUM))
        if _digest(content.replace(checksum.encode(), b"")) != checksum or plain["format"] == 1:
            raise _damaged(folder, f"{MANIFEST} differs from its checksum")
    values = {key: plain[key] for key in ("epoch", "step", "generator", "files")}
    if not _is_whole(**values):
        raise _damaged(folder, f"{MANIFEST} has values of a wrong type")
    try:
        return Manifest(Config.from_dict(plain["config"]), **values)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}; update this program") from error


def _is_whole(epoch: Any, step: Any, generator: Any, files: Any) -> bool:
    """Whether the values of a manifest have their types; those of format 1 have no checksum."""
    counts = all(type(count) is int and count >= 0 for count in (epoch, step))
    texts = [generator, *(files.values() if isinstance(files, dict) else [None])]
    named = all(isinstance(t, dict) and all(isinstance(v, str) for v in t.values()) for t in texts)
    keys = ({"device", "state"}, *({"name", CHECKSUM} for _ in texts[1:]))
    return counts and named and all(t.keys() >= k for t, k in zip(texts, keys, strict=True))


def _read_tensors(folder: Path | str, manifest: Manifest, group: str) -> dict[str, Tensor]:
    """A group of tensors by name. Raises UserError if its file is missing or damaged."""
    entry: dict[str, Any] = manifest.files.get(group, {"name": group, CHECKSUM: ""})
    path = Path(folder) / entry["name"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"checkpoint {folder} lacks {path.name}: {error.strerror or error}; "
            "use another checkpoint, or train anew"
        ) from error
    if _digest(content) != entry[CHECKSUM]:
        raise _damaged(folder, f"{path.name} differs from its checksum")
    return safetensors.torch.load(content)


def _damaged(folder: Path | str, what: str) -> UserError:
    return UserError(
        f"checkpoint {folder} is damaged: {what}; use another checkpoint, or train anew"
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power loss, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # it syncs only files
            raise
    finally:
        os.close(descriptor)
