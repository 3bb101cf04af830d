"""Data sets from files in each official layout and from a user's own folder; bad ones, one line."""

import collections
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ali import data, experiment
from ali.config import Config
from ali.data import cifar10, files, image_folders, mixture, pictures, sources
from ali.errors import UserError
from ali.evaluation import protocol
from ali.metrics import VAL_ERROR
from tests.paths import REAL_DATA

REAL = REAL_DATA


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setenv("ALI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(name, folder, **changes):
    return Config(data=name, data_dir=folder, labels=10, batch_size=4).replace(**changes)


def refused(message, settings, load=data.load):
    """Checks that loading says `message`, in one line."""
    with pytest.raises(UserError, match=message) as caught:
        load(settings)
    assert "\n" not in str(caught.value)


def nothing_cached(cache):
    return not cache.exists() or list(cache.iterdir()) == []


def put(path, colour=(0, 0, 0), size=(64, 64), mode="RGB"):
    """An image file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def colours(images):
    """The red of each image's middle, which `put` chose."""
    return images.x[:, 16, 16, 0].astype(int)


# CIFAR-10


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 10).tolist()
    return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": labels}


def put_batch(folder, name, contents, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(contents, protocol))
    return folder / name


def put_cifar(folder, n=50, batches=5):
    """Batches of n images each; gives their contents and the test batch's."""
    contents = [batch(n, seed) for seed in range(batches)]
    for i, one in enumerate(contents):
        put_batch(folder, f"data_batch_{i + 1}", one)
    put_batch(folder, "test_batch", batch(n, 99))
    return contents, batch(n, 99)


def images_of(batches):
    """As the format's description says: 1024 red values, row by row, then green, then blue."""
    rows = np.concatenate([one["data"] for one in batches])
    return np.stack([rows[:, c * 1024 : (c + 1) * 1024] for c in range(3)], -1).reshape(
        -1, 32, 32, 3
    )


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_splits(tmp_path, inner):
    train, test = put_cifar(tmp_path / "files" / inner)
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
    put_cifar(tmp_path / "files", n=1200)
    monkeypatch.setattr(data, "AT_SCALE", 6000)
    dataset = data.load(config("cifar10", tmp_path / "files"))
    assert (len(dataset.labelled), len(dataset.valid)) == (1000, 5000)


