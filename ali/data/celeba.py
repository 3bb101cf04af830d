"""CelebA (§4, Table 4): aligned faces of 178×218, cropped to 64×64; one attribute as the class."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from ali.config import Config
from ali.data import files, image_files
from ali.data.splits import TEST_FRACTION, VALID_FRACTION, Images, Split, Splits, hold_out_last
from ali.errors import UserError

FOLDER = "img_align_celeba"
OFFICIAL_SIZE = 202_599
# Tables beside the faces: the authors' .txt, or Kaggle's .csv, which begins with its columns' names
PARTITION = "list_eval_partition"  # lines `000001.jpg 0`: 0 train, 1 validation, 2 test
# .txt: a line with the number of faces, one with the attributes' names, then `000001.jpg -1  1 …`
ATTRIBUTES = "list_attr_celeba"


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """Aligned faces, split by the official partition file: as Kaggle or the authors lay them out.

    Unlabelled, as in the paper, unless config.attribute makes classes: 0 without it, 1 with it.
    Fewer faces work too; a note is printed. Raises UserError if files are missing or damaged.
    """
    if config.data_dir is None and not (Path("data") / config.data / FOLDER).is_dir():
        _download()
    folder = files.data_folder(config, FOLDER, f"Img/{FOLDER}")
    names = image_files.list_folder(folder).images
    if len(names) < 3:
        hint = files.unpack_hint(folder)
        raise UserError(f"{folder} holds {len(names)} images: CelebA is the folder {FOLDER}{hint}")
    parts, note = _partition(folder, names)
    notes = () if note is None else (f"celeba: {note}",)
    if len(names) != OFFICIAL_SIZE:
        notes = (f"celeba: {len(names):,} of {OFFICIAL_SIZE:,} images", *notes)
    unlabelled = {name: (parts[name], None) for name in wanted if name in parts}
    splits = image_files.cached_splits("celeba", folder, unlabelled, crop_face)
    if config.attribute is None:
        return Splits(splits, 0, notes)
    has = _read_attribute(_table(folder, ATTRIBUTES), config.attribute, names)
    labelled = {
        name: _with_labels(split, [has[face] for face in parts[name]])
        for name, split in splits.items()
    }
    return Splits(labelled, 2, notes, class_names=(f"not {config.attribute}", config.attribute))


def crop_face(image: Image.Image) -> Image.Image:
    """178×218 resized to 64×78 (Lanczos, antialiased), rows 7 to 71 of it."""
    if image.size != (178, 218):
        raise ValueError(f"it is {image.width}×{image.height}, but aligned faces are 178×218")
    return image.resize((64, 78), Image.Resampling.LANCZOS).crop((0, 7, 64, 71))


def _table(folder: Path, stem: str) -> Path:
    """Path of a table about the faces in `folder`; where its .txt should be if there is none.

    The folder may be nested in itself, as Kaggle's, or in the authors' Img, beside Anno and Eval.
    """
    beside = folder.absolute().parent
    places = [beside]
    if beside.name in (FOLDER, "Img"):
        places += [beside.parent, beside.parent / "Anno", beside.parent / "Eval"]
    found = [place / (stem + suffix) for place in places for suffix in (".txt", ".csv")]
    return next((path for path in found if path.exists()), found[0])


def _with_labels(split: Split, y: list[int]) -> Split:
    """The split with classes; its images are cached once, whatever the attribute."""
    images = Images(split.images.x, np.array(y, np.int64))
    contents = f"{split.fingerprint} {y}".encode()
    fingerprint = hashlib.blake2b(contents, digest_size=16).hexdigest()
    return dataclasses.replace(split, images=images, fingerprint=fingerprint)


def _read_attribute(path: Path, attribute: str, names: list[str]) -> dict[str, int]:
    """File name → 1 if the face has the attribute, else 0; for all of `names` at least."""
    if not path.exists():
        raise UserError(f"no {path}, which --attribute {attribute} needs: download it")
    lines = files.read_lines(path)
    count = [] if path.suffix == ".csv" else lines[:1]
    if len(lines) < 2 or not all(line.strip().isdecimal() for line in count):
        raise UserError(
            f"{path} does not begin with a count and attribute names: download it again"
        )
    known = files.columns(lines[len(count)])[0 if count else 1 :]
    if attribute not in known:
        raise UserError(f"{path} has no attribute {attribute}: it has {', '.join(known)}")
    has, column = {}, 1 + known.index(attribute)
    rows = map(files.columns, lines[len(count) + 1 :])  # no list: it would take half a gigabyte
    for row in rows:
        if len(row) != 1 + len(known):
            raise UserError(
                f"{path} has {len(row) - 1} values for {row[0]} and {len(known)} attributes: "
                "download it again"
            )
        if row[column] not in ("1", "-1"):
            raise UserError(f"{path} has {row[column]} as {attribute} of {row[0]}, not 1 or -1")
        has[row[0]] = int(row[column] == "1")
    if missing := [name for name in names if name not in has]:
        raise UserError(f"{path} has no row for {files.listed(missing)}")
    return has


def _partition(folder: Path, names: list[str]) -> tuple[dict[str, list[str]], str | None]:
    """File names by split, and a note if they are not split by the official partition."""
    path = _table(folder, PARTITION)
    train, test = hold_out_last(names, TEST_FRACTION)
    cut = {"train": list(train), "test": list(test)}
    how = f"the last {TEST_FRACTION:.0%} is for testing, the last {VALID_FRACTION:.0%} of the rest"
    how += " for validation"
    if not path.exists():
        return cut, f"no {path}, so {how}"
    part = files.read_pairs(path)
    if lacking := [name for name in names if part.get(name) not in ("0", "1", "2")]:
        raise UserError(f"{path} has no partition (0, 1 or 2) for {files.listed(lacking)}")
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name in names:
        parts[list(parts)[int(part[name])]].append(name)
    if empty := [split for split, found in parts.items() if not found]:
        return cut, f"{path} leaves no images for {' and '.join(empty)}, so {how}"
    return parts, None


def _download() -> None:
    """Downloads CelebA through torchvision: from Google Drive, which needs the package gdown."""
    from torchvision.datasets import CelebA

    try:
        urllib.request.urlopen("https://drive.google.com", timeout=10).close()
        folder = Path("data") / "celeba"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as partial:
            CelebA(partial, download=True)
            for path in (Path(partial) / CelebA.base_folder).iterdir():
                os.replace(path, folder / path.name)
    except Exception as error:  # gdown has exceptions of its own
        reason = str(error).split("\n")[0]
        raise UserError(
            f"cannot download CelebA ({reason}): download {FOLDER} and {PARTITION}.txt from its "
            "home page and give --data-dir their folder"
        ) from error
