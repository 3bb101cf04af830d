"""ali.data.cifar10: batches of every pickle protocol; malicious and damaged ones are refused."""

import hashlib
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from ali import data
from ali.data import cifar10, files, splits
from tests.ali.data.conftest import check_refused, config, nothing_cached, real


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 10).tolist()
    return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": labels}


def write_batch(folder, name, contents, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(contents, protocol))
    return folder / name


def write_batches(folder, n=50, batches=5):
    """Batches of n images each; gives their contents and the test batch's."""
    contents = [batch(n, seed) for seed in range(batches)]
    for i, one in enumerate(contents):
        write_batch(folder, f"data_batch_{i + 1}", one)
    write_batch(folder, "test_batch", batch(n, 99))
    return contents, batch(n, 99)


def images_of(batches):
    """As the format's description says: 1024 red values, row by row, then green, then blue."""
    rows = np.concatenate([one["data"] for one in batches])
    return np.stack([rows[:, c * 1024 : (c + 1) * 1024] for c in range(3)], -1).reshape(
        -1, 32, 32, 3
    )


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_splits(tmp_path, inner):
    train, test = write_batches(tmp_path / "files" / inner)
    settings = config("cifar10", tmp_path / "files")
    dataset, tested = data.load(settings), data.load_test(settings)
    x, y = images_of(train), np.concatenate([one["labels"] for one in train])
    assert len(dataset.train) == 200 and dataset.classes == 10
    assert (dataset.train.x == x[:200]).all() and (dataset.labelled.y == y[:200]).all()
    assert (dataset.valid.x == x[200:]).all() and (dataset.valid.y == y[200:]).all()
    assert (tested.x == images_of([test])).all() and (tested.y == test["labels"]).all()
    (note,) = dataset.notes
    assert "250 images" in note and "not the official data_batch_1" in note


def test_cifar10_holds_5000_out_at_official_size(tmp_path, monkeypatch):
    write_batches(tmp_path / "files", n=1200)
    monkeypatch.setattr(splits, "LARGE_TRAIN", 6000)
    dataset = data.load(config("cifar10", tmp_path / "files"))
    assert (len(dataset.labelled), len(dataset.valid)) == (1000, 5000)


def test_cifar10_with_fewer_batches_and_official_checksums(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    write_batches(folder, batches=2)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(cifar10, "_official", lambda: ("", md5))
    dataset = data.load(config("cifar10", folder))
    assert len(dataset.train) + len(dataset.valid) == 100
    (note,) = dataset.notes
    assert "no data_batch_3, data_batch_4, data_batch_5" in note and "official" not in note


def test_second_load_reads_the_cache(tmp_path, monkeypatch):
    write_batches(tmp_path / "files")
    settings = config("cifar10", tmp_path / "files")
    first = data.load(settings)
    monkeypatch.setattr(cifar10, "read_batch", None)  # reading again would fail
    again = data.load(settings)
    assert again.fingerprint == first.fingerprint and again.notes == first.notes
    assert isinstance(again.train.x, np.memmap) and not again.train.x.flags.writeable


def python_2_batch(x, labels):
    """The pickle that Python 2 and numpy 1 wrote of a batch, opcode by opcode."""

    def text(value):  # a byte string of Python 2
        return b"T" + struct.pack("<I", len(value)) + value

    def small(*values):
        return b"".join(b"K" + bytes([value]) for value in values)

    shape = b"(" + b"".join(b"M" + struct.pack("<H", side) for side in x.shape) + b"t"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + small(0, 1) + b"tR"
    dtype += b"(" + small(3) + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff" + small(0)
    dtype += b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + small(0) + b"t"
    array += text(b"b") + b"tR(" + small(1) + shape + dtype + b"I00\n" + text(x.tobytes()) + b"tb"
    body = text(b"data") + array + text(b"labels") + b"](" + small(*labels) + b"e"
    return b"\x80\x02}(" + body + b"u."


def test_python_2_batches_are_read_as_numpy_reads_them(tmp_path):
    one = batch(300)
    raw = python_2_batch(one["data"], one["labels"])
    assert (pickle.loads(raw, encoding="bytes")[b"data"] == one["data"]).all()
    (tmp_path / "batch").write_bytes(raw)
    blocks = []
    assert cifar10.read_batch(tmp_path / "batch", blocks.append).tolist() == one["labels"]
    assert (np.concatenate(blocks) == images_of([one])).all()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", "CF")
def test_python_3_batches_of_any_protocol(tmp_path, protocol, order):
    one = batch(20)
    stored = {"data": np.asarray(one["data"], order=order), "labels": one["labels"]}
    path = write_batch(tmp_path, "batch", stored, protocol)
    blocks = []
    assert cifar10.read_batch(path, blocks.append).tolist() == one["labels"]
    assert (np.concatenate(blocks) == images_of([one])).all()


class Malicious:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path, cache, protocol):
    """Neither a call to the system nor one by way of numpy's or Python's own names."""
    mark = tmp_path / "mark"
    calls = [
        Malicious(os.system, f"touch {mark}"),
        Malicious(eval, f"open({str(mark)!r}, 'w')"),
        Malicious(getattr, mark, "touch"),
        Malicious(np.save, str(mark), 1),
    ]
    write_batches(tmp_path / "files")
    for call in calls:
        contents = {**batch(10), "filenames": call}
        assert pickle.dumps(contents, protocol)
        write_batch(tmp_path / "files", "data_batch_1", contents, protocol)
        check_refused(
            "data_batch_1 is not a readable .*asks for", config("cifar10", tmp_path / "files")
        )
        assert not mark.exists() and nothing_cached(cache)
    pickle.loads(pickle.dumps(calls[0]))  # the call would have worked
    assert mark.exists()