def test_cifar10_with_fewer_batches_and_official_checksums(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    put_cifar(folder, batches=2)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(sources, "_cifar10_official", lambda: ("", md5))
    dataset = data.load(config("cifar10", folder))
    assert len(dataset.train) + len(dataset.valid) == 100
    (note,) = dataset.notes
    assert "no data_batch_3, data_batch_4, data_batch_5" in note and "official" not in note


def test_second_load_reads_the_cache(tmp_path, monkeypatch):
    put_cifar(tmp_path / "files")
    settings = config("cifar10", tmp_path / "files")
    first = data.load(settings)
    monkeypatch.setattr(cifar10, "read", None)  # reading again would fail
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
    assert cifar10.read(tmp_path / "batch", blocks.append).tolist() == one["labels"]
    assert (np.concatenate(blocks) == images_of([one])).all()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", "CF")
def test_python_3_batches_of_any_protocol(tmp_path, protocol, order):
    one = batch(20)
    stored = {"data": np.asarray(one["data"], order=order), "labels": one["labels"]}
    path = put_batch(tmp_path, "batch", stored, protocol)
    blocks = []
    assert cifar10.read(path, blocks.append).tolist() == one["labels"]
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
    put_cifar(tmp_path / "files")
    for call in calls:
        contents = {**batch(10), "filenames": call}
        assert pickle.dumps(contents, protocol)
        put_batch(tmp_path / "files", "data_batch_1", contents, protocol)
        refused("data_batch_1 is no readable .*asks for", config("cifar10", tmp_path / "files"))
        assert not mark.exists() and nothing_cached(cache)
    pickle.loads(pickle.dumps(calls[0]))  # the call would have worked
    assert mark.exists()


GOOD = batch(50)
BAD_BATCHES = {
    "empty": (b"", "no readable CIFAR-10 batch"),
    "cut": (pickle.dumps(GOOD, 2)[:5000], "no readable CIFAR-10 batch"),
    "text": (b"hello", "no readable CIFAR-10 batch"),
    "no dict": ([1, 2], "no readable CIFAR-10 batch"),
    "no labels": ({"data": GOOD["data"]}, "no readable CIFAR-10 batch .*labels"),
    "floats": (GOOD | {"data": GOOD["data"] / 255}, "type 'f8', not uint8"),
    "objects": (GOOD | {"data": np.array([None])}, "not uint8"),
    "lists": (GOOD | {"data": [0] * 3072}, "no readable CIFAR-10 batch"),
    "short rows": (GOOD | {"data": GOOD["data"][:, 1:]}, r"uint8 \(N, 3072\), not \(50, 3071\)"),
    "no images": (GOOD | {"data": GOOD["data"][:0], "labels": []}, r"not \(0, 3072\)"),
    "fewer labels": (GOOD | {"labels": GOOD["labels"][1:]}, "50 images but 49 labels"),
    "label 10": (GOOD | {"labels": [10] * 50}, "labels must be 0 to 9"),
    "label text": (GOOD | {"labels": ["cat"] * 50}, "labels must be 0 to 9"),
    "label 1.5": (GOOD | {"labels": [1.5] * 50}, "labels must be 0 to 9"),
}


@pytest.mark.parametrize("contents, message", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_batches(tmp_path, cache, contents, message):
    put_cifar(tmp_path / "files")
    path = tmp_path / "files" / "data_batch_2"
    path.write_bytes(contents if isinstance(contents, bytes) else pickle.dumps(contents, 4))
    refused(f"data_batch_2.*{message}", config("cifar10", tmp_path / "files"))
    assert nothing_cached(cache)


def test_missing_batches_name_the_files(tmp_path):
    (tmp_path / "files").mkdir()
    refused("data_batch_1 .*cifar-10-batches-py", config("cifar10", tmp_path / "files"))
    put_cifar(tmp_path / "files")
    (tmp_path / "files" / "test_batch").unlink()
    data.load(config("cifar10", tmp_path / "files"))  # which does not read it
    refused("test_batch", config("cifar10", tmp_path / "files"), data.load_test)


def test_cifar10_download_is_checked_and_complete(tmp_path, monkeypatch, host):
    folder, address = host
    put_cifar(tmp_path / "made" / "cifar-10-batches-py")
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    official = sources._cifar10_official()[1]
    monkeypatch.chdir(tmp_path)

    def served(md5):
        return lambda: (f"{address}/{archive.name}", official | {"archive": md5})

    monkeypatch.setattr(sources, "_cifar10_official", served("0" * 32))
    refused("cannot download .*corrupted.*--data-dir", config("cifar10", None))
    assert list((tmp_path / "data" / "cifar10").iterdir()) == []
    monkeypatch.setattr(sources, "_cifar10_official", served(right))
    assert len(data.load(config("cifar10", None)).train) == 200
    assert [p.name for p in (tmp_path / "data" / "cifar10").iterdir()] == ["cifar-10-batches-py"]
    monkeypatch.setattr(files, "download", None)  # the second start downloads nothing
    data.load(config("cifar10", None))


# CelebA


def put_faces(folder, n=40):
    """Faces of one colour each: the red of number i is 6 i."""
    for i in range(n):
        put(folder / "img_align_celeba" / f"{i + 1:06}.jpg", (6 * i, 0, 0), (178, 218))
    return folder


def numbers(images):
    return (colours(images) / 6).round().astype(int).tolist()


def test_celeba_splits_by_the_partition(tmp_path):
    folder = put_faces(tmp_path / "files")
    part = [i * 7 % 3 for i in range(40)]
    lines = [f"{i + 1:06}.jpg {which}" for i, which in enumerate(part)] + ["202599.jpg 2", ""]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines))
    for given in (folder, folder / "img_align_celeba"):
        dataset = data.load(config("celeba", given))
        test = data.load_test(config("celeba", given))
        for which, images in enumerate((dataset.train, dataset.valid, test)):
            assert images.y is None and images.x.shape[1:] == (64, 64, 3)
            assert numbers(images) == [i for i in range(40) if part[i] == which]
        assert dataset.classes == 0 and len(dataset.labelled) == len(dataset.train)
        assert dataset.notes == ("celeba: 40 of 202,599 images",)


