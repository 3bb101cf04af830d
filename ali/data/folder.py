"""The user's own images: a folder of image files, its subfolders the classes if there are any."""

from __future__ import annotations

from pathlib import Path

from ali.config import Config
from ali.data import files, image_files
from ali.data.splits import TEST_FRACTION, Splits, hold_out_last, mixed_order
from ali.errors import UserError

Labels = dict[str, str | None]  # path → class; None in a folder without classes

PARTITIONS = {  # what folders of ready-made splits are called, in lower case
    "train": ("train", "training", "train_set", "training_set"),
    "valid": ("val", "valid", "validation", "dev", "val_set", "validation_set"),
    "test": ("test", "testing", "test_set", "testing_set"),
}


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """Images in subfolders named after the classes, or directly in --data-dir, unlabelled.

    With subfolders `train` and `test`, `val` or both (PARTITIONS), each of them is such a folder.
    Without test images, the last TEST_FRACTION of the rest in mixed order are held out for testing.
    Images are cropped to the centred square and resized to config.image_size. Raises UserError if
    the folder has another structure.
    """
    if config.data_dir is None:
        raise UserError("--data folder needs --data-dir, the folder of images")
    root = files.data_folder(config)
    parts, notes = _find_parts(root)
    if "test" not in parts:
        train, test = hold_out_last(list(parts["train"].items()), TEST_FRACTION)
        notes += (
            f"folder: {len(test)} of {len(parts['train']):,} images, chosen by a hash of their "
            "names, are held out for testing",
        )
        parts |= {"train": dict(train), "test": dict(test)}
    classes = sorted({label for part in parts.values() for label in part.values() if label})
    if len(classes) == 1:
        raise UserError(
            f"{root} has one class only, {classes[0]}: add another, or put the images directly "
            "into a folder to train without labels"
        )
    index = {label: i for i, label in enumerate(classes)}
    labelled = {
        name: (list(part), [index[label] for label in part.values() if label] or None)
        for name, part in parts.items()
        if name in wanted
    }
    splits = image_files.cached_splits(
        f"folder-{config.image_size}", root, labelled, image_files.crop_square(config.image_size)
    )
    return Splits(splits, len(classes), notes, class_names=tuple(classes))


def _find_parts(root: Path) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Images by split, relative to `root`, and notes; all are `train` without PARTITIONS."""
    top = image_files.list_folder(root)
    named = {
        split: [folder for folder in top.folders if folder.lower() in names]
        for split, names in PARTITIONS.items()
    }
    given, notes = {"train": ""}, tuple[str, ...]()
    if named["train"] and (named["valid"] or named["test"]):
        if several := next((folders for folders in named.values() if len(folders) > 1), None):
            raise UserError(f"{root} holds both {' and '.join(several)}: keep one of them")
        given = {split: folders[0] for split, folders in named.items() if folders}
        others = [f"{name}/" for name in top.folders if name not in given.values()]
        beside = f"are not in {', '.join(given.values())}"
        notes = _note(root, [*others, *top.images, *top.others], beside)
    parts: dict[str, Labels] = {}
    for split, name in given.items():
        inner = files.undouble(root / name)
        prefix = f"{inner.relative_to(root)}/" if name else ""
        found, more = _find_images(inner)
        parts[split] = {prefix + path: label for path, label in found.items()}
        notes += more
        here, there = set(found.values()), set(parts["train"].values())
        if extra := here - there:
            known = sorted(label for label in extra if label)
            what = "images without a class"
            if known:
                what = f"the class{'es' * (len(known) > 1)} {files.listed(known)}"
            raise UserError(
                f"{root / name} has {what}, which {root / given['train']} does not have: sort both "
                "by the same classes, or move one away"
            )
        if lacking := sorted(label for label in there - here if label):
            notes += (f"folder: {inner} has no images of {files.listed(lacking)}",)
    return parts, notes


def _find_images(root: Path) -> tuple[Labels, tuple[str, ...]]:
    """Images by path relative to `root`, in mixed order, and a note on what is ignored."""
    top = image_files.list_folder(root)
    inside = {name: image_files.list_folder(root / name) for name in top.folders}
    classes = {name: below for name, below in inside.items() if below.images}
    if deep := [name for name, below in inside.items() if below.folders]:
        raise UserError(
            f"{root / files.listed(deep)} holds folders: give --data-dir the folder whose "
            "subfolders are the classes, or that holds both train and test or val"
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
        hint = files.unpack_hint(root)
        raise UserError(f"{root} holds no images ({image_files.COMMON}){hint}")
    others = top.others + [f"{name}/" for name in inside if name not in classes]
    others += [f"{label}/{name}" for label, below in classes.items() for name in below.others]
    return {path: found[path] for path in mixed_order(found)}, _note(root, others, "are not images")


def _note(root: Path, others: list[str], why: str) -> tuple[str, ...]:
    """A note that the entries `others` of `root` are ignored; none if there are none."""
    shown = files.listed(others, 3)
    note = f"folder: {len(others)} entries of {root} {why} and are ignored: {shown}"
    return (note,) if others else ()
