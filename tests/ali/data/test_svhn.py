"""ali.data.svhn: MATLAB files as scipy reads them; damaged or wrong ones give one clear line."""

import hashlib
import os
import struct
import subprocess
import sys
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import pytest

from ali import data
from ali.config import Config
from ali.data import files, svhn
from ali.errors import UserError
from tests.ali.data.conftest import arrays, reference, svhn_config, write_mat
from tests.paths import REAL_DATA


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("block", [4096, 64])
def test_mat_round_trip(tmp_path, monkeypatch, compress, block):
    monkeypatch.setattr(svhn, "READ_BLOCK", block)
    path = write_mat(tmp_path / "files", compress=compress)
    monkeypatch.setattr(svhn, "_read_with_scipy", None)  # a call would fail
    dataset = data.load(svhn_config(path.parent))
    x, y = reference(path)
    assert (dataset.train.x == x[:400]).all() and (dataset.train.y == y[:400]).all()
    assert (dataset.valid.x == x[400:]).all() and (dataset.valid.y == y[400:]).all()
    assert dataset.train.x.flags.c_contiguous and dataset.train.y.dtype == np.int64
    assert any("train_32x32.mat (500 images) is not the official" in n for n in dataset.notes)
    assert any("no extra_32x32.mat" in n for n in dataset.notes)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8])
def test_labels_of_any_number_type(tmp_path, dtype):
    path = write_mat(tmp_path / "files", y=arrays(500)[1].astype(dtype).T)
    labelled = data.load(svhn_config(path.parent)).labelled
    assert (labelled.y == reference(path)[1][:400]).all()


def test_other_layouts_go_through_scipy(tmp_path, monkeypatch):
    path = write_mat(tmp_path / "files")
    x, y = reference(path)
    monkeypatch.setattr(
        svhn, "_stream_level_5", lambda *_: (_ for _ in ()).throw(svhn._OtherLayoutError)
    )
    dataset = data.load(svhn_config(path.parent))
    assert (dataset.train.x == x[:400]).all() and (dataset.train.y == y[:400]).all()


