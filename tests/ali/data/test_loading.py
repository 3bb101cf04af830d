"""ali.data: what load gives of each split, what it refuses, and batches."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from ali import data
from ali.config import Config, DataName
from ali.data import house_numbers, splits
from ali.errors import UserError
from ali.experiment import new_state
from tests.ali.data.conftest import svhn_config, write_mat


def test_every_name_of_a_data_set_can_be_loaded():
    assert set(data.DATASETS) == set(get_args(DataName))


def test_extra_is_what_the_model_trains_on(monkeypatch, few):
    """At paper scale the validation set is a fixed number of the last images of train."""
    monkeypatch.setattr(house_numbers, "SIZES", {"train": 900, "test": 400, "extra": 5000})
    monkeypatch.setattr(splits, "LARGE_TRAIN", 800)
    made = data.DATASETS["house-numbers"]
    at_scale = lambda *asked: dataclasses.replace(made(*asked), large_valid=200)  # noqa: E731
    monkeypatch.setitem(data.DATASETS, "house-numbers", at_scale)
    dataset = data.load(few.replace(train_size=1000))
    assert [len(part) for part in (dataset.train, dataset.labelled, dataset.valid)] == [
        1000,
        700,
        200,
    ]
    assert (dataset.train.x[:250] == next(house_numbers.generate("extra", 250))[0]).all()


def test_test_split_is_never_read_by_load(few, cache, tmp_path):
    data.load(few)
    assert not any("test" in path.name for path in cache.iterdir())
    path = write_mat(tmp_path / "files")
    (tmp_path / "files" / "test_32x32.mat").write_bytes(b"not read")
    data.load(svhn_config(path.parent))
    with pytest.raises(UserError, match="test_32x32"):
        data.load_test(svhn_config(path.parent))


def test_images_that_are_all_the_same_are_nothing_to_judge_by(tmp_path):
    """Between them there is no distance, which looked like divergence."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (32, 32)).save(folder / f"{number}.png")
    config = Config(data="folder", data_dir=folder, batch_size=8)
    dataset = data.load(config)
    with pytest.raises(UserError, match=r"all \d+ images to validate with are the same"):
        new_state(config, dataset)
    with pytest.raises(UserError, match=r"folder: all \d+ images to test with are the same"):
        data.load_test(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": 401}, "--labels 401: the labelled pool has 400"),
        ({"labels": 400}, "a balanced draw takes 40 of each class"),
        ({"train_size": 401}, "--train-size 401: svhn has 400 training images"),
        ({"train_size": 20}, "--batch-size 50 is more than the 20 training images"),
        ({"batch_size": 401}, "--batch-size 401 is more than the 400"),
    ],
)
def test_more_asked_for_than_there_is(tmp_path, changes, message):
    path = write_mat(tmp_path / "files")
    with pytest.raises(UserError, match=message):
        data.load(svhn_config(path.parent, **changes))


def test_bad_places(tmp_path, cache, monkeypatch):
    with pytest.raises(UserError, match="is not a folder"):
        data.load(svhn_config(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*train_32x32.mat .*No such file"):
        data.load(svhn_config(tmp_path / "empty"))
    with pytest.raises(UserError, match="leave out --data-dir"):
        data.load(Config(data_dir=tmp_path))
    path = write_mat(tmp_path / "files")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF" * 200)
    with pytest.raises(UserError, match="save it with -v7"):
        data.load(svhn_config(path.parent))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALI_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set ALI_CACHE"):
        data.load(Config())


def test_to_unit():
    x = torch.randint(0, 256, (4, 32, 16, 3), dtype=torch.uint8)
    unit = data.to_unit(x)
    assert unit.shape == (4, 3, 32, 16) and unit.dtype == torch.float32
    assert unit.is_contiguous(memory_format=torch.channels_last)
    assert (
        unit.numpy() == x.numpy().transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    ).all()


def test_batches_cover_each_image_once():
    x = torch.arange(103).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)

    def epoch(seed, size=10):
        generator = torch.Generator().manual_seed(seed)
        got = list(data.batches(x, size, generator))
        assert all(batch.shape == (size, 3, 2, 2) for batch in got)
        return torch.cat(got)[:, 0, 0, 0].mul(255).round().int().tolist()

    assert len(epoch(0)) == len(set(epoch(0))) == 100  # the short batch is dropped
    assert sorted(epoch(0, size=103)) == list(range(103))
    assert epoch(0) == epoch(0) != epoch(1)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.cat(list(data.batches(x, 10, generator))) for _ in range(2)]
    assert not torch.equal(*orders)  # each epoch in another order
