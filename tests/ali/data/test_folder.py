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
