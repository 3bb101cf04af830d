"""Image files: listed, cropped, resized, and cached as a split; `read_images` for `encode`."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ali.data import files
from ali.data.cache import Sink, cached
from ali.data.decoding import Prepare, suffixes, try_to_decode
from ali.data.splits import Split
from ali.errors import UserError

COMMON = ".bmp, .gif, .jpg, .png, .tif, .webp and others that Pillow reads"  # for messages
DECODE_BLOCK = 1024  # images decoded before they are written: 12 MiB of 64×64


@dataclass(frozen=True)
class Listing:
    """Names of what a folder contains, sorted, without hidden files and litter."""

    images: list[str]
    folders: list[str]
    others: list[str]


def list_folder(folder: Path) -> Listing:
    """What is directly in a folder. Raises UserError if it cannot be read."""
    found = Listing([], [], [])
    for entry in files.entries(folder):
        if files.is_folder(entry):
            found.folders.append(entry.name)
        elif Path(entry.name).suffix.lower() in suffixes():
            found.images.append(entry.name)
        else:
            found.others.append(entry.name)
    return found


class UnreadableImagesError(UserError):
    """Images under `root` that cannot be read, each with the reason, of `total` that were tried."""

    def __init__(self, root: Path, bad: Sequence[tuple[str, str]], total: int) -> None:
        self.bad, self.total = sorted(bad), total
        if len(bad) == 1:
            ((path, reason),) = bad
            said = f"the image {root / path}: {reason}; repair or remove it"
        else:
            shown = files.listed([f"{path} ({reason})" for path, reason in self.bad])
            said = f"{len(bad):,} of {total:,} images in {root}: {shown}; repair or remove them"
        super().__init__(f"cannot read {said}")


def cached_splits(
    name: str,
    root: Path,
    parts: Mapping[str, tuple[Sequence[str], Sequence[int] | None]],
    prepare: Prepare,
) -> dict[str, Split]:
    """A split of each part: paths and classes as for `cached_split`; `name` is in all cache keys.

    Raises UserError for the images of all parts that cannot be read.
    """
    splits: dict[str, Split] = {}
    bad: list[UnreadableImagesError] = []
    for part, (paths, y) in parts.items():
        try:
            splits[part] = cached_split(f"{name}-{part}", root, paths, y, prepare)
        except UnreadableImagesError as error:
            bad.append(error)
    if bad:
        all_bad = [one for error in bad for one in error.bad]
        raise UnreadableImagesError(root, all_bad, sum(error.total for error in bad))
    return splits


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
    identity = hashlib.blake2b(os.fsencode(f"v1 {root.resolve()}\n{y}\n"), digest_size=8)
    for path in paths:
        try:
            found = os.stat(root / path)
        except OSError:  # unreadable: `build` raises, and nothing is cached
            continue
        identity.update(os.fsencode(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0"))

    def build(sink: Sink) -> tuple[np.ndarray | None, tuple[str, ...]]:
        for block in decode_all(root, paths, prepare):
            sink(block)
        return None if y is None else np.array(y), ()

    return cached(f"{name}-{identity.hexdigest()}", build)


def decode_all(root: Path, paths: Sequence[str], prepare: Prepare) -> Iterator[np.ndarray]:
    """The images at `paths` (relative to `root`), uint8 (B, H, W, 3) block by block.

    Raises UserError, after all were tried, if any cannot be read: how many, the first ten and why.
    """
    bad: list[tuple[str, str]] = []
    # PIL releases the GIL while it decodes and resizes. It warns of metadata, file by file.
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        for start in range(0, len(paths), DECODE_BLOCK):
            names = paths[start : start + DECODE_BLOCK]
            found = list(pool.map(lambda name: try_to_decode(root / name, prepare), names))
            images = [image for image in found if not isinstance(image, str)]
            reasons = zip(names, found, strict=True)
            bad += [(name, reason) for name, reason in reasons if isinstance(reason, str)]
            if not bad:
                yield np.stack(images)
    if bad:
        raise UnreadableImagesError(root, bad, len(paths))


def decode(path: Path, prepare: Prepare) -> np.ndarray:
    """One image file as uint8 (H, W, 3): EXIF orientation applied, transparency on white.

    An animation gives its first picture. Metadata may be broken. Raises UserError if the picture is
    damaged, of unknown format, has more than 8 bits a channel or more than MAX_PIXELS, or if
    `prepare` raises ValueError.
    """
    found = try_to_decode(path, prepare)
    if isinstance(found, str):
        raise UnreadableImagesError(path.parent, [(path.name, found)], 1)
    return found


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

MAX_BYTES = 4 << 30  # of an .npz or .mat, decoded


def read_images(path: Path, size: int) -> tuple[np.ndarray, list[str] | None]:
    """Images uint8 (N, size, size, 3) of an .npz, a .mat or a folder, and a folder's file names.

    Raises UserError if there are none, if they are damaged or of another size or type, or, before
    they are decoded, if they take more than MAX_BYTES.
    """
    if not path.exists():
        raise UserError(f"--input {path} does not exist")
    if path.is_dir():
        return _read_folder(path, size)
    try:
        if path.suffix == ".npz":
            x = _read_npz(path, size)
        elif path.suffix == ".mat":
            x = _read_mat(path, size)
        else:
            raise UserError(f"--input {path} must be an .npz, a .mat or a folder of images")
    except UserError:
        raise
    except Exception as error:  # the readers raise many types on a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read images from {path} ({reason}): is it damaged?") from error
    return np.ascontiguousarray(x if x.shape[3] == 3 else x.transpose(0, 2, 3, 1)), None


def _check_array(path: Path, shape: tuple[int, ...], dtype: str, size: int) -> None:
    """Raises UserError if an array with this header does not hold images of `size`."""
    if dtype != "uint8" or len(shape) != 4 or shape[0] == 0:
        wanted = f"uint8 (N, {size}, {size}, 3), or in a .mat ({size}, {size}, 3, N), N from 1"
        raise UserError(f"{path} holds {dtype} {shape}: images must be {wanted}")
    if shape[1:] not in ((3, size, size), (size, size, 3)):
        wanted = f"{size}×{size} RGB"
        raise UserError(f"images in {path} are {shape[1:]}: they must be {wanted}, resize them")
    if (count := math.prod(shape)) > MAX_BYTES:
        most = f"{MAX_BYTES / 1e9:.1f} GB at most, split them"
        raise UserError(f"{path} holds {shape[0]:,} images, {count / 1e9:.1f} GB: {most}")


def _read_npz(path: Path, size: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        names = [n for n in ("x", "images", "X") if n in arrays.files] or arrays.files
        if len(names) != 1:
            shown = files.listed(arrays.files)
            raise UserError(f"{path} holds {shown}: name the images x, or store only the images")
        npy = np.lib.format
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        with arrays.zip.open(f"{names[0]}.npy") as member:
            shape, _, dtype = readers[npy.read_magic(member)](member)
        _check_array(path, shape, str(dtype), size)
        return arrays[names[0]]


def _read_mat(path: Path, size: int) -> np.ndarray:
    import scipy.io

    found = {name: (shape, dtype) for name, shape, dtype in files.matlab_arrays(path)}
    if "X" not in found:
        raise UserError(
            f"{path} holds {files.listed(sorted(found))}: name the images X, as SVHN does"
        )
    shape, dtype = found["X"]
    _check_array(path, shape[3:] + shape[:3], dtype, size)
    return scipy.io.loadmat(path, variable_names=["X"])["X"].transpose(3, 0, 1, 2)


def _read_folder(path: Path, size: int) -> tuple[np.ndarray, list[str]]:
    names = list_folder(path).images
    if not names:
        raise UserError(f"--input {path} has no image files ({COMMON}){files.unpack_hint(path)}")
    return np.concatenate(list(decode_all(path, names, require_size(size)))), names
