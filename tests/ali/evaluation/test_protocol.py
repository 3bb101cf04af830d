"""The protocol of §4.4 against scikit-learn."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from ali.config import Config
from ali.data import Dataset, Images, draw_labelled, pixel_features
from ali.data.labelled import DRAWS_SEED
from ali.evaluation import protocol, svm
from ali.models import inference
from ali.models.networks import build

pytestmark = pytest.mark.numerics

CONFIG = Config(width=0.1, labels=60, draws=2, precision="fp32")


def images(n, seed):
    """Ten classes by the brightness of a patch, under noise: (n, 32, 32, 3), (n,)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n)
    x = rng.integers(0, 100, (n, 32, 32, 3))
    x[:, 8:24, 8:24, 0] += (17 * y)[:, None, None]
    return Images(x.astype(np.uint8), y)


@pytest.fixture(scope="module")
def dataset():
    pool = images(600, 0)
    return Dataset("patches", pool, pool, images(300, 1), 10, "0" * 16)


@pytest.fixture(scope="module")
def networks():
    """Untrained, but for running statistics and biases that are not their initial ones."""
    networks = build(CONFIG)
    rng = torch.Generator().manual_seed(0)
    for name, tensor in networks.state_dict().items():
        if name.endswith(("weight", "bias", "beta")):
            tensor.normal_(0, 0.3, generator=rng)
        elif name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1, generator=rng)
    return networks.train()


def bits(networks):
    return {name: tensor.clone() for name, tensor in networks.state_dict().items()}


def test_an_encoder_that_has_seen_the_data_normalises_it(dataset):
    networks = build(CONFIG).eval()
    weights = {name: weight.clone() for name, weight in networks.named_parameters()}
    x = dataset.train.x[:200]
    assert protocol.features(networks, x).std() < 0.1
    protocol.update_bn_stats(networks, x)
    assert not networks.training
    assert all(torch.equal(w, weights[name]) for name, w in networks.named_parameters())
    hidden = protocol.features(networks, x)[:, : -inference.mu(networks, x).shape[1]]
    assert abs(hidden.mean()) < 0.05 and abs(hidden.std() - 1) < 0.05


def test_features_are_those_of_running_statistics(networks, dataset):
    x = dataset.valid.x[:7]
    before = bits(networks)
    got = protocol.features(networks, x)
    assert got.shape[0] == 7 and got.dtype == np.float32
    # one image at a time gives the same: no statistics of the batch are in it
    np.testing.assert_allclose(protocol.features(networks, x[3:4]), got[3:4], atol=1e-5)
    np.testing.assert_allclose(got[:, -256:], inference.mu(networks, x), atol=1e-5)
    assert networks.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(networks).items())


def test_chunks_do_not_show(networks, dataset, monkeypatch):
    x = dataset.valid.x[:25]
    whole = protocol.features(networks, x)
    monkeypatch.setattr(inference, "CHUNK", 10)
    np.testing.assert_allclose(protocol.features(networks, x), whole, atol=1e-5)


def test_raw_pixel_error_equals_the_protocol_done_with_sklearn(dataset):
    """C from the first draw, then the mean over draws at that C, with LinearSVC throughout."""

    def peer(draw, c):
        rng = np.random.default_rng([DRAWS_SEED, draw])
        rows = draw_labelled(dataset.labelled.y, CONFIG.labels, rng)
        machine = LinearSVC(C=c, dual=True, tol=1e-6, max_iter=20_000, random_state=0)
        machine.fit(dataset.labelled.x[rows].reshape(len(rows), -1) / 255, dataset.labelled.y[rows])
        valid = dataset.valid.x.reshape(len(dataset.valid.x), -1) / 255
        return (machine.predict(valid) != dataset.valid.y).mean()

    got = protocol.raw_pixel_error(dataset, CONFIG)
    encode = pixel_features
    c, error = protocol._pick_c(encode, encode(dataset.valid.x), dataset, CONFIG)
    assert error == pytest.approx(peer(0, c), abs=0.004)  # one image of 300
    near = svm.GRID[np.abs(np.log(svm.GRID / c)) < 2]
    assert min(peer(0, other) for other in near) >= error - 0.004
    assert got == pytest.approx((error + peer(1, c)) / 2, abs=0.004)
    assert 0.02 < got < 0.85


def test_val_error_reads_labels_and_is_the_same_for_every_seed(networks, dataset):
    error = protocol.val_error(networks, dataset, CONFIG)
    assert error == protocol.val_error(networks, dataset, CONFIG.replace(seed=9))
    assert error < 0.85  # chance: 0.9
    shuffled = np.random.default_rng(0).permutation(dataset.labelled.y)
    wrong = dataclasses.replace(dataset, labelled=Images(dataset.labelled.x, shuffled))
    assert protocol.val_error(networks, wrong, CONFIG) > error


def test_val_error_encodes_what_it_needs(networks, dataset, monkeypatch):
    """The validation set once and the drawn labelled images, not the pool."""
    seen = []
    whole = protocol.features
    monkeypatch.setattr(protocol, "features", lambda n, x: seen.append(len(x)) or whole(n, x))
    protocol.val_error(networks, dataset, CONFIG)
    assert sorted(seen) == [60, 60, 300]


def test_test_errors(networks, dataset):
    """On the validation set as test, the first draws' mean is val_error: the same C and draws."""
    errors = protocol.test_errors(networks, dataset, dataset.valid, CONFIG, draws=4)
    assert errors.shape == (4,)
    assert len(set(errors)) > 1
    assert errors[:2].mean() == pytest.approx(
        protocol.val_error(networks, dataset, CONFIG), abs=0.004
    )


def test_non_finite_features(dataset):
    broken = build(CONFIG)
    broken.encoder.layers.rows[-1].bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        protocol.val_error(broken, dataset, CONFIG)
