"""One image file, decoded in bounded memory: upright, without transparency."""

from __future__ import annotations

import ctypes
import functools
import io
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

# Formats that Pillow identifies but does not decode, or (EPS) leaves to another program.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Most pixels of one image file, and of all that are decoded at once: 4 to 16 bytes each. Above
# this, Pillow warns of a decompression bomb.
MAX_PIXELS = 89_478_485
LARGE = 1_000_000  # pixels

Prepare = Callable[[Image.Image], Image.Image]  # an RGB image → the one to train on


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes on this machine, by its names."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_DECODED)


@functools.cache
def suffixes() -> frozenset[str]:
    """How the names of files in these formats end, in lower case."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in formats())


def try_to_decode(path: Path, prepare: Prepare) -> np.ndarray | str:
    """As image_files.decode, or a text that says why it cannot be decoded."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
            return "it is no file"
        if not found.st_size:
            return "it is empty"
        try:
            return _decode(path, prepare)
        except Exception:
            stripped = _strip_png(path)
            if stripped is None:
                raise
            return _decode(stripped, prepare)
    except Image.UnidentifiedImageError:
        return "its format is unknown"
    except Image.DecompressionBombError:
        return _too_large()
    except Exception as error:  # PIL raises many types on a damaged file
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decode(source: Path | io.BytesIO, prepare: Prepare) -> np.ndarray:
    file = Image.open(source, formats=formats())
    pixels = file.width * file.height
    if pixels > MAX_PIXELS:
        file.close()
        raise ValueError(_too_large())
    with _in_memory.taking(pixels):
        try:
            return _to_array(file, prepare)
        finally:
            file.close()  # frees the pixels, too, which `with file` does not
            if pixels > LARGE:
                _return_freed_memory()


def _to_array(file: Image.Image, prepare: Prepare) -> np.ndarray:
    image = _turn(file)
    if image.mode.startswith(("I", "F")):
        raise ValueError("its pixels have more than 8 bits, convert them to 8")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(prepare(image if image.mode == "RGB" else image.convert("RGB")))


def _too_large() -> str:
    return f"it has more than {MAX_PIXELS / 1e6:.0f} megapixels, scale it down"


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn(file: Image.Image) -> Image.Image:
    """Turns the picture upright by its EXIF orientation.

    PIL's exif_transpose rewrites the other EXIF data, and fails if they are broken.
    """
    file.load()  # a TIFF file is turned here
    try:
        turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # PIL raises many types on broken EXIF data
        turn = None
    return file if turn is None else file.transpose(turn)


def _strip_png(path: Path) -> io.BytesIO | None:
    """A PNG file without its text chunks and the like, whose damage makes PIL reject the picture.

    None if it is no PNG file.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        if head != b"\x89PNG\r\n\x1a\n":
            return None
        raw = head + file.read()
    kept, start = io.BytesIO(), 8
    kept.write(head)
    while start + 12 <= len(raw):
        size, kind = struct.unpack_from(">I4s", raw, start)
        end = start + 12 + size
        intact = raw[end - 4 : end] == struct.pack(">I", zlib.crc32(raw[start + 4 : end - 4]))
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and intact):
            kept.write(raw[start:end])
        start = end
    kept.seek(0)
    return kept


def _return_freed_memory() -> None:
    """Makes glibc return freed memory, of which it keeps some images' worth per thread."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class _Budget:
    """An amount that threads share: a thread that asks for more than is left waits."""

    def __init__(self, amount: int) -> None:
        self.left, self.changed = amount, threading.Condition()

    @contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.left >= amount)
            self.left -= amount
        try:
            yield
        finally:
            with self.changed:
                self.left += amount
                self.changed.notify_all()


_in_memory = _Budget(MAX_PIXELS)  # pixels