@pytest.mark.parametrize("partition", [None, "".join(f"{i + 1:06}.jpg 0\n" for i in range(40))])
def test_celeba_without_a_partition_is_cut(tmp_path, partition):
    """Also with the official one where it is about other images, as of a sample's first ones."""
    folder = put_faces(tmp_path / "files")
    if partition:
        (folder / "list_eval_partition.txt").write_text(partition)
    dataset = data.load(config("celeba", folder))
    test = data.load_test(config("celeba", folder))
    assert numbers(dataset.train) == list(range(29)) and numbers(test) == list(range(36, 40))
    assert numbers(dataset.valid) == list(range(29, 36))
    assert any("list_eval_partition.txt" in n and "last 10% is for testing" in n for n in
               dataset.notes)  # fmt: skip


NAMES = ["Bald", "Smiling", *(f"Attribute_{i}" for i in range(2, 40))]


def put_attributes(folder, n=40, smiling=lambda i: i % 3 == 0):
    """The official layout, values padded to two places; nobody is bald, all else random."""
    values = np.random.default_rng(0).choice([-1, 1], (n, 40))
    values[:, 0], values[:, 1] = -1, [1 if smiling(i) else -1 for i in range(n)]
    lines = [f"{i + 1:06}.jpg " + " ".join(f"{v:2}" for v in row) for i, row in enumerate(values)]
    path = folder / "list_attr_celeba.txt"
    path.write_text("\n".join([str(n), " ".join(NAMES) + " ", *lines, ""]))
    return path


def test_celeba_classes_by_an_attribute(tmp_path, cache):
    folder = put_faces(tmp_path / "files")
    put_attributes(folder)
    plain, cached = data.load(config("celeba", folder)), len(list(cache.iterdir()))
    asked = config("celeba", folder / "img_align_celeba", attribute="Smiling")
    dataset, test = data.load(asked), data.load_test(asked)
    for images in (dataset.train, dataset.valid, test):
        assert images.y.tolist() == [int(i % 3 == 0) for i in numbers(images)]
    assert dataset.classes == 2 and experiment.objective(asked, dataset) == VAL_ERROR
    assert (dataset.train.x == plain.train.x).all() and dataset.fingerprint != plain.fingerprint
    put_attributes(folder, smiling=lambda i: i % 2 == 0)
    assert data.load(asked).fingerprint != dataset.fingerprint
    assert len(list(cache.iterdir())) == cached + 1  # the test images: no face is cached twice


def test_val_error_of_an_attribute(tmp_path):
    """Where the smiling faces are the bright ones, the pixels tell."""
    folder = put_faces(tmp_path / "files")
    put_attributes(folder, smiling=lambda i: i % 2 == 0)
    for i in range(0, 40, 2):
        put(folder / "img_align_celeba" / f"{i + 1:06}.jpg", (0, 200, 200), (178, 218))
    asked = config("celeba", folder, attribute="Smiling")
    assert protocol.raw_pixel_error(data.load(asked), asked) == 0


def test_bad_attributes(tmp_path, cache):
    folder = put_faces(tmp_path / "files")
    asked = config("celeba", folder, attribute="Smiling")
    refused("no .*list_attr_celeba.txt.*--attribute Smiling", asked)
    path = put_attributes(folder)
    refused("no attribute Laughing: it has Bald, Smiling,", asked.replace(attribute="Laughing"))
    refused("no attribute smiling: it has", asked.replace(attribute="smiling"))
    refused("--labels 10: a balanced draw .* class 1", asked.replace(attribute="Bald"))
    good = path.read_text()
    for bad, message in [
        (good[: good.index("000007.jpg")], "no row for 000007.jpg"),
        (good.replace("000007.jpg -1 ", "000007.jpg "), "39 values for 000007.jpg and 40"),
        (good.replace("000007.jpg -1 ", "000007.jpg -1 1 "), "41 values for 000007.jpg"),
        (good.replace("000007.jpg -1  1", "000007.jpg -1  0"), "0 as Smiling of 000007.jpg"),
        (good[good.index("\n") + 1 :], "begin with a count"),
        ("", "begin with a count"),
        ("40\n", "begin with a count"),
        (good + "häßlich", "cannot read .*list_attr_celeba"),
    ]:
        assert bad != good
        path.write_text(bad)
        refused(message, asked)
    with pytest.raises(UserError, match="--attribute must be left out with other data than celeba"):
        config("svhn", folder, attribute="Smiling")