def test_extra_and_official_checksum(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    paths = {
        split: write_mat(folder, split, n, seed=n) for split, n in (("train", 500), ("extra", 700))
    }
    official = {
        split: ("", hashlib.md5(path.read_bytes()).hexdigest()) for split, path in paths.items()
    }
    monkeypatch.setattr(svhn, "_official", official.get)
    dataset = data.load(svhn_config(folder))
    assert (dataset.train.x == reference(paths["extra"])[0]).all()
    assert len(dataset.labelled) == 400 and dataset.notes == ()


def test_changed_file_is_read_again_and_changes_the_fingerprint(tmp_path):
    path = write_mat(tmp_path / "files")
    first = data.load(svhn_config(path.parent))
    assert data.load(svhn_config(path.parent)).fingerprint == first.fingerprint
    write_mat(tmp_path / "files", seed=1)
    os.utime(path, ns=(1, 1))
    second = data.load(svhn_config(path.parent))
    assert second.fingerprint != first.fingerprint
    assert (second.train.x == reference(path)[0][:400]).all()
    # The same contents elsewhere are the same data.
    assert (
        data.load(svhn_config(write_mat(tmp_path / "others", seed=1).parent)).fingerprint
        == second.fingerprint
    )


PEAK_OF_A_LOAD = """
import sys, pathlib, ali.data as data, torchvision.datasets
from ali.config import Config
def peak():  # MiB; VmHWM, for ru_maxrss starts at the parent's
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
before = peak()
d = data.load(Config(data="svhn", data_dir=pathlib.Path(sys.argv[1]), labels=100))
print(peak() - before, len(d.labelled) + len(d.valid))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_decoding_holds_less_than_one_copy(tmp_path):
    n = 40_000  # 117 MiB
    x = np.zeros((32, 32, 3, n), np.uint8, order="F")
    path = write_mat(tmp_path / "files", n=10, X=x, y=np.arange(n)[:, None] % 10 + 1)
    run = [sys.executable, "-c", PEAK_OF_A_LOAD, str(path.parent)]
    out = subprocess.run(
        run, capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert int(out[1]) == n
    assert float(out[0]) < 80


def test_zlib_streams_of_any_split(tmp_path):
    """The inflating reader returns exactly what was asked for, whatever the sizes."""
    payload = np.random.default_rng(0).integers(0, 4, 3_000_000, dtype=np.uint8).tobytes()
    packed = zlib.compress(payload)
    (tmp_path / "z").write_bytes(packed + b"next element")
    with open(tmp_path / "z", "rb") as file:
        source = svhn._Inflated(file, len(packed))
        sizes = [0, 1, 7, 1_000_000, 999_992]
        assert b"".join(source.read(size) for size in sizes) == payload[: sum(sizes)]
        source.finish()
        with pytest.raises(EOFError):
            source.read(1)


def damage(path, how):
    raw = bytearray(path.read_bytes())
    if how == "flip":  # inside the compressed pixels
        raw[len(raw) // 2] ^= 0x55
    elif how == "checksum":  # zlib's, the last bytes of the first element
        size = struct.unpack_from("<I", raw, 132)[0]
        raw[136 + size - 1] ^= 0xFF
    path.write_bytes(raw if isinstance(how, str) else raw[:how])


CUTS = [0, 50, 128, 130, 200, 1000, 100_000, -1, -20, -60]  # bytes kept, or dropped


@pytest.mark.parametrize(
    "how, compress",
    [*((cut, c) for cut in CUTS for c in (True, False)), ("flip", True), ("checksum", True)],
)
def test_damaged_file_is_one_line_and_leaves_nothing(tmp_path, cache, how, compress):
    path = write_mat(tmp_path / "files", compress=compress)
    damage(path, how)
    with pytest.raises(UserError) as caught:
        data.load(svhn_config(path.parent))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


X, Y = arrays(500)


BAD_CONTENTS = {
    "no X": ({"X": None}, "lacks X"),
    "no y": ({"y": None}, "lacks y"),
    "grey": ({"X": X[:, :, 0]}, r"must be uint8 \(32, 32, 3, N\)"),
    "images first": ({"X": X.transpose(3, 0, 1, 2)}, r"must be uint8 \(32, 32, 3, N\)"),
    "other size": ({"X": X[:28, :28]}, r"must be uint8 \(32, 32, 3, N\)"),
    "floats": ({"X": X / 255}, r"not float64"),
    "text": ({"X": "text"}, r"must be uint8"),
    "label 11": ({"y": np.where(Y == 3, 11, Y)}, "labels must be 1 to 10"),
    "label 0": ({"y": Y % 10}, "labels must be 1 to 10"),
    "label 1.5": ({"y": np.where(Y == 3, 1.5, Y)}, "labels must be 1 to 10"),
    "label NaN": ({"y": np.where(Y == 3, np.nan, Y)}, "labels must be 1 to 10"),
    "labels are text": ({"y": "text"}, "labels|damaged"),
    "fewer labels": ({"y": Y[:-1]}, "500 images but 499 labels"),
    "no images": ({"X": X[..., :0], "y": Y[:0]}, "must be uint8"),
}


@pytest.mark.parametrize("contents, message", BAD_CONTENTS.values(), ids=BAD_CONTENTS)
@pytest.mark.parametrize("compress", [True, False])
def test_bad_contents(tmp_path, cache, contents, message, compress):
    path = write_mat(tmp_path / "files", compress=compress, **contents)
    with pytest.raises(UserError, match=message) as caught:
        data.load(svhn_config(path.parent))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_unreachable_host_names_the_ways_on(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError) as caught:
        data.load(Config(data="svhn"))
    for part in ("--data-dir", "train_32x32.mat", "network", "--data house-numbers"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_download_checks_the_checksum_and_leaves_no_partial_file(tmp_path, monkeypatch, host):
    folder, address = host
    paths = {split: write_mat(folder, split, 500, seed=5) for split in ("train", "extra")}
    urls = {split: f"{address}/{path.name}" for split, path in paths.items()}
    md5 = {split: hashlib.md5(path.read_bytes()).hexdigest() for split, path in paths.items()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(svhn, "_official", lambda split: (urls[split], "0" * 32))
    with pytest.raises(UserError, match=r"cannot download .*corrupted"):
        data.load(svhn_config(None))
    assert list((tmp_path / "data" / "svhn").iterdir()) == []
    monkeypatch.setattr(svhn, "_official", lambda split: (urls[split], md5[split]))
    dataset = data.load(svhn_config(None))
    assert dataset.notes == () and len(dataset.train) == 500
    monkeypatch.setattr(files, "download", None)  # the second start downloads nothing
    assert data.load(svhn_config(None)).fingerprint == dataset.fingerprint


REAL = REAL_DATA / "svhn"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no SVHN crops at {REAL}")
def test_real_crops():
    config = Config(data="svhn", data_dir=REAL)
    dataset, test = data.load(config), data.load_test(config)
    x, y = reference(REAL / "train_32x32.mat")
    assert len(x) == 7028 and len(dataset.valid) == 1406 and len(dataset.labelled) == 5622
    assert (np.concatenate([dataset.labelled.x, dataset.valid.x]) == x).all()
    assert (np.concatenate([dataset.labelled.y, dataset.valid.y]) == y).all()
    assert dataset.train.x.shape == (5622, 32, 32, 3) and len(dataset.notes) == 2
    test_x, test_y = reference(REAL / "test_32x32.mat")
    assert len(test) == 971 and (test.x == test_x).all() and (test.y == test_y).all()
