"""The user's own images: a folder of image files, its subfolders the classes if there are any."""

from __future__ import annotations

from pathlib import Path

from ali.config import Config
from ali.data import files, image_files
from ali.data.splits import TEST_FRACTION, Splits, hold_out_last, mixed_order
from ali.errors import UserError

Labels = dict[str, str | None]  # path → class; None in a folder without classes


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """Images in subfolders named after the classes, or directly in --data-dir, unlabelled.

    With subfolders `train` and `test`, each of the two is such a folder; otherwise the last
    TEST_FRACTION in mixed order is held out for testing. Images are cropped to the centred square
    and resized to config.image_size. Raises UserError if the folder has another structure.
    """
    if config.data_dir is None:
        raise UserError("--data folder needs --data-dir, the folder of images")
    root = files.data_folder(config)
    if {"train", "test"} <= set(image_files.list_folder(root).folders):
        parts, notes = _train_and_test(root)
    else:
        found, notes = _find_images(root)
        train, test = hold_out_last(list(found.items()), TEST_FRACTION)
        parts = {"train": dict(train), "test": dict(test)}
        notes += (
            f"folder: {len(test)} of {len(found):,} images, chosen by a hash of their names, are "
            "held out for testing",
        )
    classes = sorted({label for part in parts.values() for label in part.values() if label})
    if len(classes) == 1:
        raise UserError(
            f"{root} has one class only, {classes[0]}: add another, or put the images directly "
            "into a folder to train without labels"
        )
    splits = {}
    prepare = image_files.crop_square(config.image_size)
    for name in (name for name in wanted if name in parts):
        part, key = parts[name], f"folder-{config.image_size}-{name}"
        y = [classes.index(label) for label in part.values() if label] or None
        splits[name] = image_files.cached_split(key, root, list(part), y, prepare)
    return Splits(splits, len(classes), notes)


def _train_and_test(root: Path) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Images by split, and notes, of a folder with `train` and `test`."""
    parts: dict[str, Labels] = {}
    notes: tuple[str, ...] = ()
    for name in ("train", "test"):
        found, more_notes = _find_images(root / name)
        parts[name] = {f"{name}/{path}": label for path, label in found.items()}
        notes += more_notes
    train, test = (set(part.values()) for part in parts.values())
    if extra := test - train:
        label = extra.pop()
        what = "images without a class" if label is None else f"the class {label}"
        raise UserError(f"{root / 'test'} has {what}, which {root / 'train'} does not have")
    return parts, notes


def _find_images(root: Path) -> tuple[Labels, tuple[str, ...]]:
    """Images by path relative to `root`, in mixed order, and a note on what is ignored."""
    top = image_files.list_folder(root)
    inside = {name: image_files.list_folder(root / name) for name in top.folders}
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
        raise UserError(f"{root} holds no images ({image_files.COMMON})")
    others = top.others + [f"{name}/" for name in inside if name not in classes]
    others += [f"{label}/{name}" for label, below in classes.items() for name in below.others]
    shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
    note = f"folder: {len(others)} entries of {root} are not images and are ignored: {shown}"
    return {path: found[path] for path in mixed_order(found)}, (note,) if others else ()
