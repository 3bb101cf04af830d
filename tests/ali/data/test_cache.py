"""ali.data.cache: each split is built once and shared, and a failure leaves nothing behind."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from ali import data
from ali.data import cache as cache_module
from ali.data import house_numbers
from ali.errors import UserError


def test_cache_hit_is_the_same_data_read_only_and_not_made_again(few, cache, monkeypatch):
    first = data.load(few)
    monkeypatch.setattr(house_numbers, "generate", None)  # a second generation would fail
    again = data.load(few)
    assert again.fingerprint == first.fingerprint
    assert (again.train.x == first.train.x).all() and (again.valid.y == first.valid.y).all()
    assert isinstance(again.train.x, np.memmap) and not again.train.x.flags.writeable
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == []


LOAD_IN_A_PROCESS = """
import sys, time, hashlib, pathlib
from ali import data
from ali.data import house_numbers
from ali.config import Config
house_numbers.SMALL_SIZES = {"train": 1500, "test": 300}
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
