"""Tiny ImageNet (§4, Table 5): 64×64 images of 200 classes, from the official folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ali.config import Config
from ali.data import files, image_files
from ali.data.splits import Split, Splits, mixed_order
from ali.errors import UserError

FOLDER = "tiny-imagenet-200"
OFFICIAL_SIZES = {"train": 100_000, "test": 10_000}
ANNOTATIONS = "val_annotations.txt"


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """The official folder. Its `val` is the test split, since its `test` has no labels.

    Fewer images or classes work too; a note is printed. Raises UserError if files are missing.
    """
    root = files.data_folder(config, FOLDER)
    if not (root / "wnids.txt").exists():
        raise UserError(
            f"no {root / 'wnids.txt'}: give --data-dir the folder {FOLDER}, unpacked from "
            f"cs231n.stanford.edu/{FOLDER}.zip{files.unpack_hint(root)}"
        )
    wnids = [line.split()[0] for line in files.read_lines(root / "wnids.txt")]
    if not wnids:
        raise UserError(f"{root / 'wnids.txt'} names no classes")
    if twice := {wnid for wnid, times in Counter(wnids).items() if times > 1}:
        raise UserError(f"{root / 'wnids.txt'} names {files.listed(sorted(twice))} twice")
    index = {wnid: i for i, wnid in enumerate(wnids)}
    find = {"train": _find_train, "test": _find_val}
    splits: dict[str, Split] = {}
    notes: tuple[str, ...] = ()
    for name in (name for name in wanted if name in find):
        found = find[name](root, wnids)
        y = [index[wnid] for wnid in found.values()]
        splits[name] = image_files.cached_split(
            f"tiny-imagenet-{name}", root, list(found), y, image_files.require_size(64)
        )
        if len(found) != OFFICIAL_SIZES[name]:
            notes += (
                f"tiny-imagenet: {len(found):,} images of {len(wnids)} classes for {name}, "
                f"not the official {OFFICIAL_SIZES[name]:,} of 200",
            )
    return Splits(splits, len(wnids), notes, class_names=_names(root, wnids))


def _names(root: Path, wnids: list[str]) -> tuple[str, ...]:
    """The classes' names: each wnid, with its first word if words.txt is there."""
    path = root / "words.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line.partition("\t") for line in text.splitlines()]
    words = {wnid: names.split(",")[0] for wnid, _, names in lines}
    return tuple(f"{wnid} ({words[wnid]})" if wnid in words else wnid for wnid in wnids)


def _find_train(root: Path, wnids: list[str]) -> dict[str, str]:
    """Path relative to `root` → class, in mixed order."""
    found: dict[str, str] = {}
    for wnid in wnids:
        inner = f"train/{wnid}/images"
        folder = inner if (root / inner).is_dir() else f"train/{wnid}"
        names = image_files.list_folder(root / folder).images
        if not names:
            raise UserError(f"{root / folder} holds no images, but wnids.txt names {wnid}")
        found |= {f"{folder}/{name}": wnid for name in names}
    return {path: found[path] for path in mixed_order(found)}


def _find_val(root: Path, wnids: list[str]) -> dict[str, str]:
    """Path relative to `root` → class, from the annotations and from folders named after classes.

    The usual scripts move, or copy, val/images to val/<wnid>/images, val/<wnid> or
    val/images/<wnid>; some leave the annotations and an empty val/images behind.
    """
    found: dict[tuple[str, str], str] = {}  # class and name → path, the last copy's
    images, annotations = root / "val" / "images", root / "val" / ANNOTATIONS
    if names := image_files.list_folder(images).images if images.is_dir() else []:
        label = files.read_pairs(annotations)
        for name in names:
            if label.get(name) not in wnids:
                raise UserError(f"{annotations} has no class of wnids.txt for {name}")
            found[label[name], name] = f"val/images/{name}"
    for wnid in wnids:
        for folder in (f"val/images/{wnid}", f"val/{wnid}", f"val/{wnid}/images"):
            if (root / folder).is_dir():
                names = image_files.list_folder(root / folder).images
                found |= {(wnid, name): f"{folder}/{name}" for name in names}
    if not found:
        raise UserError(
            f"{root / 'val'} holds no images, neither in images nor in folders named after classes"
        )
    return {path: wnid for (wnid, _), path in found.items()}
