"""Image files: listed, decoded, resized, and cached as a split; `read_images` for `encode`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ali.data.cache import Sink, cached
from ali.data.splits import Split
from ali.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
DECODE_BLOCK = 1024  # images decoded before they are written: 12 MiB of 64×64

Prepare = Callable[[Image.Image], Image.Image]  # an RGB image → the one to train on


@dataclass(frozen=True)
class Listing:
    """Names of what a folder contains, sorted, without hidden files."""

    images: list[str]
    folders: list[str]
    others: list[str]


def list_folder(folder: Path) -> Listing:
    """What is directly in a folder. Raises UserError if it cannot be read."""
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


def cached_split(
    name: str, root: Path, paths: Sequence[str], y: Sequence[int] | None, prepare: Prepare
) -> Split:
    """The images at `paths` (relative to `root`), in this order, with their classes `y` if known.

    The cache key is `name`, which must tell what `prepare` does, and a hash of the paths, sizes,
    modification times and classes: the contents are not read again to see that nothing changed.
    Raises UserError if there is no image or one cannot be read.
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
        with ThreadPoolExecutor() as pool:  # PIL releases the GIL while it decodes and resizes
            for start in range(0, len(paths), DECODE_BLOCK):
                block = (root / path for path in paths[start : start + DECODE_BLOCK])
                sink(np.stack(list(pool.map(lambda path: decode(path, prepare), block))))
        return None if y is None else np.array(y), ()

    return cached(f"{name}-{identity.hexdigest()}", build)


def decode(path: Path, prepare: Prepare) -> np.ndarray:
    """One image file as uint8 (H, W, 3): EXIF orientation applied, transparency on white.

    Raises UserError if it is damaged, of unknown format, has more than 8 bits a channel, or if
    `prepare` raises ValueError.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                raise ValueError("its pixels have more than 8 bits")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(prepare(image.convert("RGB")))
    except Exception as error:  # PIL raises many types on a damaged file
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "its format is unknown" if unknown else getattr(error, "strerror", None) or error
        line = " ".join(f"cannot read the image {path}: {reason}; repair or remove it".split("\n"))
        raise UserError(line) from error


def crop_square(size: int) -> Prepare:
    """Crops the largest centred square and resizes it to `size` (Lanczos, antialiased)."""
    return lambda image: ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def require_size(size: int) -> Prepare:
    """Leaves images of size×size as they are; raises ValueError for any other."""

    def prepare(image: Image.Image) -> Image.Image:
        if image.size != (size, size):
            raise ValueError(f"it is {image.width}×{image.height}, not {size}×{size}")
        return image

    return prepare


# The input of `encode`


def read_images(path: Path, size: int) -> tuple[np.ndarray, list[str] | None]:
    """Images uint8 (N, size, size, 3) of an .npz, a .mat or a folder, and a folder's file names.

    Raises UserError if there are none, or if they are damaged or of another size or type.
    """
    if not path.exists():
        raise UserError(f"--input {path} does not exist")
    if path.is_dir():
        return _read_folder(path, size)
    try:
        if path.suffix == ".npz":
            x = _read_npz(path)
        elif path.suffix == ".mat":
            import scipy.io

            x = scipy.io.loadmat(path, variable_names=["X"])["X"].transpose(3, 2, 0, 1)
        else:
            raise UserError(f"--input {path} must be an .npz, a .mat or a folder of images")
    except UserError:
        raise
    except Exception as error:  # the readers raise many types on a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read images from {path} ({reason}): is it damaged?") from error
    if x.dtype != np.uint8 or x.ndim != 4 or len(x) == 0:
        raise UserError(f"{path} holds {x.dtype} {x.shape}: images must be uint8, one at least")
    if x.shape[1:] == (3, size, size):
        x = x.transpose(0, 2, 3, 1)
    if x.shape[1:] != (size, size, 3):
        wanted = f"{size}×{size} RGB"
        raise UserError(f"images in {path} are {x.shape[1:]}: they must be {wanted}, resize them")
    return np.ascontiguousarray(x), None


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        names = [n for n in ("x", "images", "X") if n in arrays.files] or arrays.files
        if len(names) != 1:
            shown = ", ".join(arrays.files)
            raise UserError(f"{path} holds {shown}: name the images x, or store only the images")
        return arrays[names[0]]


def _read_folder(path: Path, size: int) -> tuple[np.ndarray, list[str]]:
    names = list_folder(path).images
    if not names:
        raise UserError(f"--input {path} has no image files ({', '.join(sorted(SUFFIXES))})")
    prepare = require_size(size)
    return np.stack([decode(path / name, prepare) for name in names]), names
