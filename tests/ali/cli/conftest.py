"""Data and a run that the tests of several commands share."""

import numpy as np
import pytest
import scipy.io

from tests.ali.cli.commands import TINY, ali


@pytest.fixture(scope="session")
def svhn(tmp_path_factory):
    """A folder in SVHN's layout, 75 images: 60 to train on, 15 to validate."""
    folder = tmp_path_factory.mktemp("svhn")
    rng = np.random.default_rng(0)
    for name, n in (("train", 75), ("test", 20)):
        x = rng.integers(0, 256, (32, 32, 3, n), np.uint8)
        y = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / f"{name}_32x32.mat", {"X": x, "y": y})
    return folder


@pytest.fixture(scope="session")
def data(svhn):
    return ["--data", "svhn", "--data-dir", svhn]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data):
    """A run of two epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    out, err = ali("train", "--output-dir", folder, "--epochs", 2, *TINY, *data)
    assert err == ""
    return folder, out


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
