"""The data sets: splits, labelled draws and batches (§4, §4.4); owns pixel scaling.

Splits. `train` is cut once, unless the data set has a validation set of its own: its last 10,000
images (CIFAR-10: 5,000) are held out for validation when it has 40,000 or more (SVHN's has 73,257),
its last fifth otherwise; the rest is the pool that labelled draws come from. The unlabelled
training images are `extra` where there is one, as the authors chose, else that same rest. `test` is
read by `load_test` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ali.config import Config
from ali.data import sources
from ali.data.cache import AT_SCALE, VALID_FRACTION
from ali.data.labelled import check_draw, draw_labelled, labelled_draw, pixel_features
from ali.data.splits import Dataset, Images
from ali.errors import UserError

__all__ = [
    "Dataset",
    "Images",
    "batches",
    "draw_labelled",
    "labelled_draw",
    "load",
    "load_test",
    "pixel_features",
    "to_unit",
]


def load(config: Config) -> Dataset:
    """The data set that a configuration names: training images, labelled pool, validation set.

    Raises UserError where files are missing or broken, or too few for what the configuration asks.
    """
    source = sources.SOURCES[config.data](config, ("train", "valid", "extra"))
    train, extra = source.splits["train"], source.splits.get("extra")
    valid = source.splits.get("valid")
    total = len(train.images)
    held = 0 if valid else _held_out(config, total, source.valid_at_scale)
    labelled = train.images[: total - held]
    unlabelled = labelled if extra is None else extra.images
    most = len(unlabelled)
    size = config.train_size or most
    if size > most:
        raise UserError(f"--train-size {size}: {config.data} has {most} training images here")
    if size < config.batch_size:
        raise UserError(f"--batch-size {config.batch_size} is more than the {size} training images")
    if labelled.y is not None:
        check_draw(labelled.y, config.labels, config.balanced, source.classes)
    parts: tuple[object, ...] = (
        train.fingerprint,
        extra.fingerprint if extra else None,
        size,
        held,
    )
    parts += (valid.fingerprint,) if valid else ()
    return Dataset(
        config.data,
        train=unlabelled[:size],
        labelled=labelled,
        valid=valid.images if valid else train.images[total - held :],
        classes=source.classes,
        fingerprint=hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest(),
        notes=source.notes,
    )


def _held_out(config: Config, total: int, at_scale: int) -> int:
    """How many of `total` train images are for validation."""
    held = at_scale if total >= AT_SCALE else round(total * VALID_FRACTION)
    if held < 1:
        raise UserError(f"{config.data}: {total} images are too few for a validation set")
    return held


def load_test(config: Config) -> Images:
    """The test split, which no choice may be made on. Raises UserError as `load` does."""
    return sources.SOURCES[config.data](config, ("test",)).splits["test"].images


# Batches


def to_unit(x: Tensor) -> Tensor:
    """Pixels in [0, 1]: uint8 (B, H, W, C) → fp32 (B, C, H, W) in channels_last memory.

    Points of the plane, fp32, stay as they are.
    """
    x = x.permute(0, 3, 1, 2)
    return x if x.is_floating_point() else x.to(torch.float32).div_(255)


def batches(x: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch of `x`, (N, H, W, C) as in `Images` on any device, its order from `generator`.

    Yields fp32 (batch_size, C, H, W) in [0, 1]; the last short batch is dropped, so that every step
    sees the same number of images. Nothing here waits for the device.
    """
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    for start in range(0, len(x) - batch_size + 1, batch_size):
        yield to_unit(x[order[start : start + batch_size]])
