"""ali.data.tiny_imagenet: the official folder, with and without annotations."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ali import data
from tests.ali.data.conftest import check_refused, config, real, red_values, write_image

WNIDS = ["n03", "n01", "n02"]  # class 0, 1, 2: not in order of name


def write_tiny(root, n=30, annotated=True):
    """The red of an image is its class times 50 plus its number; every tenth image is grey."""
    for label, wnid in enumerate(WNIDS):
        for i in range(n):
            red = 50 * label + i
            grey = i % 10 == 9
            path = root / "train" / wnid / "images" / f"{wnid}_{i}.png"
            write_image(path, red if grey else (red, 0, 0), mode="L" if grey else "RGB")
        for i in range(4):
            inner = "images" if annotated else f"{wnid}/images"
            write_image(root / "val" / inner / f"val_{label + 3 * i}.png", (50 * label + i, 0, 0))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    if annotated:
        rows = [f"val_{i}.png\t{WNIDS[i % 3]}\t0\t0\t63\t63\n" for i in range(13)]
        (root / "val" / "val_annotations.txt").write_text("".join(rows))  # one image is missing
    return root


@pytest.mark.parametrize("annotated", [True, False])
def test_tiny_imagenet(tmp_path, annotated):
    root = write_tiny(tmp_path / "tiny-imagenet-200", annotated=annotated)
    for given in (root, tmp_path):
        settings = config("tiny-imagenet", given)
        dataset, test = data.load(settings), data.load_test(settings)
        assert dataset.classes == 3 and (len(dataset.train), len(dataset.valid)) == (72, 18)
        for images in (dataset.train, dataset.valid, test):
            assert (red_values(images) // 50 == images.y).all()
        both = [*red_values(dataset.train), *red_values(dataset.valid)]
        assert sorted(both) == sorted(50 * c + i for c in range(3) for i in range(30))
        # Stored class by class, but the validation set has some of each, in no order of class.
        assert np.bincount(dataset.valid.y, minlength=3).min() >= 2
        assert sorted(red_values(test)) == sorted(50 * c + i for c in range(3) for i in range(4))
        grey = dataset.train.x[red_values(dataset.train) % 10 == 9]
        assert len(grey) and (grey == grey[..., :1]).all()
    assert dataset.notes == (
        "tiny-imagenet: 90 images of 3 classes for train, not the official 100,000 of 200",
    )


@pytest.mark.parametrize("folder", ["val/{}/images", "val/{}", "val/images/{}"])
@pytest.mark.parametrize("left", [0, 5, 12])
def test_val_sorted_into_classes_by_the_usual_scripts(tmp_path, folder, left):
    """Which leave the annotations; one that was interrupted, or that copies, leaves images, too."""
    root = write_tiny(tmp_path / "tiny-imagenet-200")
    before = data.load_test(config("tiny-imagenet", root))
    for number, path in enumerate(sorted((root / "val" / "images").iterdir())):
        wnid = WNIDS[int(path.stem.removeprefix("val_")) % 3]
        to = root / folder.format(wnid) / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        if left < 12 and number < left:
            continue
        to.write_bytes(path.read_bytes())
        if left < 12:
            path.unlink()
    if folder == "val/{}" and not left:
        (root / "val" / "images").rmdir()
    test = data.load_test(config("tiny-imagenet", root))
    assert sorted(red_values(test)) == sorted(red_values(before)) and len(test) == 12
    assert (red_values(test) // 50 == test.y).all()


def test_classes_have_the_words_of_words_txt(tmp_path):
    root = write_tiny(tmp_path / "tiny-imagenet-200", n=5)
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn99\tentity\nn02\ttench\n")
    settings = config("tiny-imagenet", root, labels=3)
    assert data.load(settings).class_names == ("n03", "n01 (goldfish)", "n02 (tench)")


def test_bad_tiny_imagenet(tmp_path, cache):
    check_refused("no .*wnids.txt.*--data-dir", config("tiny-imagenet", tmp_path))
    root = write_tiny(tmp_path / "tiny-imagenet-200")
    settings = config("tiny-imagenet", root)
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.png\tn99\n")
    data.load(settings)  # which does not read val
    check_refused("no class of wnids.txt for val_0.png", settings, data.load_test)
    annotations.write_text("val_0.png\n")
    check_refused("fewer than two columns", settings, data.load_test)
    shutil.rmtree(root / "val")
    check_refused("val holds no images", settings, data.load_test)
    write_image(root / "train" / "n01" / "images" / "n01_3.png", size=(32, 64))
    check_refused("n01_3.png: it is 32×64", settings)
    (root / "wnids.txt").write_text("n01\nn77\n")
    check_refused("cannot read the folder .*n77", settings)
    (root / "train" / "n77").mkdir()
    check_refused("n77 holds no images", settings)
    (root / "wnids.txt").write_text("n01\nn02\nn01\n")
    check_refused("wnids.txt names n01 twice", settings)
    (root / "wnids.txt").write_text("\n")
    check_refused("names no classes", settings)


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
