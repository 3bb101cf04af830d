"""Image files: found in a folder, decoded side by side, and cached as one split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ali.data.cache import Sink, Split, cached
from ali.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
TOGETHER = 1024  # images decoded before they are written: 12 MiB of 64×64

Prepare = Callable[[Image.Image], Image.Image]  # an RGB image → the one that is trained on


@dataclass(frozen=True)
class Listing:
    """What a folder holds, by name, in order; hidden files left out."""

    images: list[str]
    folders: list[str]
    others: list[str]


def listing(folder: Path) -> Listing:
    """What is directly in a folder. Raises UserError where it cannot be read."""
    found = Listing([], [], [])
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found.folders.append(entry.name)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                found.images.append(entry.name)
            else:
                found.others.append(entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return found


def split(
    name: str, root: Path, paths: Sequence[str], y: Sequence[int] | None, prepare: Prepare
) -> Split:
    """The images at `paths` (below `root`), in this order, with their classes `y` if known.

    They are cached under `name`, which says what `prepare` does, and a hash of place, paths, sizes,
    times and classes: contents are not read again to see that nothing changed.
    """
    if not paths:
        raise UserError(f"{root} has too few images: none is left for {name}")
    identity = hashlib.blake2b(f"v1 {root.resolve()}\n{y}\n".encode(), digest_size=8)
    for path in paths:
        try:
            stat = os.stat(root / path)
        except OSError as error:
            raise UserError(f"cannot read {root / path}: {error.strerror}") from error
        identity.update(os.fsencode(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))

    def build(sink: Sink) -> tuple[np.ndarray | None, tuple[str, ...]]:
        with ThreadPoolExecutor() as pool:  # PIL decodes and resizes without the GIL
            for start in range(0, len(paths), TOGETHER):
                some = (root / path for path in paths[start : start + TOGETHER])
                sink(np.stack(list(pool.map(lambda path: decode(path, prepare), some))))
        return None if y is None else np.array(y), ()

    return cached(f"{name}-{identity.hexdigest()}", build)


def decode(path: Path, prepare: Prepare) -> np.ndarray:
    """One image file, turned as its camera says, on white where transparent: uint8 (H, W, 3)."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                raise ValueError("its pixels have more than 8 bits")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(prepare(image.convert("RGB")))
    except Exception as error:  # PIL raises all sorts on a damaged file
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "its format is unknown" if unknown else getattr(error, "strerror", None) or error
        line = " ".join(f"cannot read the image {path}: {reason}; mend or remove it".split("\n"))
        raise UserError(line) from error


def square(size: int) -> Prepare:
    """The largest square in the middle, resized to `size` (Lanczos, antialiased)."""
    return lambda image: ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def face(image: Image.Image) -> Image.Image:
    """CelebA's 178×218 resized to 64×78 (Lanczos, antialiased), rows 7 to 71 of it."""
    if image.size != (178, 218):
        raise ValueError(f"it is {image.width}×{image.height}, where aligned faces are 178×218")
    return image.resize((64, 78), Image.Resampling.LANCZOS).crop((0, 7, 64, 71))


def exactly(size: int) -> Prepare:
    """Images that have this size already, as they are."""

    def prepare(image: Image.Image) -> Image.Image:
        if image.size != (size, size):
            raise ValueError(f"it is {image.width}×{image.height}, not {size}×{size}")
        return image

    return prepare
