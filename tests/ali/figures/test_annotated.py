"""ali.figures.annotated: pictures enlarged without blur, columns marked, titles above."""

import numpy as np

from ali.figures.annotated import RESULT, SOURCE, TILE, marked, titled
from ali.metrics import INTERPOLATIONS, RECONSTRUCTIONS, SAMPLES
from tests.ali.figures.pictures import noise


def grid(columns, size):
    return noise(1, 2 + columns * (size + 2))[0]


def colours(picture):
    return {tuple(colour) for colour in picture.reshape(-1, 3)}


def rgb(text):
    return tuple(bytes.fromhex(text[1:]))


def test_every_pixel_is_repeated_and_none_is_mixed():
    x = grid(3, 32)
    picture = marked(SAMPLES, x, 32)
    assert picture.shape == (2 * len(x), 2 * len(x), 3)
    for i in (0, 1):
        np.testing.assert_array_equal(picture[i::2, i::2], x)
    np.testing.assert_array_equal(marked(SAMPLES, grid(3, TILE), TILE), grid(3, TILE))


def test_columns_are_marked_as_source_or_result():
    x, step = np.full((36, 2 + 34 * 4, 3), 9, np.uint8), 68
    for key, sources in ((RECONSTRUCTIONS, [0, 2]), (INTERPOLATIONS, [0, 3])):
        picture = marked(key, x, 32)
        head = picture[: len(picture) - 2 * len(x)]
        np.testing.assert_array_equal(picture[len(head) :], 9)
        for column in range(4):
            found = colours(head[:, column * step + 4 : (column + 1) * step])
            is_source = column in sources
            assert (rgb(SOURCE) in found, rgb(RESULT) in found) == (is_source, not is_source)


def test_a_title_is_above_and_changes_no_pixel():
    x = noise(1, 40)[0]
    short, long = titled(x, "a"), titled(x, "laptop · trial 00003 · epoch 6 · val_error 0.4496")
    for picture in (short, long):
        top = len(picture) - 40
        np.testing.assert_array_equal(picture[top:, :40], x)
        assert colours(picture[:top]) != {(255, 255, 255)}
    assert short.shape[1] == 40 < long.shape[1]
