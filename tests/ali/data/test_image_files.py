"""ali.data.image_files: decoding, orientation, transparency, cropping."""

import numpy as np
import pytest
from PIL import Image

from ali import data
from ali.data import image_files
from ali.errors import UserError
from tests.ali.data.conftest import config, red_values, write_folder, write_image


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


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        image_files.decode(tmp_path / "deep.png", image_files.require_size(64))
