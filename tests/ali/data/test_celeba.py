"""ali.data.celeba: the partition, the crop, and an attribute as the class."""

import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ali import data, experiment
from ali.data import celeba, image_files
from ali.errors import UserError
from ali.evaluation import protocol
from ali.metrics import VAL_ERROR
from tests.ali.data.conftest import (
    check_refused,
    config,
    nothing_cached,
    real,
    red_values,
    write_image,
)


def write_faces(folder, n=40):
    """Faces of one colour each: the red of number i is 6 i."""
    for i in range(n):
        write_image(folder / "img_align_celeba" / f"{i + 1:06}.jpg", (6 * i, 0, 0), (178, 218))
    return folder


def numbers(images):
    return (red_values(images) / 6).round().astype(int).tolist()


def test_celeba_splits_by_the_partition(tmp_path):
    folder = write_faces(tmp_path / "files")
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


def to_csv(path, header):
    """A table of the authors' as Kaggle has it: commas, a line of names, CR LF."""
    rows = [line.split() for line in path.read_text().splitlines()]
    rows = [row for row in rows if row and row[0].endswith(".jpg")]
    lines = [",".join(row) for row in (header, *rows)]
    path.with_suffix(".csv").write_bytes("\r\n".join([*lines, ""]).encode())
    path.unlink()


