"""The data sets by name: their training, labelled, validation and test images (§4, §4.4).

`train` is cut once, unless the data set has a validation set of its own: its last 10,000 images
(CIFAR-10: 5,000) are for validation if it has 40,000 or more (SVHN has 73,257), otherwise its last
fifth. The rest is the pool that labelled draws come from. The unlabelled training images are
`extra` if the data set has it, as the authors chose, otherwise that same rest. Only `load_test`
reads `test`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from ali.catalog import KINDS
from ali.config import Config, DataName
from ali.data import celeba, cifar10, files, folder, house_numbers, mixture, svhn, tiny_imagenet
from ali.data.batches import LabelledBatches, batches, to_unit
from ali.data.labelled import check_draws, draw_labelled, labelled_draw, pixel_features
from ali.data.splits import Dataset, Images, Splits, validation_size
from ali.errors import UserError

__all__ = [
    "Dataset",
    "Images",
    "LabelledBatches",
    "batches",
    "draw_labelled",
    "labelled_draw",
    "load",
    "load_splits",
    "load_test",
    "pixel_features",
    "to_unit",
]

# A new data set is a module with a `load_splits`, a line here and its name in config.DataName.
DATASETS: dict[DataName, Callable[[Config, tuple[str, ...]], Splits]] = {
    "house-numbers": house_numbers.load_splits,
    "svhn": svhn.load_splits,
    "cifar10": cifar10.load_splits,
    "celeba": celeba.load_splits,
    "tiny-imagenet": tiny_imagenet.load_splits,
    "mixture": mixture.load_splits,
    "folder": folder.load_splits,
}

FEWEST = 2  # images to validate or test with: fewer have no distance between them


def load(config: Config, check_labels: bool = True) -> Dataset:
    """The data set that `config` names: training images, labelled pool, validation set.

    Raises UserError if files are missing or damaged, or if there are fewer images than `config`
    asks for. `check_labels`: whether labelled draws will be taken from it.
    """
    splits = load_splits(config, ("train", "valid", "extra"))
    train = splits.by_name["train"]
    valid, extra = splits.by_name.get("valid"), splits.by_name.get("extra")
    total = len(train.images)
    held_out = 0 if valid else validation_size(total, splits.large_valid)
    if (len(valid.images) if valid else held_out) < FEWEST:
        raise UserError(
            f"{config.data}: {total} training images are too few for a validation set of {FEWEST}"
        )
    labelled = train.images[: total - held_out]
    unlabelled = extra.images if extra else labelled
    size = config.train_size or len(unlabelled)
    if size > len(unlabelled):
        raise UserError(
            f"--train-size {size}: {config.data} has {len(unlabelled)} training images here"
        )
    if size < config.batch_size:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {size} training images: give a "
            "smaller one"
        )
    if labelled.y is None and check_labels and KINDS[config.model].classifies:
        raise UserError(
            f"--model {config.model} is trained with labels, and {config.data} has none here: "
            "choose other --data, or --model ali"
        )
    if labelled.y is not None and check_labels:
        check_draws(labelled.y, config, splits.classes, splits.class_names)
    parts: tuple[object, ...] = (
        train.fingerprint,
        extra.fingerprint if extra else None,
        size,
        held_out,
    )
    parts += (valid.fingerprint,) if valid else ()
    return Dataset(
        config.data,
        train=unlabelled[:size],
        labelled=labelled,
        valid=valid.images if valid else train.images[total - held_out :],
        classes=splits.classes,
        fingerprint=hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest(),
        notes=splits.notes,
        class_names=splits.class_names,
    )


def check_distinct(dataset: Dataset) -> None:
    """Raises UserError if all validation images are the same, which makes the samples' distance
    from them meaningless."""
    _refuse_alike(dataset.name, dataset.valid, "validate")


def _refuse_alike(data: str, images: Images, to: str) -> None:
    x = images.x
    if all(np.array_equal(image, x[0]) for image in x[1:]):
        raise UserError(f"{data}: all {len(x)} images to {to} with are the same: choose other data")


def load_test(config: Config) -> Images:
    """The test split, which must not be used to choose anything.

    Raises UserError as `load`, and if all images are the same.
    """
    test = load_splits(config, ("test",)).by_name["test"].images
    if len(test) < FEWEST:
        raise UserError(f"{config.data}: one test image is too few: add images")
    _refuse_alike(config.data, test, "test")
    return test


def load_splits(config: Config, wanted: tuple[str, ...]) -> Splits:
    """Those of `wanted` (train, valid, extra, test) that the data set has; reads no other files.

    Raises UserError if files are missing or damaged.
    """
    splits = DATASETS[config.data](config, wanted)
    return dataclasses.replace(splits, notes=tuple(map(files.printable, splits.notes)))