def test_celeba_crop(tmp_path):
    """Row r of the 78 shows row (r + ½) 218/78 − ½ of the file; 7 to 71 are kept; columns alike."""
    rows, columns = np.mgrid[:218, :178].astype(np.uint8)
    face = Image.fromarray(np.stack([rows, columns, rows * 0], -1))
    face.save(tmp_path / "face.png")
    x = pictures.decode(tmp_path / "face.png", pictures.face)
    assert x.shape == (64, 64, 3)
    expected_rows = (np.arange(7, 71) + 0.5) * 218 / 78 - 0.5
    expected_columns = (np.arange(64) + 0.5) * 178 / 64 - 0.5
    assert abs(x[:, 32, 0] - expected_rows).max() <= 1
    assert abs(x[32, 2:-2, 1] - expected_columns[2:-2]).max() <= 1


def test_bad_faces(tmp_path, cache, monkeypatch):
    folder = put_faces(tmp_path / "files", 20)
    partition = folder / "list_eval_partition.txt"
    one = folder / "img_align_celeba" / "000007.jpg"
    for text, message in [
        ("000001.jpg 0\n", "no partition .*000002.jpg"),
        ("".join(f"{i + 1:06}.jpg 3\n" for i in range(20)), "no partition .*000001.jpg"),
        ("000001.jpg\n", "less than two columns"),
        ("häßlich 0\n", "cannot read .*list_eval_partition"),
    ]:
        partition.write_text(text)
        refused(message, config("celeba", folder))
    partition.unlink()
    put(one, size=(64, 64))
    refused("000007.jpg: it is 64×64, where aligned faces are 178×218", config("celeba", folder))
    one.write_bytes(one.read_bytes()[:400])
    refused("cannot read the image .*000007.jpg.*remove it", config("celeba", folder))
    one.write_bytes(b"no image")
    refused("000007.jpg: its format is unknown", config("celeba", folder))
    assert nothing_cached(cache)
    refused("holds 0 images", config("celeba", tmp_path))
    refused("not a folder", config("celeba", tmp_path / "nowhere"))

    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    refused("cannot download CelebA .*--data-dir", config("celeba", None))


# Tiny ImageNet

WNIDS = ["n03", "n01", "n02"]  # class 0, 1, 2: not in order of name


def put_tiny(root, n=30, annotated=True):
    """The red of an image is its class times 50 plus its number; every tenth image is grey."""
    for label, wnid in enumerate(WNIDS):
        for i in range(n):
            red = 50 * label + i
            grey = i % 10 == 9
            path = root / "train" / wnid / "images" / f"{wnid}_{i}.png"
            put(path, red if grey else (red, 0, 0), mode="L" if grey else "RGB")
        for i in range(4):
            inner = "images" if annotated else f"{wnid}/images"
            put(root / "val" / inner / f"val_{label + 3 * i}.png", (50 * label + i, 0, 0))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    if annotated:
        rows = [f"val_{i}.png\t{WNIDS[i % 3]}\t0\t0\t63\t63\n" for i in range(13)]
        (root / "val" / "val_annotations.txt").write_text("".join(rows))  # one image is missing
    return root