def official(folder):
    """Faces as they are by default, with both tables."""
    write_faces(folder)
    write_attributes(folder)
    lines = [f"{i + 1:06}.jpg {i // 3 % 3}\n" for i in range(40)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    return folder


def kaggle(folder):
    official(folder / "inner")
    (folder / "img_align_celeba").mkdir()
    (folder / "inner" / "img_align_celeba").rename(folder / "img_align_celeba/img_align_celeba")
    for name, header in (("eval_partition", ["partition"]), ("attr_celeba", NAMES)):
        table = (folder / "inner" / f"list_{name}.txt").rename(folder / f"list_{name}.txt")
        to_csv(table, ["image_id", *header])
    return folder


def authors(folder):
    official(folder / "Img")
    for inner, name in (("Eval", "list_eval_partition.txt"), ("Anno", "list_attr_celeba.txt")):
        (folder / inner).mkdir()
        (folder / "Img" / name).rename(folder / inner / name)
    return folder


@pytest.mark.parametrize("layout", [official, kaggle, authors])
def test_celeba_as_kaggle_and_its_authors_lay_it_out(tmp_path, monkeypatch, layout):
    folder = layout(tmp_path / "celeba")
    inner = next(path.parent for path in folder.rglob("000001.jpg"))
    monkeypatch.chdir(inner)
    for given in (folder, inner, inner.parent, Path(".")):
        if given == folder / "Img":
            continue  # the authors' Img is given as the folder it is in, or as the faces' own
        asked = config("celeba", given, attribute="Smiling")
        dataset, test = data.load(asked), data.load_test(asked)
        for which, images in enumerate((dataset.train, dataset.valid, test)):
            assert numbers(images) == [i for i in range(40) if i // 3 % 3 == which], given
            assert images.y.tolist() == [int(i % 3 == 0) for i in numbers(images)]
        assert dataset.notes == ("celeba: 40 of 202,599 images",)
        assert dataset.class_names == ("not Smiling", "Smiling")


def test_bad_tables_of_kaggle(tmp_path):
    folder = kaggle(tmp_path / "celeba")
    asked = config("celeba", folder, attribute="Smiling")
    check_refused("no attribute Laughing: it has Bald, Smil", asked.replace(attribute="Laughing"))
    table, part = folder / "list_attr_celeba.csv", folder / "list_eval_partition.csv"
    good = table.read_text()
    for bad, message in [
        (good[: good.index("000039.jpg")], "celeba.csv has no row for 000039.jpg, 000040.jpg$"),
        (good.replace("000007.jpg,-1,", "000007.jpg,"), "39 values for 000007.jpg and 40"),
        ("image_id,Smiling\n000040.jpg,1\n", "no row for 000001.jpg, .*000010.jpg, …$"),
        ("", "begin with a count"),
    ]:
        assert bad != good
        table.write_text(bad)
        check_refused(message, asked)
    part.write_text(part.read_text().replace("000003.jpg,", "3,").replace("000005.jpg,", "5,"))
    check_refused("no partition .* for 000003.jpg, 000005.jpg$", asked)


@pytest.mark.parametrize("partition", [None, "".join(f"{i + 1:06}.jpg 0\n" for i in range(40))])
def test_celeba_without_a_partition_is_cut(tmp_path, partition):
    """Also with the official one where it is about other images, as of a sample's first ones."""
    folder = write_faces(tmp_path / "files")
    if partition:
        (folder / "list_eval_partition.txt").write_text(partition)
    dataset = data.load(config("celeba", folder))
    test = data.load_test(config("celeba", folder))
    assert numbers(dataset.train) == list(range(29)) and numbers(test) == list(range(36, 40))
    assert numbers(dataset.valid) == list(range(29, 36))
    assert any("list_eval_partition.txt" in n and "last 10% is for testing" in n for n in
               dataset.notes)  # fmt: skip


NAMES = ["Bald", "Smiling", *(f"Attribute_{i}" for i in range(2, 40))]


def write_attributes(folder, n=40, smiling=lambda i: i % 3 == 0):
    """The official layout, values padded to two places; nobody is bald, all else random."""
    values = np.random.default_rng(0).choice([-1, 1], (n, 40))
    values[:, 0], values[:, 1] = -1, [1 if smiling(i) else -1 for i in range(n)]
    lines = [f"{i + 1:06}.jpg " + " ".join(f"{v:2}" for v in row) for i, row in enumerate(values)]
    path = folder / "list_attr_celeba.txt"
    path.write_text("\n".join([str(n), " ".join(NAMES) + " ", *lines, ""]))
    return path


def test_celeba_classes_by_an_attribute(tmp_path, cache):
    folder = write_faces(tmp_path / "files")
    write_attributes(folder)
    plain, cached = data.load(config("celeba", folder)), len(list(cache.iterdir()))
    asked = config("celeba", folder / "img_align_celeba", attribute="Smiling")
    dataset, test = data.load(asked), data.load_test(asked)
    for images in (dataset.train, dataset.valid, test):
        assert images.y.tolist() == [int(i % 3 == 0) for i in numbers(images)]
    assert dataset.classes == 2 and experiment.objective(asked, dataset) == VAL_ERROR
    assert (dataset.train.x == plain.train.x).all() and dataset.fingerprint != plain.fingerprint
    write_attributes(folder, smiling=lambda i: i % 2 == 0)
    assert data.load(asked).fingerprint != dataset.fingerprint
    assert len(list(cache.iterdir())) == cached + 1  # the test images: no face is cached twice


def test_val_error_of_an_attribute(tmp_path):
    """Where the smiling faces are the bright ones, the pixels tell."""
    folder = write_faces(tmp_path / "files")
    write_attributes(folder, smiling=lambda i: i % 2 == 0)
    for i in range(0, 40, 2):
        write_image(folder / "img_align_celeba" / f"{i + 1:06}.jpg", (0, 200, 200), (178, 218))
    asked = config("celeba", folder, attribute="Smiling")
    assert protocol.raw_pixel_error(data.load(asked), asked) == 0


def test_bad_attributes(tmp_path, cache):
    folder = write_faces(tmp_path / "files")
    asked = config("celeba", folder, attribute="Smiling")
    check_refused("no .*list_attr_celeba.txt.*--attribute Smiling", asked)
    path = write_attributes(folder)
    check_refused(
        "no attribute Laughing: it has Bald, Smiling,", asked.replace(attribute="Laughing")
    )
    check_refused("no attribute smiling: it has", asked.replace(attribute="smiling"))
    check_refused("--labels 10: a balanced draw .* class Bald", asked.replace(attribute="Bald"))
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
        check_refused(message, asked)
    with pytest.raises(UserError, match="--attribute must be left out with other data than celeba"):
        config("svhn", folder, attribute="Smiling")


def test_celeba_crop(tmp_path):
    """Row r of the 78 shows row (r + ½) 218/78 − ½ of the file; 7 to 71 are kept; columns alike."""
    rows, columns = np.mgrid[:218, :178].astype(np.uint8)
    face = Image.fromarray(np.stack([rows, columns, rows * 0], -1))
    face.save(tmp_path / "face.png")
    x = image_files.decode(tmp_path / "face.png", celeba.crop_face)
    assert x.shape == (64, 64, 3)
    expected_rows = (np.arange(7, 71) + 0.5) * 218 / 78 - 0.5
    expected_columns = (np.arange(64) + 0.5) * 178 / 64 - 0.5
    assert abs(x[:, 32, 0] - expected_rows).max() <= 1
    assert abs(x[32, 2:-2, 1] - expected_columns[2:-2]).max() <= 1


def test_bad_faces(tmp_path, cache, monkeypatch):
    folder = write_faces(tmp_path / "files", 20)
    partition = folder / "list_eval_partition.txt"
    one = folder / "img_align_celeba" / "000007.jpg"
    for text, message in [
        ("000001.jpg 0\n", "no partition .*000002.jpg"),
        ("".join(f"{i + 1:06}.jpg 3\n" for i in range(20)), "no partition .*000001.jpg"),
        ("000001.jpg\n", "fewer than two columns"),
        ("häßlich 0\n", "cannot read .*list_eval_partition"),
    ]:
        partition.write_text(text)
        check_refused(message, config("celeba", folder))
    partition.unlink()
    write_image(one, size=(64, 64))
    check_refused(
        "000007.jpg: it is 64×64, but aligned faces are 178×218", config("celeba", folder)
    )
    one.write_bytes(one.read_bytes()[:400])
    check_refused("cannot read the image .*000007.jpg.*remove it", config("celeba", folder))
    one.write_bytes(b"no image")
    check_refused("000007.jpg: its format is unknown", config("celeba", folder))
    assert nothing_cached(cache)
    check_refused("holds 0 images", config("celeba", tmp_path))
    check_refused("not a folder", config("celeba", tmp_path / "nowhere"))

    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    check_refused("cannot download CelebA .*--data-dir", config("celeba", None))


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
