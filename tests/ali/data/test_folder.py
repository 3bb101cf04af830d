"""ali.data.folder: the user's own images, with classes, without, and with train and test."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ali import data
from tests.ali.data.conftest import (
    check_refused,
    config,
    nothing_cached,
    red_values,
    write_folder,
    write_image,
)


@pytest.mark.parametrize("image_size", [32, 64])
def test_own_folder_by_class(tmp_path, image_size):
    """Every image is in one split, with its subfolder's class, and each split has both classes."""
    reds = write_folder(tmp_path / "own", ["dogs", "cats", "owls"])
    settings = config("folder", tmp_path / "own", image_size=image_size)
    dataset, test = data.load(settings), data.load_test(settings)
    assert dataset.classes == 3 and dataset.train.x.shape[1:] == (image_size, image_size, 3)
    parts = (dataset.train, dataset.valid, test)
    assert [len(part) for part in parts] == [43, 11, 6]
    assert sorted(np.concatenate([red_values(part) for part in parts])) == sorted(reds)
    for part in parts:
        classes = [sorted(set(reds.values()))[y] for y in part.y]
        assert classes == [reds[c] for c in red_values(part)]
    assert set(dataset.valid.y) == {0, 1, 2}
    assert (data.load(settings).train.x == dataset.train.x).all()


def test_own_folder_without_labels(tmp_path):
    reds = write_folder(tmp_path / "own", ["."], 40)
    (tmp_path / "own" / "notes.txt").write_text("")
    (tmp_path / "own" / ".hidden").mkdir()
    (tmp_path / "own" / "empty").mkdir()
    settings = config("folder", tmp_path / "own", labels=1000)  # of which there need be none
    dataset, test = data.load(settings), data.load_test(settings)
    parts = (dataset.train, dataset.valid, test)
    assert [len(part) for part in parts] == [29, 7, 4] and dataset.classes == 0
    assert all(part.y is None for part in (*parts, dataset.labelled))
    assert sorted(np.concatenate([red_values(part) for part in parts])) == sorted(reds)
    left_out, kept = dataset.notes
    assert "2 entries of" in left_out and "notes.txt, empty/" in left_out
    assert "4 of 40 images" in kept and "testing" in kept


def test_own_folder_with_train_and_test(tmp_path):
    reds = write_folder(tmp_path / "own", ["train/a", "train/b", "test/b", "test/a"])
    dataset = data.load(config("folder", tmp_path / "own"))
    test = data.load_test(config("folder", tmp_path / "own"))
    assert len(dataset.train) + len(dataset.valid) == 40 and len(test) == 40
    for part, name in ((dataset.train, "train"), (dataset.valid, "train"), (test, "test")):
        assert [f"{name}/{'ab'[y]}" for y in part.y] == [reds[c] for c in red_values(part)]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    "train, valid, test",
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("training_set/training_set", "dev", "test_set/test_set"),  # doubled, as Kaggle's are
        ("own/train", "own/valid", "own/test"),
        ("TRAIN", "VAL", None),
    ],
)
def test_own_folder_with_a_validation_partition(tmp_path, train, valid, test):
    """Without test images, a tenth of the training images is held out for testing."""
    given = [name for name in (train, valid, test) if name]
    reds = write_folder(tmp_path / "own", [f"{name}/{label}" for name in given for label in "ab"])
    dataset = data.load(config("folder", tmp_path / "own"))
    tested = data.load_test(config("folder", tmp_path / "own"))
    sizes = [len(part) for part in (dataset.train, dataset.labelled, dataset.valid, tested)]
    assert sizes == ([40, 40, 40, 40] if test else [36, 36, 40, 4])
    parts = ((dataset.train, train), (dataset.valid, valid), (tested, test or train))
    for part, name in parts:
        assert [f"{name}/{'ab'[y]}" for y in part.y] == [reds[c] for c in red_values(part)]
    assert len(dataset.notes) == (0 if test else 1) and dataset.class_names == ("a", "b")
    assert all("4 of 40 images" in note and "testing" in note for note in dataset.notes)
    before = dataset.fingerprint  # which is of the validation images, too
    next((tmp_path / "own" / valid).glob("*/*.png")).unlink()
    assert data.load(config("folder", tmp_path / "own")).fingerprint != before


def test_notes_of_what_is_beside_the_partitions_and_of_classes_that_one_lacks(tmp_path):
    write_folder(tmp_path / "own", ["train/a", "train/b", "test/a", "unlabelled"])
    (tmp_path / "own" / "readme.txt").write_text("")
    (tmp_path / "own" / "test" / "b").mkdir()
    beside, empty, lacking = data.load(config("folder", tmp_path / "own")).notes
    assert "2 entries of" in beside and "not in train, test and are ignored" in beside
    assert beside.endswith("unlabelled/, readme.txt")
    assert empty.endswith("test are not images and are ignored: b/")
    assert lacking.endswith("test has no images of b")


LITTER = [
    "__MACOSX/a/._0.png",
    "._0.png",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir/x/0.jpg",
]
LITTER += ["$RECYCLE.BIN/S-1-5/0.png", "lost+found/x/y", ".ipynb_checkpoints/0-checkpoint.png"]


