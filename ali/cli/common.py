"""Helpers that several commands share: checks of options, threads, PNG files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ali.config import MAX_SEED
from ali.errors import UserError
from ali.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

PROG = "python -m ali"
MAX_THREADS = 1024
MAX_TILES = 10_000  # of a picture


def check_at_least(least: int, **options: int | None) -> None:
    """Raises UserError for the first option below `least`; None is skipped."""
    for name, value in options.items():
        if value is not None and value < least:
            domain = "0 or more" if least == 0 else f"at least {least}"
            raise UserError(f"--{name.replace('_', '-')} must be {domain}, not {value}")


def check_choices(option: str, given: Collection[str], choices: Collection[str]) -> None:
    """Raises UserError for the first of `given` that is not one of the choices."""
    if unknown := [name for name in given if name not in choices]:
        raise UserError(f"--{option} {unknown[0]}: choose from {', '.join(choices)}")


def check_between(least: int, most: int, **options: int | None) -> None:
    """Raises UserError for the first option below `least` or above `most`; None is skipped."""
    check_at_least(least, **options)
    for name, value in options.items():
        if value is not None and value > most:
            raise UserError(f"--{name.replace('_', '-')} must be at most {most}, not {value}")


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that torch does not take."""
    check_between(0, MAX_SEED, seed=seed)


def check_output(path: Path | None, suffix: str, option: str = "--output") -> None:
    """Raises UserError if the file to write has another suffix, or its folder does not exist."""
    if path is not None and path.suffix != suffix:
        raise UserError(f"{option} must end in {suffix}, not {path.name!r}")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}: create it")


def set_threads(threads: int | None) -> None:
    """Sets the CPU threads of torch; None leaves them as they are."""
    check_between(1, MAX_THREADS, threads=threads)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 (H, W, 3)."""
    from PIL import Image

    with atomic_write(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