@pytest.mark.parametrize("annotated", [True, False])
def test_tiny_imagenet(tmp_path, annotated):
    root = put_tiny(tmp_path / "tiny-imagenet-200", annotated=annotated)
    for given in (root, tmp_path):
        settings = config("tiny-imagenet", given)
        dataset, test = data.load(settings), data.load_test(settings)
        assert dataset.classes == 3 and (len(dataset.train), len(dataset.valid)) == (72, 18)
        for images in (dataset.train, dataset.valid, test):
            assert (colours(images) // 50 == images.y).all()
        both = [*colours(dataset.train), *colours(dataset.valid)]
        assert sorted(both) == sorted(50 * c + i for c in range(3) for i in range(30))
        # Stored class by class, but the validation set has some of each, in no order of class.
        assert np.bincount(dataset.valid.y, minlength=3).min() >= 2
        assert sorted(colours(test)) == sorted(50 * c + i for c in range(3) for i in range(4))
        grey = dataset.train.x[colours(dataset.train) % 10 == 9]
        assert len(grey) and (grey == grey[..., :1]).all()
    assert dataset.notes == (
        "tiny-imagenet: 90 images of 3 classes for train, not the official 100,000 of 200",
    )


def test_mixed_order_is_fixed_and_one_of_many():
    """By the paths alone: an image more does not change the order of the others."""
    paths = [f"n{c:02}/{i}.jpg" for c in range(20) for i in range(50)]
    mixed = image_folders._mixed(paths)
    assert mixed == image_folders._mixed(reversed(paths)) and sorted(mixed) == sorted(paths)
    assert [path for path in image_folders._mixed([*paths, "new"]) if path != "new"] == mixed
    held = collections.Counter(path.split("/")[0] for path in mixed[-200:])
    assert len(held) == 20 and max(held.values()) < 25  # 10 expected of each
    # Another order would bring what a checkpoint was trained on into the validation set.
    assert "".join(image_folders._mixed("abcdefgh")) == "hdacbfge"


def test_bad_tiny_imagenet(tmp_path, cache):
    refused("no .*wnids.txt.*--data-dir", config("tiny-imagenet", tmp_path))
    root = put_tiny(tmp_path / "tiny-imagenet-200")
    settings = config("tiny-imagenet", root)
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.png\tn99\n")
    data.load(settings)  # which does not read val
    refused("no class of wnids.txt for val_0.png", settings, data.load_test)
    annotations.write_text("val_0.png\n")
    refused("less than two columns", settings, data.load_test)
    put(root / "train" / "n01" / "images" / "n01_3.png", size=(32, 64))
    refused("n01_3.png: it is 32×64", settings)
    (root / "wnids.txt").write_text("n01\nn77\n")
    refused("cannot read the folder .*n77", settings)
    (root / "train" / "n77").mkdir()
    refused("n77 holds no images", settings)
    (root / "wnids.txt").write_text("\n")
    refused("names no classes", settings)


def test_balanced_draw_of_200_classes_says_which_lacks():
    y = np.repeat(np.arange(200), 6)[:-3]
    message = (
        "--labels 1000: a balanced draw takes 5 of each class, but the pool has 3 of class 199"
    )
    with pytest.raises(UserError, match=message):
        data.draw_labelled(y, 1000, np.random.default_rng(0), classes=200)


# A folder of the user's own


def put_own(root, layout, n=20):
    """Images i of one colour, red 10 i, in the folders of `layout`; gives red → folder."""
    reds = {}
    for folder in layout:
        for _ in range(n):
            red = 2 * len(reds)
            put(root / folder / f"{red}.png", (red, 0, 0), (50, 40))
            reds[red] = folder
    return reds


@pytest.mark.parametrize("image_size", [32, 64])
def test_own_folder_by_class(tmp_path, image_size):
    """Every image is in one split, with its subfolder's class, and each split has both classes."""
    reds = put_own(tmp_path / "own", ["dogs", "cats", "owls"])
    settings = config("folder", tmp_path / "own", image_size=image_size)
    dataset, test = data.load(settings), data.load_test(settings)
    assert dataset.classes == 3 and dataset.train.x.shape[1:] == (image_size, image_size, 3)
    parts = (dataset.train, dataset.valid, test)
    assert [len(part) for part in parts] == [43, 11, 6]
    assert sorted(np.concatenate([colours(part) for part in parts])) == sorted(reds)
    for part in parts:
        assert [sorted(set(reds.values()))[y] for y in part.y] == [reds[c] for c in colours(part)]
    assert set(dataset.valid.y) == {0, 1, 2}
    assert (data.load(settings).train.x == dataset.train.x).all()


def test_own_folder_without_labels(tmp_path):
    reds = put_own(tmp_path / "own", ["."], 40)
    (tmp_path / "own" / "notes.txt").write_text("")
    (tmp_path / "own" / ".hidden").mkdir()
    (tmp_path / "own" / "empty").mkdir()
    settings = config("folder", tmp_path / "own", labels=1000)  # of which there need be none
    dataset, test = data.load(settings), data.load_test(settings)
    parts = (dataset.train, dataset.valid, test)
    assert [len(part) for part in parts] == [29, 7, 4] and dataset.classes == 0
    assert all(part.y is None for part in (*parts, dataset.labelled))
    assert sorted(np.concatenate([colours(part) for part in parts])) == sorted(reds)
    left_out, kept = dataset.notes
    assert "2 in" in left_out and "notes.txt, empty/" in left_out
    assert "4 of 40 images" in kept and "testing" in kept


def test_own_folder_with_train_and_test(tmp_path):
    reds = put_own(tmp_path / "own", ["train/a", "train/b", "test/b", "test/a"])
    dataset = data.load(config("folder", tmp_path / "own"))
    test = data.load_test(config("folder", tmp_path / "own"))
    assert len(dataset.train) + len(dataset.valid) == 40 and len(test) == 40
    for part, name in ((dataset.train, "train"), (dataset.valid, "train"), (test, "test")):
        assert [f"{name}/{'ab'[y]}" for y in part.y] == [reds[c] for c in colours(part)]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    "layout, message",
    [
        ([".", "a"], "images and subfolders of images"),
        (["a"], "one class only, a"),
        (["a/deep", "b"], "own/a holds folders"),
        (["train/a", "train/b", "val/a"], "train holds folders.*both train and test"),
        (["train/a", "train/b", "test"], "test has images without a class"),
        (["train", "test/a", "test/b"], "test has the class"),
        (["train/a", "train/b", "test/c"], "test has the class c"),
        (["train/a", "test/a"], "one class only"),
    ],
)
def test_own_folders_that_are_no_data_set(tmp_path, cache, layout, message):
    put_own(tmp_path / "own", layout, 2)
    refused(message, config("folder", tmp_path / "own"))
    assert nothing_cached(cache)


