"""Data sets that are folders of image files (§4): CelebA, Tiny ImageNet, the user's own.

Where there is no split for testing, the last TEST_FRACTION of the images is held out before
anything else, and only asking for `test` reads it. What is stored class by class is put into an
order that is always the same but says nothing about the classes, that of the hashes of the paths,
before it is cut: the last images of Tiny ImageNet would all be of a few classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from ali.config import Config
from ali.data import files, pictures
from ali.data.cache import TEST_FRACTION, VALID_FRACTION, Images, Source, Split
from ali.errors import UserError


def _mixed(paths: Iterable[str]) -> list[str]:
    """In an order that is always the same and has nothing to do with the classes."""
    return sorted(paths, key=lambda path: hashlib.blake2b(os.fsencode(path)).digest())


def _last(paths: Collection[str], fraction: float) -> int:
    """Index of the first of the last `fraction`, which is at least one image."""
    return len(paths) - max(1, round(len(paths) * fraction))


# CelebA

CELEBA = "img_align_celeba"
CELEBA_SIZE = 202_599
PARTITION = "list_eval_partition.txt"  # lines `000001.jpg 0`: 0 train, 1 validation, 2 test
# A line with the number of faces, one with the attributes' names, then `000001.jpg -1  1 …`
ATTRIBUTES = "list_attr_celeba.txt"


def celeba(config: Config, wanted: tuple[str, ...]) -> Source:
    """Aligned faces and, beside their folder, the official partition. Unlabelled, as in the paper,
    unless an attribute is chosen as the class."""
    if config.data_dir is None and not (Path("data") / config.data / CELEBA).is_dir():
        _celeba_download()
    folder = files.folder(config, CELEBA)
    names = pictures.listing(folder).images
    if len(names) < 3:
        raise UserError(f"{folder} holds {len(names)} images: CelebA is the folder {CELEBA}")
    parts, note = _celeba_partition(folder, names)
    notes = () if note is None else (f"celeba: {note}",)
    if len(names) != CELEBA_SIZE:
        notes = (f"celeba: {len(names):,} of {CELEBA_SIZE:,} images", *notes)
    splits = {
        name: pictures.split(f"celeba-{name}", folder, parts[name], None, pictures.face)
        for name in wanted
        if name in parts
    }
    if config.attribute is None:
        return Source(splits, 0, notes)
    has = _celeba_attribute(folder.parent / ATTRIBUTES, config.attribute, names)
    labelled = {
        name: _labelled(split, [has[face] for face in parts[name]])
        for name, split in splits.items()
    }
    return Source(labelled, 2, notes)


def _labelled(split: Split, y: list[int]) -> Split:
    """The split with classes; its images stay cached once, whatever the attribute."""
    images = Images(split.images.x, np.array(y, np.int64))
    both = f"{split.fingerprint} {y}".encode()
    fingerprint = hashlib.blake2b(both, digest_size=16).hexdigest()
    return dataclasses.replace(split, images=images, fingerprint=fingerprint)


def _celeba_attribute(path: Path, attribute: str, names: list[str]) -> dict[str, int]:
    """Of each file name, at least of `names`: 1 where the face has the attribute, else 0."""
    if not path.exists():
        raise UserError(f"no {path}, where --attribute {attribute} is read: fetch it, as published")
    lines = files.lines(path)
    if len(lines) < 2 or not lines[0].strip().isdecimal():
        raise UserError(f"{path} does not begin with a count and attribute names: fetch it again")
    known = lines[1].split()
    if attribute not in known:
        raise UserError(f"{path} has no attribute {attribute}: it has {', '.join(known)}")
    has, column = {}, 1 + known.index(attribute)
    for row in map(str.split, lines[2:]):  # one at a time: all would be half a gigabyte
        if len(row) != 1 + len(known):
            raise UserError(
                f"{path} has {len(row) - 1} values for {row[0]} and {len(known)} attributes: fetch "
                "it again"
            )
        if row[column] not in ("1", "-1"):
            raise UserError(f"{path} has {row[column]} as {attribute} of {row[0]}, not 1 or -1")
        has[row[0]] = int(row[column] == "1")
    if missing := next((name for name in names if name not in has), None):
        raise UserError(f"{path} has no row for {missing}")
    return has


def _celeba_partition(folder: Path, names: list[str]) -> tuple[dict[str, list[str]], str | None]:
    """File names by split, and what is to be said about them."""
    path = folder.parent / PARTITION
    kept = _last(names, TEST_FRACTION)
    cut = {"train": names[:kept], "test": names[kept:]}
    by = f"the last {TEST_FRACTION:.0%} is for testing, the last {VALID_FRACTION:.0%} of the rest"
    by += " for validation"
    if not path.exists():
        return cut, f"no {path}, so {by}"
    part = files.pairs(path)
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name in names:
        if part.get(name) not in ("0", "1", "2"):
            raise UserError(f"{path} has no partition (0, 1 or 2) for {name}")
        parts[list(parts)[int(part[name])]].append(name)
    if empty := [split for split, found in parts.items() if not found]:
        return cut, f"{path} leaves no images for {' and '.join(empty)}, so {by}"
    return parts, None


def _celeba_download() -> None:
    """What torchvision offers: Google Drive, through the package gdown if it is installed."""
    from torchvision.datasets import CelebA

    try:
        urllib.request.urlopen("https://drive.google.com", timeout=10).close()
        folder = Path("data") / "celeba"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as partial:
            CelebA(partial, download=True)
            for path in (Path(partial) / CelebA.base_folder).iterdir():
                os.replace(path, folder / path.name)
    except Exception as error:  # gdown has errors of its own
        reason = str(error).split("\n")[0]
        raise UserError(
            f"cannot download CelebA ({reason}): fetch {CELEBA} and {PARTITION} from its home page "
            "and give --data-dir their folder"
        ) from error


# Tiny ImageNet

TINY_IMAGENET = "tiny-imagenet-200"
TINY_IMAGENET_SIZES = {"train": 100_000, "test": 10_000}
ANNOTATIONS = "val_annotations.txt"


def tiny_imagenet(config: Config, wanted: tuple[str, ...]) -> Source:
    """The official folder; `val` is the test split, for the official test images are unlabelled."""
    root = files.folder(config, TINY_IMAGENET)
    if not (root / "wnids.txt").exists():
        raise UserError(
            f"no {root / 'wnids.txt'}: give --data-dir the folder {TINY_IMAGENET}, unpacked from "
            f"cs231n.stanford.edu/{TINY_IMAGENET}.zip"
        )
    wnids = [row[0] for row in files.rows(root / "wnids.txt")]
    if not wnids:
        raise UserError(f"{root / 'wnids.txt'} names no classes")
    index = {wnid: i for i, wnid in enumerate(wnids)}
    find = {"train": _tiny_imagenet_train, "test": _tiny_imagenet_val}
    splits: dict[str, Split] = {}
    notes: tuple[str, ...] = ()
    for name in (name for name in wanted if name in find):
        found = find[name](root, wnids)
        y = [index[wnid] for wnid in found.values()]
        splits[name] = pictures.split(
            f"tiny-imagenet-{name}", root, list(found), y, pictures.exactly(64)
        )
        if len(found) != TINY_IMAGENET_SIZES[name]:
            official = f"{TINY_IMAGENET_SIZES[name]:,} of 200"
            notes += (
                f"tiny-imagenet: {len(found):,} images of {len(wnids)} classes for {name}, "
                f"not the official {official}",
            )
    return Source(splits, len(wnids), notes)


def _tiny_imagenet_train(root: Path, wnids: list[str]) -> dict[str, str]:
    """Path below root → class."""
    found = _by_class(root, "train", wnids)
    return {path: found[path] for path in _mixed(found)}


def _tiny_imagenet_val(root: Path, wnids: list[str]) -> dict[str, str]:
    annotations = root / "val" / ANNOTATIONS
    if not annotations.exists():
        return _by_class(root, "val", wnids)
    wnid = files.pairs(annotations)
    names = pictures.listing(root / "val" / "images").images
    for name in names:
        if wnid.get(name) not in wnids:
            raise UserError(f"{annotations} has no class of wnids.txt for {name}")
    if not names:
        raise UserError(f"{root / 'val' / 'images'} holds no images")
    return {f"val/images/{name}": wnid[name] for name in names}


def _by_class(root: Path, split: str, wnids: list[str]) -> dict[str, str]:
    """Path below root → class, of images in <split>/<wnid>/images or <split>/<wnid>."""
    found: dict[str, str] = {}
    for wnid in wnids:
        inner = f"{split}/{wnid}/images"
        folder = inner if (root / inner).is_dir() else f"{split}/{wnid}"
        names = pictures.listing(root / folder).images
        if not names:
            raise UserError(f"{root / folder} holds no images, but wnids.txt names {wnid}")
        found |= {f"{folder}/{name}": wnid for name in names}
    return found


# A folder of the user's own


def own_folder(config: Config, wanted: tuple[str, ...]) -> Source:
    """Images in subfolders, which are the classes, or directly inside, unlabelled; with subfolders
    `train` and `test`, the same in each of the two."""
    if config.data_dir is None:
        raise UserError("--data folder needs --data-dir, the folder of images")
    root = files.folder(config)
    if {"train", "test"} <= set(pictures.listing(root).folders):
        parts, notes = _own_splits(root)
    else:
        found, notes = _own_images(root)
        kept = _last(found, TEST_FRACTION)
        items = list(found.items())
        parts = {"train": dict(items[:kept]), "test": dict(items[kept:])}
        notes += (
            f"folder: {len(parts['test'])} of {len(found):,} images, picked by their names' hash, "
            "are kept for testing",
        )
    classes = sorted({label for part in parts.values() for label in part.values() if label})
    if len(classes) == 1:
        raise UserError(
            f"{root} has one class only, {classes[0]}: add another, or put the images directly "
            "into a folder to train without labels"
        )
    splits = {}
    for name in (name for name in wanted if name in parts):
        part, key = parts[name], f"folder-{config.image_size}-{name}"
        y = [classes.index(label) for label in part.values() if label] or None
        splits[name] = pictures.split(key, root, list(part), y, pictures.square(config.image_size))
    return Source(splits, len(classes), notes)


Labels = dict[str, str | None]  # path → class, None in a folder without classes


def _own_splits(root: Path) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Images by split, and notes, of a folder with `train` and `test`."""
    parts: dict[str, Labels] = {}
    notes: tuple[str, ...] = ()
    for name in ("train", "test"):
        found, said = _own_images(root / name)
        parts[name] = {f"{name}/{path}": label for path, label in found.items()}
        notes += said
    train, test = (set(part.values()) for part in parts.values())
    if odd := test - train:
        label = odd.pop()
        what = "images without a class" if label is None else f"the class {label}"
        raise UserError(f"{root / 'test'} has {what}, which {root / 'train'} has not")
    return parts, notes


def _own_images(root: Path) -> tuple[Labels, tuple[str, ...]]:
    """Images by path below `root`, in mixed order, and a note on what was left out."""
    top = pictures.listing(root)
    inside = {name: pictures.listing(root / name) for name in top.folders}
    classes = {name: below for name, below in inside.items() if below.images}
    for name, below in inside.items():
        if below.folders:
            raise UserError(
                f"{root / name} holds folders: give --data-dir the folder whose subfolders are the "
                "classes, or that holds both train and test"
            )
    if top.images and classes:
        raise UserError(
            f"{root} holds images and subfolders of images: sort all of them into subfolders by "
            "class, or none"
        )
    found: Labels = dict.fromkeys(top.images)
    for label, below in classes.items():
        found |= {f"{label}/{name}": label for name in below.images}
    if not found:
        raise UserError(f"{root} holds no images ({', '.join(sorted(pictures.SUFFIXES))})")
    others = top.others + [f"{name}/" for name in inside if name not in classes]
    others += [f"{label}/{name}" for label, below in classes.items() for name in below.others]
    shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
    note = f"folder: {len(others)} in {root} that are no images are left out: {shown}"
    return {path: found[path] for path in _mixed(found)}, (note,) if others else ()
