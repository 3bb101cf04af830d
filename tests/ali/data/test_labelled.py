"""ali.data.labelled: labelled draws, and pixels as features."""

import numpy as np
import pytest
import torch

from ali import data
from ali.config import Config
from ali.data.labelled import DRAWS_SEED, check_draws
from ali.errors import UserError
from tests.ali.data.conftest import check_refused, svhn_config, write_mat


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


def test_random_draws_may_take_the_whole_pool(tmp_path):
    path = write_mat(tmp_path / "files")
    assert len(data.load(svhn_config(path.parent, labels=400, balanced=False)).labelled) == 400


def test_balanced_draw_of_200_classes_says_which_lacks():
    y = np.repeat(np.arange(200), 6)[:-3]
    message = (
        "--labels 1000: a balanced draw takes 5 of each class, but the pool has 3 of class 199"
    )
    with pytest.raises(UserError, match=message):
        data.draw_labelled(y, 1000, np.random.default_rng(0), classes=200)


@pytest.mark.parametrize(
    ("y", "settings"),
    [
        ([0] * 300, {"labels": 20}),
        ([0] * 300, {"labels": 20, "balanced": False}),
        ([0] * 290 + [1] * 10, {"labels": 5, "balanced": False}),  # chance, in some draw
        ([0, 1] * 150, {"labels": 1}),
    ],
)
def test_a_draw_of_one_class_is_noticed_before_anything_is_trained(y, settings):
    with pytest.raises(UserError, match=r"--labels .* has class \d alone"):
        check_draws(np.array(y), Config(**settings), max(y) + 1)


def test_draws_of_several_classes_pass():
    y = np.array([0] * 290 + [1] * 10)
    check_draws(y, Config(labels=20), 2)
    check_draws(y, Config(labels=291, balanced=False), 2)
    check_draws(np.arange(300) % 10, Config(labels=20, balanced=False), 10)


def test_classes_that_lack_images_are_named():
    y = np.repeat([0, 1, 2], [9, 2, 3])
    pool = data.Images(np.zeros((14, 4, 4, 3), np.uint8), y)
    names = ("cats", "dogs", "owls")
    dataset = data.Dataset("folder", pool, pool, pool, 3, "", class_names=names)
    message = "the pool has 2 of class dogs, 3 of class owls; ask for fewer"
    with pytest.raises(UserError, match=message):
        data.labelled_draw(dataset, Config(labels=12), 0)


@pytest.mark.parametrize(
    "name, shown",
    [
        ("cifar10", "the pool has 0 of class cat; ask"),
        ("mixture", r"the pool has \d+ of class \(-?[02], -?[02]\), \d+ of class \("),
    ],
)
def test_classes_have_the_names_that_their_data_set_gives_them(tmp_path, name, shown):
    from tests.ali.data.test_cifar10 import batch, write_batch

    one = batch(100)
    one["labels"] = [label for label in range(10) if label != 3] * 11 + [0]
    write_batch(tmp_path / "files", "data_batch_1", one)
    settings = Config(data=name, labels=20, batch_size=4)
    if name == "cifar10":
        settings = settings.replace(data_dir=tmp_path / "files")
    else:
        settings = settings.replace(labels=100_000)
    check_refused(shown, settings)


def test_labelled_draws_are_those_of_their_number_for_every_seed():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 4, 4, 3), dtype=np.uint8)
    pool = data.Images(x, rng.permutation(np.arange(200) % 10))
    dataset = data.Dataset("svhn", pool[:100], pool, pool[:50], 10, "")
    config = Config(labels=50)
    draws = [data.labelled_draw(dataset, config, number) for number in range(3)]
    for number, (drawn_x, drawn_y) in enumerate(draws):
        rows = data.draw_labelled(pool.y, 50, np.random.default_rng([DRAWS_SEED, number]))
        assert drawn_x.dtype == np.uint8 and np.array_equal(drawn_x, x[rows])
        assert np.array_equal(drawn_y, pool.y[rows])
        again = data.labelled_draw(dataset, config.replace(seed=7), number)
        assert np.array_equal(again[0], drawn_x)
    assert not np.array_equal(draws[0][0], draws[1][0])


def test_pixel_features_are_the_pixels_that_networks_see():
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    features = data.pixel_features(x)
    assert features.shape == (5, 72) and features.dtype == np.float32
    unit = data.to_unit(torch.from_numpy(x)).permute(0, 2, 3, 1).flatten(1).numpy()
    assert np.array_equal(features, unit)
    points = np.float32([[0.5, -2.0], [4.0, 0.0]])
    assert np.array_equal(data.pixel_features(points.reshape(2, 1, 1, 2)), points)
