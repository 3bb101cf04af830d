"""Data sets: loaded as a reference has them, cached once; bad files are one clear line."""

import dataclasses
import hashlib
import os
import struct
import subprocess
import sys
import time
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from ali import data
from ali.config import Config
from ali.data import cache as cache_module
from ali.data import files, house_numbers, matlab, sources
from ali.errors import UserError
from tests.paths import REAL_DATA

REAL = REAL_DATA / "svhn"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setenv("ALI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few(monkeypatch):
    """House numbers in hundreds instead of thousands."""
    monkeypatch.setattr(sources, "HOUSE_NUMBERS_SMALL", {"train": 600, "test": 300})
    return Config(labels=100, batch_size=50)


def arrays(n, seed=0):
    """X and y as SVHN's files hold them."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    return x, rng.permutation(np.arange(n) % 10 + 1).astype(np.uint8)[:, None]


def write(folder, split="train", n=500, compress=True, seed=0, **changed):
    x, y = arrays(n, seed)
    contents = {"X": x, "y": y} | changed
    contents = {key: value for key, value in contents.items() if value is not None}
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}_32x32.mat"
    scipy.io.savemat(path, contents, do_compression=compress)
    return path


def svhn(folder, **changes):
    return Config(data="svhn", data_dir=folder, labels=100, batch_size=50).replace(**changes)


def reference(path):
    """Images and labels as scipy reads them, all in memory."""
    contents = scipy.io.loadmat(path)
    return contents["X"].transpose(3, 0, 1, 2), contents["y"].ravel().astype(np.int64) % 10


# house-numbers


def test_house_numbers_splits(few):
    dataset, test = data.load(few), data.load_test(few)
    assert [len(part) for part in (dataset.train, dataset.labelled, dataset.valid)] == [
        480,
        480,
        120,
    ]
    made_x, made_y = zip(*house_numbers.generate("train", 600), strict=True)
    assert (np.concatenate([dataset.labelled.x, dataset.valid.x]) == np.concatenate(made_x)).all()
    assert (np.concatenate([dataset.labelled.y, dataset.valid.y]) == np.concatenate(made_y)).all()
    assert (test.y[:250] == next(house_numbers.generate("test", 250))[1]).all() and len(test) == 300
    assert dataset.classes == 10 and dataset.notes == ()
    # Less to train on leaves the labelled pool and the validation set as they are.
    less = data.load(few.replace(train_size=100))
    assert len(less.train) == 100 and (less.train.x == dataset.train.x[:100]).all()
    assert (less.valid.x == dataset.valid.x).all() and len(less.labelled) == 480
    assert less.fingerprint != dataset.fingerprint


def test_house_numbers_sizes_follow_train_size():
    def sizes(train_size):
        return sources._house_numbers_sizes(Config(train_size=train_size))

    assert sizes(None) == sizes(16_000) == {"train": 20_000, "test": 10_000}
    assert sizes(16_001) == sizes(63_257) == {"train": 73_257, "test": 26_032}
    assert sizes(63_258) == {"train": 73_257, "test": 26_032, "extra": 63_258}
    with pytest.raises(UserError, match="531131"):
        sizes(531_132)


def test_extra_is_what_the_model_trains_on(monkeypatch, few):
    """At paper scale the validation set is a fixed number of the last images of train."""
    monkeypatch.setattr(house_numbers, "SIZES", {"train": 900, "test": 400, "extra": 5000})
    monkeypatch.setattr(data, "AT_SCALE", 800)
    made = sources.SOURCES["house-numbers"]
    at_scale = lambda *asked: dataclasses.replace(made(*asked), valid_at_scale=200)  # noqa: E731
    monkeypatch.setitem(sources.SOURCES, "house-numbers", at_scale)
    dataset = data.load(few.replace(train_size=1000))
    assert [len(part) for part in (dataset.train, dataset.labelled, dataset.valid)] == [
        1000,
        700,
        200,
    ]
    assert (dataset.train.x[:250] == next(house_numbers.generate("extra", 250))[0]).all()


def test_cache_hit_is_the_same_data_read_only_and_not_made_again(few, cache, monkeypatch):
    first = data.load(few)
    monkeypatch.setattr(house_numbers, "generate", None)  # a second generation would fail
    again = data.load(few)
    assert again.fingerprint == first.fingerprint
    assert (again.train.x == first.train.x).all() and (again.valid.y == first.valid.y).all()
    assert isinstance(again.train.x, np.memmap) and not again.train.x.flags.writeable
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == []


def test_test_split_is_never_read_by_load(few, cache, tmp_path):
    data.load(few)
    assert not any("test" in path.name for path in cache.iterdir())
    path = write(tmp_path / "files")
    (tmp_path / "files" / "test_32x32.mat").write_bytes(b"not read")
    data.load(svhn(path.parent))
    with pytest.raises(UserError, match="test_32x32"):
        data.load_test(svhn(path.parent))


LOAD_IN_A_PROCESS = """
import sys, time, hashlib, pathlib
from ali import data
from ali.data import sources
from ali.config import Config
sources.HOUSE_NUMBERS_SMALL = {"train": 1500, "test": 300}
here = pathlib.Path(sys.argv[1])
(here / sys.argv[2]).touch()
while len(list(here.iterdir())) < 2:  # both begin once both have imported
    time.sleep(0.001)
d = data.load(Config())
print(d.fingerprint, hashlib.sha256(d.train.x.tobytes()).hexdigest())
"""


def test_two_processes_make_the_same_data_at_once(cache, tmp_path):
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-c", LOAD_IN_A_PROCESS, str(tmp_path / "ready")]
    both = [subprocess.Popen([*command, n], stdout=subprocess.PIPE, text=True) for n in "ab"]
    said = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(said) == 1 and len(said.pop().split()) == 2
    assert len(list(cache.iterdir())) == 1


def test_the_slower_of_two_builders_uses_the_first_ones(cache):
    def build(value):
        def run(sink):
            sink(np.full((2, 32, 32, 3), value, np.uint8))
            if value == 1:  # while this one builds, another one finishes
                cache_module.cached("race", build(2))
            return np.zeros(2), ()

        return run

    split = cache_module.cached("race", build(1))
    assert (split.images.x == 2).all() and [path.name for path in cache.iterdir()] == ["race"]


def test_what_a_killed_builder_left_is_removed_after_an_hour(few, cache):
    name = f"house-numbers-v{house_numbers.VERSION}-seed{house_numbers.SEED}-train-600"
    for end, age in (("old", 7200), ("new", 60)):
        (cache / f".{name}-{end}").mkdir(parents=True)
        file = cache / f".{name}-{end}" / "x.npy"
        file.touch()
        for path in (file, file.parent):
            os.utime(path, (time.time() - age,) * 2)
    data.load(few)
    assert sorted(path.name for path in cache.iterdir()) == [f".{name}-new", name]


# svhn


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("block", [4096, 64])
def test_mat_round_trip(tmp_path, monkeypatch, compress, block):
    monkeypatch.setattr(matlab, "BLOCK", block)
    path = write(tmp_path / "files", compress=compress)
    monkeypatch.setattr(matlab, "_scipy_mat", None)  # not even called: the streaming reader does it
    dataset = data.load(svhn(path.parent))
    x, y = reference(path)
    assert (dataset.train.x == x[:400]).all() and (dataset.train.y == y[:400]).all()
    assert (dataset.valid.x == x[400:]).all() and (dataset.valid.y == y[400:]).all()
    assert dataset.train.x.flags.c_contiguous and dataset.train.y.dtype == np.int64
    assert any("train_32x32.mat (500 images) is not the official" in n for n in dataset.notes)
    assert any("no extra_32x32.mat" in n for n in dataset.notes)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8])
def test_labels_of_any_number_type(tmp_path, dtype):
    path = write(tmp_path / "files", y=arrays(500)[1].astype(dtype).T)
    labelled = data.load(svhn(path.parent)).labelled
    assert (labelled.y == reference(path)[1][:400]).all()


def test_other_layouts_go_through_scipy(tmp_path, monkeypatch):
    path = write(tmp_path / "files")
    x, y = reference(path)
    monkeypatch.setattr(
        matlab, "_stream_v5", lambda *_: (_ for _ in ()).throw(matlab._OtherLayoutError)
    )
    dataset = data.load(svhn(path.parent))
    assert (dataset.train.x == x[:400]).all() and (dataset.train.y == y[:400]).all()


def test_extra_and_official_checksum(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    paths = {
        split: write(folder, split, n, seed=n) for split, n in (("train", 500), ("extra", 700))
    }
    official = {
        split: ("", hashlib.md5(path.read_bytes()).hexdigest()) for split, path in paths.items()
    }
    monkeypatch.setattr(sources, "_svhn_official", official.get)
    dataset = data.load(svhn(folder))
    assert (dataset.train.x == reference(paths["extra"])[0]).all()
    assert len(dataset.labelled) == 400 and dataset.notes == ()


def test_changed_file_is_read_again_and_changes_the_fingerprint(tmp_path):
    path = write(tmp_path / "files")
    first = data.load(svhn(path.parent))
    assert data.load(svhn(path.parent)).fingerprint == first.fingerprint
    write(tmp_path / "files", seed=1)
    os.utime(path, ns=(1, 1))
    second = data.load(svhn(path.parent))
    assert second.fingerprint != first.fingerprint
    assert (second.train.x == reference(path)[0][:400]).all()
    # The same contents elsewhere are the same data.
    assert (
        data.load(svhn(write(tmp_path / "others", seed=1).parent)).fingerprint == second.fingerprint
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
    path = write(tmp_path / "files", n=10, X=x, y=np.arange(n)[:, None] % 10 + 1)
    run = [sys.executable, "-c", PEAK_OF_A_LOAD, str(path.parent)]
    out = subprocess.run(
        run, capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert int(out[1]) == n
    assert float(out[0]) < 80


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
    path = write(tmp_path / "files", compress=compress)
    damage(path, how)
    with pytest.raises(UserError) as caught:
        data.load(svhn(path.parent))
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
    path = write(tmp_path / "files", compress=compress, **contents)
    with pytest.raises(UserError, match=message) as caught:
        data.load(svhn(path.parent))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_bad_places(tmp_path, cache, monkeypatch):
    with pytest.raises(UserError, match="is not a folder"):
        data.load(svhn(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*train_32x32.mat .*No such file"):
        data.load(svhn(tmp_path / "empty"))
    with pytest.raises(UserError, match="leave out --data-dir"):
        data.load(Config(data_dir=tmp_path))
    path = write(tmp_path / "files")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF" * 200)
    with pytest.raises(UserError, match="save it with -v7"):
        data.load(svhn(path.parent))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALI_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set ALI_CACHE"):
        data.load(Config())


def test_full_disk_is_a_clear_error_and_leaves_nothing(cache):
    def build(sink):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device; set ALI_CACHE"):
        cache_module.cached("full", build)
    assert list(cache.iterdir()) == []


def test_damaged_cache_says_what_to_delete(few, cache):
    data.load(few)
    (folder,) = cache.iterdir()
    with open(folder / "x.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=f"{folder.name} is damaged: delete that folder"):
        data.load(few)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": 401}, "--labels 401: the labelled pool has 400"),
        ({"labels": 400}, "a balanced draw takes 40 of each class"),
        ({"train_size": 401}, "--train-size 401: svhn has 400 training images"),
        ({"train_size": 20}, "--batch-size 50 is more than the 20 training images"),
        ({"batch_size": 401}, "--batch-size 401 is more than the 400"),
    ],
)
def test_more_asked_for_than_there_is(tmp_path, changes, message):
    path = write(tmp_path / "files")
    with pytest.raises(UserError, match=message):
        data.load(svhn(path.parent, **changes))


def test_random_draws_may_take_the_whole_pool(tmp_path):
    path = write(tmp_path / "files")
    assert len(data.load(svhn(path.parent, labels=400, balanced=False)).labelled) == 400


# Download


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
    paths = {split: write(folder, split, 500, seed=5) for split in ("train", "extra")}
    urls = {split: f"{address}/{path.name}" for split, path in paths.items()}
    md5 = {split: hashlib.md5(path.read_bytes()).hexdigest() for split, path in paths.items()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_svhn_official", lambda split: (urls[split], "0" * 32))
    with pytest.raises(UserError, match=r"cannot download .*corrupted"):
        data.load(svhn(None))
    assert list((tmp_path / "data" / "svhn").iterdir()) == []
    monkeypatch.setattr(sources, "_svhn_official", lambda split: (urls[split], md5[split]))
    dataset = data.load(svhn(None))
    assert dataset.notes == () and len(dataset.train) == 500
    monkeypatch.setattr(files, "download", None)  # the second start downloads nothing
    assert data.load(svhn(None)).fingerprint == dataset.fingerprint


# Real crops


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


# Labelled draws and batches


def test_balanced_draws():
    y = np.random.default_rng(0).choice(10, 3000, p=np.arange(1, 11) / 55)
    rng = np.random.default_rng(1)
    for n in (1, 10, 100, 203):
        rows = data.draw_labelled(y, n, rng)
        counts = np.bincount(y[rows], minlength=10)
        assert len(set(rows.tolist())) == len(rows) == n
        assert counts.max() - counts.min() <= 1
    again = data.draw_labelled(y, 203, np.random.default_rng(5))
    assert (again == data.draw_labelled(y, 203, np.random.default_rng(5))).all()
    assert (again != data.draw_labelled(y, 203, np.random.default_rng(6))).any()
    assert len(np.unique(y[again[:40]])) > 5  # in random order, not class after class


def test_the_remainder_goes_to_random_classes():
    y = np.repeat(np.arange(10), 20)
    rng = np.random.default_rng(0)
    extra = sum(np.bincount(y[data.draw_labelled(y, 13, rng)], minlength=10) for _ in range(300))
    assert (extra > 300 + 50).all()  # 390 expected of each


def test_random_draws_follow_the_pool():
    y = np.repeat([0, 1], [9000, 1000])
    rows = data.draw_labelled(y, 2000, np.random.default_rng(0), balanced=False, classes=2)
    assert len(set(rows.tolist())) == 2000
    assert abs(y[rows].mean() - 0.1) < 0.03
    with pytest.raises(UserError, match="balanced draw takes 1500 of each"):
        data.draw_labelled(y, 3000, np.random.default_rng(0), classes=2)
    with pytest.raises(UserError, match="the labelled pool has 10000"):
        data.draw_labelled(y, 10_001, np.random.default_rng(0), balanced=False)


def test_to_unit():
    x = torch.randint(0, 256, (4, 32, 16, 3), dtype=torch.uint8)
    unit = data.to_unit(x)
    assert unit.shape == (4, 3, 32, 16) and unit.dtype == torch.float32
    assert unit.is_contiguous(memory_format=torch.channels_last)
    assert (
        unit.numpy() == x.numpy().transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    ).all()


def test_batches_cover_each_image_once():
    x = torch.arange(103).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)

    def epoch(seed, size=10):
        generator = torch.Generator().manual_seed(seed)
        got = list(data.batches(x, size, generator))
        assert all(batch.shape == (size, 3, 2, 2) for batch in got)
        return torch.cat(got)[:, 0, 0, 0].mul(255).round().int().tolist()

    assert len(epoch(0)) == len(set(epoch(0))) == 100  # the short batch is dropped
    assert sorted(epoch(0, size=103)) == list(range(103))
    assert epoch(0) == epoch(0) != epoch(1)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.cat(list(data.batches(x, 10, generator))) for _ in range(2)]
    assert not torch.equal(*orders)  # each epoch in another order


def test_zlib_streams_of_any_split(tmp_path):
    """The inflating reader returns exactly what was asked for, whatever the sizes."""
    payload = np.random.default_rng(0).integers(0, 4, 3_000_000, dtype=np.uint8).tobytes()
    packed = zlib.compress(payload)
    (tmp_path / "z").write_bytes(packed + b"next element")
    with open(tmp_path / "z", "rb") as file:
        source = matlab._Inflated(file, len(packed))
        sizes = [0, 1, 7, 1_000_000, 999_992]
        assert b"".join(source.read(size) for size in sizes) == payload[: sum(sizes)]
        source.finish()
        with pytest.raises(EOFError):
            source.read(1)
