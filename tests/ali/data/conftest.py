"""What the tests of the data sets share: a cache of their own, and files in each layout."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ali import data
from ali.config import Config
from ali.data import house_numbers
from ali.errors import UserError
from tests.paths import REAL_DATA


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setenv("ALI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few(monkeypatch):
    """House numbers in hundreds instead of thousands."""
    monkeypatch.setattr(house_numbers, "SMALL_SIZES", {"train": 600, "test": 300})
    return Config(labels=100, batch_size=50)


def config(name, folder, **changes):
    """Settings for a small data set in `folder`."""
    return Config(data=name, data_dir=folder, labels=10, batch_size=4).replace(**changes)


def check_refused(message, settings, load=data.load):
    """Checks that loading says `message`, in one line."""
    with pytest.raises(UserError, match=message) as caught:
        load(settings)
    assert "\n" not in str(caught.value)


def nothing_cached(cache):
    return not cache.exists() or list(cache.iterdir()) == []


def write_image(path, colour=(0, 0, 0), size=(64, 64), mode="RGB"):
    """An image file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def red_values(images):
    """The red of each image's middle, which `write_image` chose."""
    return images.x[:, 16, 16, 0].astype(int)


def write_folder(root, layout, n=20):
    """Images of one colour each, `n` in each folder of `layout`; returns red → folder."""
    reds = {}
    for folder in layout:
        for _ in range(n):
            red = 2 * len(reds)
            write_image(root / folder / f"{red}.png", (red, 0, 0), (50, 40))
            reds[red] = folder
    return reds


def real(name):
    """The folder with a sample of the real data; skips the test if there is none."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no sample of {name} at {folder}")
    return folder


def arrays(n, seed=0):
    """X and y as SVHN's files hold them."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    return x, rng.permutation(np.arange(n) % 10 + 1).astype(np.uint8)[:, None]


def write_mat(folder, split="train", n=500, compress=True, seed=0, **changed):
    """A file of SVHN's with `arrays`, some of its variables `changed` or, if None, left out."""
    x, y = arrays(n, seed)
    contents = {"X": x, "y": y} | changed
    contents = {key: value for key, value in contents.items() if value is not None}
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}_32x32.mat"
    scipy.io.savemat(path, contents, do_compression=compress)
    return path


def svhn_config(folder, **changes):
    return Config(data="svhn", data_dir=folder, labels=100, batch_size=50).replace(**changes)


def reference(path):
    """Images and labels as scipy reads them, all in memory."""
    contents = scipy.io.loadmat(path)
    return contents["X"].transpose(3, 0, 1, 2), contents["y"].ravel().astype(np.int64) % 10