def test_own_folders_with_too_little(tmp_path, cache):
    refused("needs --data-dir", config("folder", None))
    (tmp_path / "own").mkdir()
    refused(r"own holds no images \(.bmp, ", config("folder", tmp_path / "own"))
    put_own(tmp_path / "own", ["."], 1)
    refused("too few images", config("folder", tmp_path / "own"))
    put_own(tmp_path / "own", ["."], 3)
    refused("too few for a validation set", config("folder", tmp_path / "own"))
    put_own(tmp_path / "own", ["."], 5)
    refused("--batch-size 4 is more than the 3", config("folder", tmp_path / "own"))


def test_changed_images_are_read_again(tmp_path):
    put_own(tmp_path / "own", ["a", "b"])
    settings = config("folder", tmp_path / "own")
    first = data.load(settings)
    for path in (tmp_path / "own").glob("*/*.png"):
        put(path, (200, 0, 0), (50, 40))
        os.utime(path, ns=(1, 1))
    second = data.load(settings)
    assert second.fingerprint != first.fingerprint and (colours(second.train) == 200).all()


LOAD_IN_A_PROCESS = """
import sys, time, hashlib, pathlib
from ali import data
from ali.config import Config
here = pathlib.Path(sys.argv[1])
(here / sys.argv[2]).touch()
while len(list(here.iterdir())) < 2:  # both begin once both have imported
    time.sleep(0.001)
d = data.load(Config(data="folder", data_dir=pathlib.Path(sys.argv[3]), labels=2, batch_size=4))
print(d.fingerprint, hashlib.sha256(d.train.x.tobytes()).hexdigest())
"""


def test_two_processes_decode_the_same_folder_at_once(cache, tmp_path):
    put_own(tmp_path / "own", ["a", "b"], 60)
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-c", LOAD_IN_A_PROCESS, str(tmp_path / "ready")]
    both = [
        subprocess.Popen([*command, n, str(tmp_path / "own")], stdout=subprocess.PIPE, text=True)
        for n in "ab"
    ]
    said = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(said) == 1 and len(said.pop().split()) == 2
    assert len(list(cache.iterdir())) == 1


# Decoding


def test_middle_square(tmp_path):
    """Of 100×60, columns 20 to 80 and all rows; of 60×100 the other way round."""
    rows, columns = np.mgrid[:60, :100].astype(np.uint8)
    picture = np.stack([rows, columns, rows * 0], -1)
    at = (np.arange(32) + 0.5) * 60 / 32 - 0.5
    for turned in (False, True):
        shown = picture.transpose(1, 0, 2) if turned else picture
        Image.fromarray(shown).save(tmp_path / "picture.png")
        x = pictures.decode(tmp_path / "picture.png", pictures.square(32)).astype(float)
        x = x.transpose(1, 0, 2) if turned else x
        assert abs(x[2:-2, 16, 0] - at[2:-2]).max() <= 1
        assert abs(x[16, 2:-2, 1] - at[2:-2] - 20).max() <= 1


