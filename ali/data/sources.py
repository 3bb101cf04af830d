"""Where each data set comes from (§4): its files, download, layout, and what makes a split.

Every function takes a configuration and the splits wanted of train, valid, extra and test, and
gives those that the data set has. It reads the files of no other: what is not asked for may be
missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ali.config import Config
from ali.data import cifar10, files, house_numbers, image_folders, matlab, mixture
from ali.data.cache import VALID_FRACTION, Images, Sink, Source, Split, cached
from ali.errors import UserError

HOUSE_NUMBERS_SMALL = {"train": 20_000, "test": 10_000}  # images made unless more are asked for
MIXTURE_SIZES = {"train": 100_000, "valid": 10_000, "test": 10_000}  # points; train: at least


# house-numbers


def _house_numbers_sizes(config: Config) -> dict[str, int]:
    """Images per split: 20,000 train (16,000 to train on) and 10,000 test; SVHN's own sizes where
    --train-size asks for more than 16,000, and `extra` where it asks for more than 63,257."""
    size = config.train_size or 0
    small = HOUSE_NUMBERS_SMALL
    if size <= small["train"] * (1 - VALID_FRACTION):
        return small
    full = {split: house_numbers.SIZES[split] for split in small}
    if size <= full["train"] - Source.valid_at_scale:
        return full
    if size > house_numbers.SIZES["extra"]:
        raise UserError(f"--train-size {size}: at most {house_numbers.SIZES['extra']} are made")
    return full | {"extra": size}


def _house_numbers_split(split: str, n: int) -> Split:
    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        labels = []
        for x, y in house_numbers.generate(split, n):
            sink(x)
            labels.append(y)
        return np.concatenate(labels), ()

    key = f"house-numbers-v{house_numbers.VERSION}-seed{house_numbers.SEED}-{split}-{n}"
    return cached(key, build)


def _house_numbers(config: Config, wanted: tuple[str, ...]) -> Source:
    files.no_folder(config)
    sizes = _house_numbers_sizes(config)
    splits = {name: _house_numbers_split(name, sizes[name]) for name in wanted if name in sizes}
    return Source(splits, house_numbers.CLASSES)


# SVHN

SVHN_FILES = {name: f"{name}_32x32.mat" for name in ("train", "test", "extra")}


def _svhn(config: Config, wanted: tuple[str, ...]) -> Source:
    """Official .mat files, or others of that layout."""
    folder = files.folder(config)
    names = [name for name in wanted if name in SVHN_FILES]
    if config.data_dir is None:
        for name in names:
            if not (folder / SVHN_FILES[name]).exists():
                others = "give --data-dir a folder with " + ", ".join(SVHN_FILES.values())
                files.download(*_svhn_official(name), folder, others)
    splits: dict[str, Split] = {}
    notes: tuple[str, ...] = ()
    for name in names:
        if name == "extra" and not (folder / SVHN_FILES[name]).exists():
            notes += (f"svhn: no {SVHN_FILES[name]}, so the model trains on train, unlabelled",)
        else:
            splits[name] = _svhn_split(folder, name)
            notes += splits[name].notes
    return Source(splits, 10, notes)


def _svhn_official(split: str) -> tuple[str, str]:
    """URL and md5 of an official file."""
    from torchvision.datasets import SVHN  # here: its import costs seconds

    url, _, md5 = SVHN.split_list[split]
    return url, md5


def _svhn_split(folder: Path, split: str) -> Split:
    path = folder / SVHN_FILES[split]

    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        y = matlab.read(path, sink)
        md5 = files.md5_of(path)
        note = f"svhn: {path.name} ({len(y):,} images) is not the official file (md5 {md5})"
        # Label 10 is digit 0.
        return np.where(y == 10, 0, y), () if md5 == _svhn_official(split)[1] else (note,)

    names = ", ".join(SVHN_FILES.values())
    return cached(f"svhn-{split}-{files.identity('v2', [path], f'SVHN has {names}')}", build)


# CIFAR-10

CIFAR10 = "cifar-10-batches-py"
CIFAR10_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def _cifar10(config: Config, wanted: tuple[str, ...]) -> Source:
    """Official batches, as many as there are; 45,000 to train on and 5,000 for validation."""
    if config.data_dir is None and not (Path("data") / config.data / CIFAR10).is_dir():
        url, md5 = _cifar10_official()
        others = f"give --data-dir the folder {CIFAR10}"
        files.download(url, md5["archive"], Path("data") / config.data, others, unpack=True)
    folder = files.folder(config, CIFAR10)
    splits = {name: _cifar10_split(folder, name) for name in wanted if name in CIFAR10_FILES}
    notes = tuple(note for split in splits.values() for note in split.notes)
    return Source(splits, 10, notes, valid_at_scale=5_000)


def _cifar10_official() -> tuple[str, dict[str, str]]:
    """URL of the archive; md5 of `archive` and of each batch."""
    from torchvision.datasets import CIFAR10

    md5: dict[str, str] = dict((*CIFAR10.train_list, *CIFAR10.test_list))
    return CIFAR10.url, md5 | {"archive": CIFAR10.tgz_md5}


def _cifar10_split(folder: Path, split: str) -> Split:
    names = CIFAR10_FILES[split]
    # Batches after the first may be missing, and then it is a smaller data set.
    paths = [folder / name for name in names if name == names[0] or (folder / name).exists()]

    def build(sink: Sink) -> tuple[np.ndarray, tuple[str, ...]]:
        y = np.concatenate([cifar10.read(path, sink) for path in paths])
        _, official = _cifar10_official()
        others = [path.name for path in paths if files.md5_of(path) != official[path.name]]
        missing = [name for name in names if folder / name not in paths]
        notes = [f"no {', '.join(missing)}"] if missing else []
        notes += [f"not the official {', '.join(others)}"] if others else []
        note = f"cifar10: {len(y):,} images for {split}: {'; '.join(notes)}"
        return y, (note,) if notes else ()

    expected = f"CIFAR-10 is the folder {CIFAR10} with data_batch_1 to 5 and test_batch"
    return cached(f"cifar10-{split}-{files.identity('v1', paths, expected)}", build)


# Mixture (Fig. 7)


def _mixture(config: Config, wanted: tuple[str, ...]) -> Source:
    """Points of the mixture as images of one pixel, labelled with their modes."""
    files.no_folder(config)
    sizes = dict(MIXTURE_SIZES)
    sizes["train"] = max(sizes["train"], config.train_size or 0)
    splits = {}
    for seed, (name, n) in enumerate(sizes.items()):
        if name in wanted:
            points, y = mixture.draw(n, config.modes, seed)
            contents = hashlib.blake2b(points.tobytes() + y.tobytes(), digest_size=16)
            images = Images(points.reshape(n, 1, 1, 2), y)
            splits[name] = Split(images, contents.hexdigest(), ())
    return Source(splits, config.modes)


SOURCES: dict[str, Callable[[Config, tuple[str, ...]], Source]] = {
    "house-numbers": _house_numbers,
    "svhn": _svhn,
    "cifar10": _cifar10,
    "celeba": image_folders.celeba,
    "tiny-imagenet": image_folders.tiny_imagenet,
    "folder": image_folders.own_folder,
    "mixture": _mixture,
}
