"""ali.data.image_files: formats, decoding, orientation, transparency, cropping, bad files."""

import os
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ali import data
from ali.data import decoding, image_files
from ali.errors import UserError
from tests.ali.data.conftest import (
    check_refused,
    config,
    nothing_cached,
    red_values,
    write_folder,
    write_image,
)

WHOLE = image_files.require_size(64)


def test_middle_square(tmp_path):
    """Of 100×60, columns 20 to 80 and all rows; of 60×100 the other way round."""
    rows, columns = np.mgrid[:60, :100].astype(np.uint8)
    picture = np.stack([rows, columns, rows * 0], -1)
    at = (np.arange(32) + 0.5) * 60 / 32 - 0.5
    for turned in (False, True):
        shown = picture.transpose(1, 0, 2) if turned else picture
        Image.fromarray(shown).save(tmp_path / "picture.png")
        x = image_files.decode(tmp_path / "picture.png", image_files.crop_square(32)).astype(float)
        x = x.transpose(1, 0, 2) if turned else x
        assert abs(x[2:-2, 16, 0] - at[2:-2]).max() <= 1
        assert abs(x[16, 2:-2, 1] - at[2:-2] - 20).max() <= 1


def test_many_images_in_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "DECODE_BLOCK", 7)
    reds = write_folder(tmp_path / "own", ["a", "b"], 40)
    dataset = data.load(config("folder", tmp_path / "own"))
    assert [reds[c] for c in red_values(dataset.train)] == ["ab"[y] for y in dataset.train.y]


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),  # transparent
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_colours_of_every_kind(tmp_path, mode, colour, expected):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    write_image(path, colour, mode=mode)
    x = image_files.decode(path, image_files.require_size(64))
    assert x.dtype == np.uint8 and (x == np.array(expected)).all()


def test_cameras_orientation(tmp_path):
    """Orientation 6: what is on the left in the file is on top of the picture."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "picture.png", exif=exif)
    x = image_files.decode(tmp_path / "picture.png", image_files.require_size(64))
    assert (x[:32] == 255).all() and (x[32:] == 0).all()


def test_all_that_pillow_decodes_is_read(tmp_path):
    """Whatever the case of its suffix; what Pillow only identifies is ignored, with a note."""
    Image.init()
    names = ["x.JFIF", "x.jpe", "x.pnm", "x.Tga", "x.ico", "x.pcx", "x.qoi", "x.WEBP", "x.dib"]
    names += ["x.avif", "x.jp2"]
    formats = Image.registered_extensions() | {".jfif": "JPEG"}
    names = [name for name in names if formats.get(name[1:].lower()) in Image.SAVE]
    write_folder(tmp_path / "own", ["a", "b"], 2)
    for name in names:
        path = tmp_path / "own" / "a" / name
        Image.new("RGB", (64, 64), (80, 0, 0)).save(path, formats[path.suffix.lower()])
    for name in ("features.h5", "page.eps", "clip.mpg", "photo.heic"):
        (tmp_path / "own" / "a" / name).write_bytes(b"no image")
    listing = image_files.list_folder(tmp_path / "own" / "a")
    assert listing.images == sorted([*names, "0.png", "2.png"]) and len(listing.others) == 4
    for name in names:
        x = image_files.decode(tmp_path / "own" / "a" / name, WHOLE)
        assert abs(x.astype(int) - (80, 0, 0)).max() <= 3, name
    note, *_ = data.load(config("folder", tmp_path / "own", batch_size=2, labels=2)).notes
    assert "4 entries of" in note and "not images" in note


def test_no_program_is_run_to_decode(tmp_path):
    """Pillow starts Ghostscript for EPS, which a name that ends in .png does not show."""
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", "EPS")
    check_unreadable(tmp_path / "x.png", "its format is unknown")


def check_unreadable(path, message):
    with pytest.raises(UserError, match=message) as caught:
        image_files.decode(path, WHOLE)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_first_picture_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (64, 64), (red, 0, 0)) for red in (80, 160)]
    for name in ("x.gif", "x.png", "x.webp", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], quality=100)
        x = image_files.decode(tmp_path / name, WHOLE)
        assert abs(x.astype(int) - (80, 0, 0)).max() <= 3, name


def chunk(kind, contents, intact=True):
    """A chunk of a PNG file, with a wrong checksum if it is not intact."""
    checksum = zlib.crc32(kind + contents) ^ (not intact)
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", checksum)


EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
BROKEN_CHUNKS = {
    "text with a wrong checksum": (chunk(b"tEXt", b"Comment\0hi", intact=False), True),
    "a text of three megabytes": (chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(3 << 20))), True),
    "half a resolution": (chunk(b"pHYs", b"\0\0"), True),
    "a profile that is none": (chunk(b"iCCP", b"p\0\0no profile"), True),
    "unknown, with a wrong checksum": (chunk(b"prVt", b"?", intact=False), True),
    "orientation that is none": (chunk(b"eXIf", b"no EXIF"), False),
    "orientation with a wrong checksum": (chunk(b"eXIf", EXIF, intact=False), False),
}


@pytest.mark.parametrize("broken", BROKEN_CHUNKS)
def test_broken_metadata_of_a_good_png(tmp_path, broken):
    """It is no worse for the picture, whose transparency and intact orientation still count."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :32] = (80, 0, 0, 255)
    path = tmp_path / "x.png"
    Image.fromarray(rgba).save(path)
    raw = path.read_bytes()
    contents, turned = BROKEN_CHUNKS[broken]
    path.write_bytes(raw[:33] + contents + (chunk(b"eXIf", EXIF) if turned else b"") + raw[33:])
    x = image_files.decode(path, WHOLE)
    x = x.transpose(1, 0, 2) if turned else x
    assert (x[:, :32] == (80, 0, 0)).all() and (x[:, 32:] == 255).all()
    path.write_bytes(path.read_bytes()[:-30])
    check_unreadable(path, "truncated")


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
@pytest.mark.parametrize(
    "exif", [b"no EXIF", EXIF[:12], EXIF[:8] + b"\xff" * 9, EXIF.replace(b"\x06", b"\x63")]
)
def test_broken_exif_of_a_good_picture(tmp_path, suffix, exif):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32] = 255
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(picture).save(path, exif=b"Exif\0\0" + exif, quality=100)
    x = image_files.decode(path, WHOLE).astype(int)
    assert abs(x[:, 4:28] - 255).max() <= 8 and x[:, 36:].max() <= 8


