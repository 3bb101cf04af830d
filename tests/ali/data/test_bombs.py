"""Small files that become huge when they are decoded: refused before they are."""

import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io

from ali.data import image_files
from ali.errors import UserError
from tests.ali.data.test_image_files import chunk

HUGE = 120_000_000  # bytes, decoded
BLOCK = bytes(1 << 24)

# Reads each file as its command does; prints the memory that this took at its peak, MB, and why
# the file was refused.
READ = """
import sys
from pathlib import Path
import scipy.io
from ali import data
from ali.config import Config
from ali.data import cifar10, decoding, image_files, svhn
from ali.errors import UserError

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

def told(name, read, path):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = peak()
    try:
        read(path)
        why = "not refused"
    except UserError as error:
        why = str(error)
    print(name, peak() - before, why, sep="|")

image_files.MAX_BYTES = 50_000_000
decoding.MAX_PIXELS = 9_000_000
decoding._in_memory = decoding._Budget(9_000_000)
folder = Path(sys.argv[1])
readers = {
    "npz": lambda path: image_files.read_images(path, 32),
    "mat": lambda path: svhn.read_mat(path, lambda block: None),
    "batch": lambda path: cifar10.read_batch(path, lambda block: None),
    "own": lambda path: data.load(Config(data="folder", data_dir=path, labels=2, batch_size=2)),
}
for name in sorted(path.name for path in folder.iterdir()):
    told(name, readers[name.split(".")[-1]], folder / name)
    if name.endswith(".mat"):
        told("encode " + name, readers["npz"], folder / name)
"""


def write_npz(path, shape, dtype="|u1", size=HUGE):
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, fields)
        for start in range(0, size, len(BLOCK)):
            file.write(BLOCK[: size - start])


def write_png(path, side, more=b""):
    """A black square, a bit a pixel; with `more` chunks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(side * (1 + -(-side // 8))), 1)
    end = chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", rows) + end)


def nested(depth):
    """A list that stands for 10 ** (depth + 1) numbers."""
    numbers = [0] * 10
    for _ in range(depth):
        numbers = [numbers] * 10
    return numbers


def test_what_is_decoded_is_bounded_before(tmp_path):
    folder = tmp_path / "bombs"
    folder.mkdir()
    write_npz(folder / "flat.npz", (HUGE,))
    write_npz(folder / "doubles.npz", (HUGE // 3072 // 8, 32, 32, 3), "<f8")
    write_npz(folder / "many.npz", (HUGE // 3072, 32, 32, 3))
    doubles = np.zeros((32, 32, 3, HUGE // 3072 // 8))
    scipy.io.savemat(folder / "doubles.mat", {"X": doubles}, do_compression=True)
    scipy.io.savemat(folder / "y.mat", {"y": doubles.reshape(-1, 1)}, do_compression=True)
    many = np.zeros((32, 32, 3, HUGE // 3072), np.uint8)
    scipy.io.savemat(folder / "many.mat", {"X": many}, do_compression=True)
    (folder / "memo.batch").write_bytes(b"\x80\x02Nr" + struct.pack("<I", HUGE // 16) + b".")
    labels = {"labels": nested(7), "data": np.zeros((1, 3072), np.uint8)}
    (folder / "labels.batch").write_bytes(pickle.dumps(labels, 2))
    for i in range(8):
        write_png(folder / "huge.own" / "ab"[i % 2] / f"{i}.png", 5_000)
        transparent = chunk(b"tRNS", bytes(2))
        write_png(folder / "large.own" / "ab"[i % 2] / f"{i}.png", 3_000, transparent)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, timeout=300
    )
    told = {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines()}
    assert len(told) == 13, done.stdout + done.stderr
    peak, why = told.pop("large.own")  # one at a time, with 16 bytes a pixel: 137 MiB
    assert int(peak) < 300 and "too few for a validation set" in why, "all are read"
    for name, (peak, why) in told.items():
        # scipy inflates 128 KiB of a .mat, at most 0.13 GB, to read a header
        assert int(peak) < (300 if name.startswith("encode") else 60), (name, peak, why)
        says = {
            "flat.npz": "must be uint8",
            "doubles.npz": "must be uint8",
            "many.npz": "39,062 images, 0.1 GB: 0.1 GB at most, split them",
            "encode many.mat": "39,062 images, 0.1 GB: 0.1 GB at most, split them",
            "doubles.mat": "X must be uint8",
            "encode doubles.mat": "must be uint8",
            "many.mat": "lacks y",
            "memo.batch": "not a readable CIFAR-10 batch",
            "labels.batch": "1 images but 10 labels",
            "huge.own": "has more than 9 megapixels, scale it down",
        }
        assert says.get(name, "") in why and why != "not refused", (name, why)


def test_memory_that_images_would_need(tmp_path):
    """By the header alone: nothing follows it."""
    write_npz(tmp_path / "x.npz", (3_000_000, 32, 32, 3), size=0)
    with pytest.raises(UserError, match=r"3,000,000 images, 9.2 GB: 4.3 GB at most, split them"):
        image_files.read_images(tmp_path / "x.npz", 32)