@pytest.mark.parametrize("where", ["", "a", "train", "train/a"])
def test_what_systems_and_archivers_leave_is_no_data(tmp_path, where):
    """Beside the classes, in one of them, beside the partitions, in one of them."""
    names = ["a", "b"]
    if where.startswith("train"):
        names = [f"{part}/{name}" for part in ("train", "test") for name in names]
    write_folder(tmp_path / "own", names)
    before = data.load(config("folder", tmp_path / "own"))
    for name in LITTER:
        path = tmp_path / "own" / where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    after = data.load(config("folder", tmp_path / "own"))
    assert (after.fingerprint, after.notes) == (before.fingerprint, before.notes)


@pytest.mark.parametrize("name", ["own.zip", "train.tar.gz", "OWN.7Z"])
def test_archives_are_to_be_unpacked(tmp_path, name):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).write_bytes(b"PK")
    folder = tmp_path / "own"
    check_refused(f"own holds no images .*; unpack {name} there first", config("folder", folder))
    check_refused(f"{name} is not a folder: unpack it", config("folder", folder / name))
    for other, says in (("celeba", "0 images"), ("cifar10", "data_batch_1"), ("svhn", "SVHN has")):
        check_refused(f"{says}.*; unpack {name} there first", config(other, folder))
    check_refused(f"wnids.*; unpack {name} there first", config("tiny-imagenet", folder))


def test_classes_behind_links_and_names_that_no_terminal_prints(tmp_path):
    write_folder(tmp_path / "elsewhere", ["a", "b"])
    odd = os.fsdecode(b"\xff\x1b[2J")
    (tmp_path / odd).mkdir()
    for name in ("a", "b"):
        (tmp_path / odd / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "a" / f"{odd}.txt").write_text("")
    dataset = data.load(config("folder", tmp_path / odd))
    assert len(dataset.train) + len(dataset.valid) == 36
    assert any(note.endswith("are ignored: a/��[2J.txt") for note in dataset.notes)
    assert all(note.isprintable() for note in dataset.notes)


def test_a_class_with_too_few_images_is_named(tmp_path):
    write_folder(tmp_path / "own", ["cats", "owls"], 30)
    for path in sorted((tmp_path / "own" / "owls").iterdir())[2:]:
        path.unlink()
    check_refused("pool has . of class owls; ask", config("folder", tmp_path / "own", labels=20))


@pytest.mark.parametrize(
    "layout, message",
    [
        ([".", "a"], "images and subfolders of images"),
        (["a"], "one class only, a"),
        (["a/deep", "b"], "own/a holds folders"),
        (["train/a", "train/b", "other/a"], "other, train holds folders.*both train and test"),
        (["train/a", "train/b", "test"], "test has images without a class"),
        (["train", "test/a", "test/b"], "test has the class"),
        (["train/a", "train/b", "test/c"], "test has the class c"),
        (["train/a", "train/b", "val/c", "val/d"], "val has the classes c, d, which .*train does"),
        (["train/a", "train/b", "val", "test/a"], "val has images without a class.* move one away"),
        (["train/a", "train/b", "val/a", "valid/a"], "own holds both val and valid: keep one"),
        (["train/a", "test/a"], "one class only"),
    ],
)
def test_own_folders_that_are_no_data_set(tmp_path, cache, layout, message):
    write_folder(tmp_path / "own", layout, 2)
    check_refused(message, config("folder", tmp_path / "own"))
    assert nothing_cached(cache)


def test_own_folders_with_too_little(tmp_path, cache):
    check_refused("needs --data-dir", config("folder", None))
    (tmp_path / "own").mkdir()
    check_refused(r"own holds no images \(.bmp, ", config("folder", tmp_path / "own"))
    write_folder(tmp_path / "own", ["."], 1)
    check_refused("too few images", config("folder", tmp_path / "own"))
    write_folder(tmp_path / "own", ["."], 3)
    check_refused("too few for a validation set", config("folder", tmp_path / "own"))
    write_folder(tmp_path / "own", ["."], 5)  # one of them to validate with, by which none can
    check_refused("too few for a validation set", config("folder", tmp_path / "own"))
    check_refused("one test image is too few", config("folder", tmp_path / "own"), data.load_test)
    write_folder(tmp_path / "own", ["."], 9)
    settings = config("folder", tmp_path / "own", batch_size=8)
    check_refused("--batch-size 8 is more than the 6", settings)


def test_changed_images_are_read_again(tmp_path):
    write_folder(tmp_path / "own", ["a", "b"])
    settings = config("folder", tmp_path / "own")
    first = data.load(settings)
    for path in (tmp_path / "own").glob("*/*.png"):
        write_image(path, (200, 0, 0), (50, 40))
        os.utime(path, ns=(1, 1))
    second = data.load(settings)
    assert second.fingerprint != first.fingerprint and (red_values(second.train) == 200).all()


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
    write_folder(tmp_path / "own", ["a", "b"], 60)
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
