"""ali.data.cache: each split is built once and shared, and a failure leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def built(n=3):
    """A small split, cached."""

    def build(sink):
        sink(np.arange(n * 4 * 4 * 3, dtype=np.uint8).reshape(n, 4, 4, 3))
        return np.arange(n), ()

    return cache_module.cached("small", build)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty_header(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(3, 4, 4, 3)", b"(0, 0, 0, 0)"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x.npy", flip),
        ("y.npy", flip),
        ("x.npy", empty_header),  # as `python -O` left it
        ("x.npy", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
        ("x.npy", lambda path: path.write_bytes(b"")),
        ("y.npy", lambda path: path.unlink()),
        ("meta.json", lambda path: path.write_text("[]")),
        ("meta.json", lambda path: path.write_text("{}")),
    ],
)
def test_a_cache_proves_its_contents_when_it_is_opened(cache, name, change):
    assert built().fingerprint == built().fingerprint
    change(cache / "small" / name)
    with pytest.raises(UserError, match="small is damaged: delete that folder, or"):
        built()


def test_the_cache_is_written_without_asserts(cache, monkeypatch):
    source = Path(cache_module.__file__).read_text()
    optimized = {"__name__": "optimized"}
    exec(compile(source, "cache.py", "exec", optimize=1), optimized)  # as `python -O` does
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "cached", optimized["cached"])
        assert built().images.x.shape == (3, 4, 4, 3)
    assert built().images.x.shape == (3, 4, 4, 3)


def as_user(user, umask, work):
    """What work() says in another user's process; its error if it ends with one."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            os.umask(umask)
            os.setgid(user)
            os.setuid(user)
            said = str(work())
        except BaseException as error:
            said = str(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader) as file:
        return file.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="a second user asks for root")
def test_users_share_a_cache(monkeypatch):
    def fingerprint():
        return built().fingerprint

    with tempfile.TemporaryDirectory() as shared:  # tmp_path is closed to other users
        os.chmod(shared, 0o1777)
        monkeypatch.setenv("ALI_CACHE", shared)
        expected = as_user(1234, 0o022, fingerprint)
        assert as_user(1235, 0o022, fingerprint) == expected == fingerprint()
        assert Path(shared, "small").stat().st_uid == 1234, "built once"
        # Whoever wants to keep what he decodes to himself says so with the umask.
        shutil.rmtree(Path(shared, "small"))
        assert as_user(1234, 0o077, fingerprint) == expected
        says = "Permission denied; set ALI_CACHE to a writable folder"
        assert says in as_user(1235, 0o022, fingerprint)


def test_a_disk_that_becomes_full_leaves_no_part_of_a_split(small_disk, monkeypatch):
    folder, _ = small_disk
    monkeypatch.setenv("ALI_CACHE", str(folder / "cache"))
    with pytest.raises(UserError, match="No space left on device; set ALI_CACHE"):
        built(n=40_000)
    assert list((folder / "cache").iterdir()) == []
    assert len(built().images) == 3


def test_an_address_is_no_cache(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALI_CACHE", "s3://bucket/cache")
    with pytest.raises(UserError, match="ALI_CACHE s3:/bucket/cache is an address"):
        data.load(few)
    assert list(tmp_path.iterdir()) == []
