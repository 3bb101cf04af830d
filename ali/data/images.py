"""Images that `encode` is given: an .npz, SVHN's .mat, or a folder of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ali.data import pictures
from ali.data.pictures import SUFFIXES
from ali.errors import UserError


def read_images(path: Path, size: int) -> tuple[np.ndarray, list[str] | None]:
    """Images uint8 (N, size, size, 3) of an .npz, a .mat or a folder, and a folder's file names.

    Raises UserError where there are none, they are damaged, or of another size or type.
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
    except Exception as error:  # the readers raise all sorts on a damaged file
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
            raise UserError(f"{path} holds {shown}: name the images x, or store them alone")
        return arrays[names[0]]


def _read_folder(path: Path, size: int) -> tuple[np.ndarray, list[str]]:
    names = pictures.listing(path).images
    if not names:
        raise UserError(f"--input {path} has no image files ({', '.join(sorted(SUFFIXES))})")
    prepare = pictures.exactly(size)
    return np.stack([pictures.decode(path / name, prepare) for name in names]), names