GOOD = batch(50)


BAD_BATCHES = {
    "empty": (b"", "not a readable CIFAR-10 batch"),
    "cut": (pickle.dumps(GOOD, 2)[:5000], "not a readable CIFAR-10 batch"),
    "text": (b"hello", "not a readable CIFAR-10 batch"),
    "no dict": ([1, 2], "not a readable CIFAR-10 batch"),
    "CIFAR-100": ({"data": GOOD["data"], "fine_labels": [0]}, "is of CIFAR-100: give --data-dir"),
    "no labels": ({"data": GOOD["data"]}, "not a readable CIFAR-10 batch .*labels"),
    "floats": (GOOD | {"data": GOOD["data"] / 255}, "type 'f8', not uint8"),
    "objects": (GOOD | {"data": np.array([None])}, "not uint8"),
    "lists": (GOOD | {"data": [0] * 3072}, "not a readable CIFAR-10 batch"),
    "short rows": (GOOD | {"data": GOOD["data"][:, 1:]}, r"uint8 \(N, 3072\), not \(50, 3071\)"),
    "no images": (GOOD | {"data": GOOD["data"][:0], "labels": []}, r"not \(0, 3072\)"),
    "fewer labels": (GOOD | {"labels": GOOD["labels"][1:]}, "50 images but 49 labels"),
    "label 10": (GOOD | {"labels": [10] * 50}, "labels must be 0 to 9"),
    "label text": (GOOD | {"labels": ["cat"] * 50}, "labels must be 0 to 9"),
    "label 1.5": (GOOD | {"labels": [1.5] * 50}, "labels must be 0 to 9"),
}


@pytest.mark.parametrize("contents, message", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_batches(tmp_path, cache, contents, message):
    write_batches(tmp_path / "files")
    path = tmp_path / "files" / "data_batch_2"
    path.write_bytes(contents if isinstance(contents, bytes) else pickle.dumps(contents, 4))
    check_refused(f"data_batch_2.*{message}", config("cifar10", tmp_path / "files"))
    assert nothing_cached(cache)


def test_missing_batches_name_the_files(tmp_path):
    (tmp_path / "files").mkdir()
    check_refused("data_batch_1 .*cifar-10-batches-py", config("cifar10", tmp_path / "files"))
    write_batches(tmp_path / "files")
    (tmp_path / "files" / "test_batch").unlink()
    data.load(config("cifar10", tmp_path / "files"))  # which does not read it
    check_refused("test_batch", config("cifar10", tmp_path / "files"), data.load_test)


def test_cifar10_download_is_checked_and_complete(tmp_path, monkeypatch, host):
    folder, address = host
    write_batches(tmp_path / "made" / "cifar-10-batches-py")
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    official = cifar10._official()[1]
    monkeypatch.chdir(tmp_path)

    def served(md5):
        return lambda: (f"{address}/{archive.name}", official | {"archive": md5})

    monkeypatch.setattr(cifar10, "_official", served("0" * 32))
    check_refused("cannot download .*corrupted.*--data-dir", config("cifar10", None))
    assert list((tmp_path / "data" / "cifar10").iterdir()) == []
    monkeypatch.setattr(cifar10, "_official", served(right))
    assert len(data.load(config("cifar10", None)).train) == 200
    assert [p.name for p in (tmp_path / "data" / "cifar10").iterdir()] == ["cifar-10-batches-py"]
    monkeypatch.setattr(files, "download", None)  # the second start downloads nothing
    data.load(config("cifar10", None))


def test_real_cifar10():
    folder = real("cifar10")
    dataset = data.load(config("cifar10", folder))
    test = data.load_test(config("cifar10", folder))
    with open(folder / "cifar-10-batches-py" / "data_batch_1", "rb") as file:
        first = pickle.load(file, encoding="bytes")
    rows = {"data": first[b"data"]}
    assert (dataset.train.x[:1000] == images_of([rows])).all()
    assert (dataset.train.y[:1000] == first[b"labels"]).all()
    assert (len(dataset.train), len(dataset.valid), len(test)) == (4000, 1000, 1000)