def test_many_images_in_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "TOGETHER", 7)
    reds = put_own(tmp_path / "own", ["a", "b"], 40)
    dataset = data.load(config("folder", tmp_path / "own"))
    assert [reds[c] for c in colours(dataset.train)] == ["ab"[y] for y in dataset.train.y]


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
    put(path, colour, mode=mode)
    x = pictures.decode(path, pictures.exactly(64))
    assert x.dtype == np.uint8 and (x == np.array(expected)).all()


def test_cameras_orientation(tmp_path):
    """Orientation 6: what is on the left in the file is on top of the picture."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "picture.png", exif=exif)
    x = pictures.decode(tmp_path / "picture.png", pictures.exactly(64))
    assert (x[:32] == 255).all() and (x[32:] == 0).all()


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        pictures.decode(tmp_path / "deep.png", pictures.exactly(64))


# Mixture


@pytest.mark.parametrize("modes", [9, 25])
def test_mixture(modes, cache):
    settings = config("mixture", None, modes=modes)
    dataset, test = data.load(settings), data.load_test(settings)
    parts = (dataset.train, dataset.valid, test)
    assert [len(part) for part in parts] == [100_000, 10_000, 10_000]
    assert dataset.classes == modes and dataset.train.x.dtype == np.float32
    for part in parts:
        assert part.x.shape[1:] == (1, 1, 2) and set(part.y) == set(range(modes))
        away = part.x[:, 0, 0] - mixture.centres(modes)[part.y]
        assert abs(away.std() / mixture.SIGMA - 1) < 0.05 and abs(away.mean()) < 0.005
    assert not (dataset.valid.x == test.x).any() and not (dataset.train.x[:10_000] == test.x).any()
    again = data.load(settings)
    assert again.fingerprint == dataset.fingerprint and (again.train.x == dataset.train.x).all()
    assert not cache.exists()


def test_mixture_of_any_size(cache):
    less = data.load(config("mixture", None, train_size=500, labels=1000))
    more = data.load(config("mixture", None, train_size=120_000))
    assert (len(less.train), len(less.labelled)) == (500, 100_000) and len(more.train) == 120_000
    assert (less.valid.x == more.valid.x).all() and less.fingerprint != more.fingerprint
    refused("leave out --data-dir", config("mixture", Path(".")))


# Real samples


def real(name):
    """Settings for a sample of the real data; skips the test where there is none."""
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"no sample of {name} at {folder}")
    return folder


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


def test_real_celeba():
    folder = real("celeba")
    dataset = data.load(config("celeba", folder))
    assert len(dataset.train) + len(dataset.valid) == 29 and dataset.train.x.shape[1:3] == (64, 64)
    # The same picture, reduced by another filter, is nearly the same; upside down or with its
    # colours exchanged it is not.
    with Image.open(folder / "img_align_celeba" / "000001.jpg") as file:
        face = np.asarray(file.resize((64, 78), Image.Resampling.BOX))[7:71].astype(float)
    x = dataset.train.x[0]
    assert abs(x - face).mean() < 6
    assert min(abs(x[::-1] - face).mean(), abs(x[..., ::-1] - face).mean()) > 12


def test_real_tiny_imagenet():
    root = real("tiny-imagenet-200")
    dataset = data.load(config("tiny-imagenet", root))
    test = data.load_test(config("tiny-imagenet", root))
    assert (len(dataset.train), len(dataset.valid), len(test)) == (1600, 400, 400)
    assert dataset.classes == 20
    wnids = (root / "wnids.txt").read_text().split()
    labels = {}
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        shown = Image.open(root / "val" / "images" / name).convert("RGB")
        labels[np.asarray(shown).tobytes()] = wnid
    assert [labels[x.tobytes()] for x in test.x] == [wnids[y] for y in test.y]
    some = root / "train" / wnids[5] / "images"
    stored = {np.asarray(Image.open(p).convert("RGB")).tobytes() for p in some.iterdir()}
    both = [*zip(dataset.train.x, dataset.train.y, strict=True)]
    both += [*zip(dataset.valid.x, dataset.valid.y, strict=True)]
    assert {x.tobytes() for x, y in both if y == 5} == stored