def write_bad_files(folder, n):
    """n files that are no images, each for another reason."""
    good = Image.effect_noise((64, 64), 50).convert("RGB")
    for i in range(n):
        path = folder / f"bad{i:02}.jpg"
        path.unlink(missing_ok=True)
        if i % 5 == 0:
            path.write_bytes(b"")
        elif i % 5 == 1:
            path.write_bytes(b"no image")
        elif i % 5 == 2:
            good.save(path)
            path.write_bytes(path.read_bytes()[:-400])
        elif i % 5 == 3:
            path.symlink_to("nowhere")
        else:
            os.mkfifo(path)


def test_all_bad_files_are_told_at_once(tmp_path, cache):
    write_folder(tmp_path / "own", ["train/a", "train/b", "val/a", "val/b", "test/a"])
    settings = config("folder", tmp_path / "own")
    for part, n in (("train/a", 3), ("val/b", 2)):
        write_bad_files(tmp_path / "own" / part, n)
    check_refused(
        r"cannot read 5 of 85 images in .*own: train/a/bad00.jpg \(it is empty\), .*bad01.jpg "
        r"\(its format is unknown\), .*bad02.jpg \(image file is truncated.*\), val/b/bad00.jpg "
        r"\(it is empty\), val/b/bad01.jpg .*; repair or remove them$",
        settings,
    )
    write_bad_files(tmp_path / "own" / "train" / "a", 12)
    with pytest.raises(UserError, match="cannot read 14 of 94 images") as caught:
        data.load(settings)
    told = str(caught.value)
    assert told.count(".jpg (") == 10 and told.endswith(", …; repair or remove them")
    assert "bad03.jpg (No such file" in told and "bad04.jpg (it is no file)" in told
    assert nothing_cached(cache)
    (tmp_path / "own" / "test" / "a" / "zero.png").write_bytes(b"")
    check_refused(
        "cannot read the image .*own/test/a/zero.png: it is empty; repair or remove it$",
        settings,
        data.load_test,
    )


def test_pictures_wait_while_others_fill_the_memory(tmp_path, monkeypatch):
    """At most MAX_PIXELS are decoded at the same time, however many cores there are."""
    monkeypatch.setattr(decoding, "_in_memory", decoding._Budget(2 * 64 * 64))
    for i in range(12):
        write_image(tmp_path / f"{i:02}.png", (20 * i, 0, 0))
    lock, now, most = threading.Lock(), [], []

    def prepare(image):
        with lock:
            now.append(image)
            most.append(len(now))
        time.sleep(0.01)
        with lock:
            now.pop()
        return image

    names = image_files.list_folder(tmp_path).images
    (x,) = image_files.decode_all(tmp_path, names, prepare)
    assert x[:, 0, 0, 0].tolist() == [20 * i for i in range(12)] and max(most) == 2


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        image_files.decode(tmp_path / "deep.png", image_files.require_size(64))
