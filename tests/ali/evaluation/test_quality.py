"""ali.evaluation.quality: measures where their value is known, and ordered as eyes would do it."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from ali.config import Config
from ali.data import Dataset, Images, house_numbers, mixture
from ali.errors import UserError
from ali.evaluation import quality
from ali.metrics import (
    CODE_USE,
    MODES_MISSED,
    NEAR_MODES,
    PRIOR_GAP,
    RECONSTRUCTION_DISTANCE,
    SAMPLE_DISTANCE,
    SAMPLE_DIVERSITY,
    SAMPLE_SEPARATION,
)
from ali.models import inference, networks

pytestmark = pytest.mark.numerics

N = 300  # images in each half of the pictures
OF_SAMPLES = {SAMPLE_DISTANCE, SAMPLE_DIVERSITY, SAMPLE_SEPARATION}
IMAGE_CONFIG = Config(width=0.1, precision="fp32")


def dataset_of(x, y=None):
    images = Images(x, y)
    return Dataset("given", images, images, images, 10, "0" * 16)


@pytest.fixture(scope="module")
def pictures():
    """House numbers, uint8 (2N, 32, 32, 3)."""
    blocks = house_numbers.generate("train", 2 * N)
    return np.concatenate([x for x, _ in blocks])


@pytest.fixture(scope="module")
def pair(pictures):
    """Two disjoint halves, fp32 (N, 3, 32, 32)."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return x[:N], x[N:]


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def features(x):
    return quality.RandomFeatures()(x).numpy()


def shuffled(x):
    """The images' sixteen 8×8 blocks, in another order."""
    blocks = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, [5, 12, 0, 9, 14, 3, 8, 1] * 2]
    return blocks.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


# Distance


def test_frechet_distance_is_heusels_formula():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200, 5)), 2 * rng.standard_normal((300, 5)) + 1
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(c_a @ c_b).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c_a + c_b - 2 * root)
    assert quality.frechet_distance(a, b) == pytest.approx(want, rel=1e-6)
    assert quality.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert quality.frechet_distance(a, a + np.array([3, 0, 4, 0, 0])) == pytest.approx(25, rel=1e-6)


def test_frechet_distance_is_that_of_torchmetrics(pair):
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Given(torch.nn.Identity):
        num_features = 304

    distance = fid.FrechetInceptionDistance(feature=Given())
    for x, real in ((pair[0], True), (pair[1] ** 2, False)):
        distance.update(torch.from_numpy(features(x)).double(), real=real)
    own = quality.frechet_distance(features(pair[1] ** 2), features(pair[0]))
    assert own == pytest.approx(float(distance.compute()), rel=1e-6)


def test_distance_with_fewer_images_than_features(pair):
    few = features(pair[0][:20])
    assert quality.frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_distance_orders_samples_as_eyes_do(pair):
    """Held-out images are nearest; every fault is farther, the worse the farther."""
    real, held_out = pair
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))

    def distance(x_tilde):
        return quality.frechet_distance(features(x_tilde), features(real))

    near = distance(held_out)
    faults = {
        "blur": [distance(gaussian_blur(held_out, [9, 9], [s, s])) for s in (0.7, 1.5, 4)],
        "noise": [distance((held_out + s * noise).clamp(0, 1)) for s in (0.05, 0.1, 0.3)],
        "fewer": [distance(held_out[:k].repeat(N // k, 1, 1, 1)) for k in (100, 10, 1)],
        "paler": [distance(held_out * (1 - s)) for s in (0.2, 0.5, 1)],
    }
    for name, distances in faults.items():
        assert all(a < b for a, b in itertools.pairwise([near, *distances])), (name, near, faults)
    assert distance(shuffled(held_out)) > 3 * near
    blurred = faults["blur"][1]
    for collapsed in (held_out[:1], held_out.mean(0, keepdim=True), torch.zeros(1, 3, 32, 32)):
        assert distance(collapsed.expand_as(real)) > 20 * near, near
        assert distance(collapsed.expand_as(real)) > 5 * blurred
    assert distance(noise.abs().clamp(max=1)) > 20 * near


def test_features_are_the_same_bits_each_time(pair):
    state = torch.get_rng_state()
    one, other = features(pair[0]), features(pair[0])
    assert np.array_equal(one, other) and one.shape == (N, 304) and one.dtype == np.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_features_of_even_images_are_their_colour_alone():
    x = torch.linspace(0, 1, 15).view(5, 3, 1, 1).expand(-1, -1, 32, 32)
    colours, patterns = np.split(features(x), [48], axis=1)
    np.testing.assert_allclose(colours.reshape(5, 3, 16), x[:, :, 0, :16], rtol=1e-5)
    np.testing.assert_allclose(patterns, 0, atol=1e-5)


def test_features_take_64_pixels(pair):
    doubled = F.interpolate(pair[0], scale_factor=2)
    assert features(doubled).shape == (N, 304)


# Diversity


def test_diversity_of_collapse_data_and_half(pair):
    real, held_out = map(features, pair)
    assert quality.diversity(real[:1].repeat(N, axis=0), real) == 0
    assert quality.diversity(real, real) == 1
    assert quality.diversity(held_out, real) == pytest.approx(1, abs=0.1)
    m = real.mean(axis=0)
    assert quality.diversity(m + (real - m) / 2, real) == pytest.approx(0.5, abs=1e-5)
    # two images, drawn evenly: half of the pairs are of one image
    two = np.array([[0.0, 0.0], [3.0, 4.0]]).repeat(1000, axis=0)
    gauss = np.random.default_rng(0).standard_normal((2000, 2))
    mean = math.sqrt(math.pi)  # of ‖a − b‖ in the plane
    assert quality.diversity(two, gauss) == pytest.approx(2.5 / mean, rel=0.03)


def test_separation_shows_a_few_pictures_that_repeat(pair):
    """Ten pictures with a little noise are nearly as different from each other as the data."""
    real, held_out = map(features, pair)
    noise = torch.randn(pair[1].shape, generator=torch.Generator().manual_seed(0))
    ten = features((pair[1][torch.arange(N) % 10] + 0.02 * noise).clamp(0, 1))
    assert quality.diversity(ten, real) > 0.75 and quality.separation(ten, real) < 0.25
    assert quality.separation(held_out / 3, real) == pytest.approx(1, abs=0.1)
    blurred = F.interpolate(F.avg_pool2d(pair[1], 4), scale_factor=4, mode="bilinear")
    assert quality.separation(features(blurred), real) > 0.6


def test_separation_by_hand():
    line, pair = np.array([[0.0], [1.0], [4.0]]), np.array([[0.0], [5.0]])
    assert quality.separation(line, pair) == pytest.approx((1 + 1 + 3) / (1 + 3 + 4))
    assert quality.separation(pair.repeat(2, 0), line) == 0 < quality.separation(line, 0 * pair)
    assert quality.separation(line, pair.repeat(3, axis=0)) == quality.separation(line, pair)


# Use of the code


def test_code_use_of_known_reconstructions(pair):
    real = features(pair[0])
    assert quality.code_use(real, real) == 1
    assert quality.code_use(real, real[:1].repeat(N, axis=0)) == pytest.approx(0, abs=1e-12)
    # another image each time: ẑ misleads as often as it helps
    rng = np.random.default_rng(0)
    assert quality.code_use(real, rng.permutation(real)) == pytest.approx(0, abs=0.05)
    between = [
        quality.code_use(real, real + s * rng.standard_normal(real.shape)) for s in (0.02, 0.05)
    ]
    assert 1 > between[0] > between[1] > 0.05


def test_code_use_by_hand():
    x = np.array([[0.0], [10.0]])
    # own: 1 and 1; the other's: |0 − 9| = 9 and |10 − 1| = 9
    assert quality.code_use(x, np.array([[1.0], [9.0]])) == pytest.approx(1 - 1 / 9)


# Prior


def test_prior_gap_is_the_kl_of_gaussians():
    rng = np.random.default_rng(0)
    e = rng.standard_normal((100_000, 3))
    e = (e - e.mean(axis=0)) / e.std(axis=0)  # moments exactly those of the prior
    assert quality.prior_gap(e) == pytest.approx(0, abs=1e-12)
    m, s = np.array([0.5, -1.0, 0.0]), np.array([1.0, 2.0, 0.1])
    prior = torch.distributions.Normal(0.0, 1.0)
    fitted = torch.distributions.Normal(torch.tensor(m), torch.tensor(s))
    want = torch.distributions.kl_divergence(fitted, prior).mean()
    assert quality.prior_gap(m + s * e) == pytest.approx(float(want))


def test_prior_gap_of_a_constant_code_is_large_and_finite():
    assert quality.prior_gap(np.zeros((10, 4))) == pytest.approx(0.5 * (math.log(1e12) - 1))


# measure: what is taken of the networks


class Ideal(torch.nn.Module):
    """Networks of the mixture without fault: ẑ_L is x, moved to the prior's moments; the levels
    below are noise that nothing depends on. `forget`: the decoder ignores ẑ."""

    def __init__(self, x, levels=1, forget=False):
        super().__init__()
        flat = torch.from_numpy(x).flatten(1)
        self.m, self.s, self.levels = flat.mean(0), flat.std(0, correction=0), levels
        self.scale = torch.nn.Parameter(torch.tensor(0.0 if forget else 1.0))
        self.encoder, self.decoder = SimpleNamespace(sample=self.sample), IdealDecoder(self)

    def require_encoder(self):
        return self.encoder

    def sample(self, x, normal):
        return self.on_top(x.flatten(1), normal)

    def on_top(self, x, normal):
        below = [normal(tuple(x.shape)) for _ in range(self.levels - 1)]
        return (*below, (x - self.m) / self.s)


class IdealDecoder:
    def __init__(self, networks):
        self.networks = networks

    def __call__(self, *z):
        n = self.networks
        return (n.m + n.scale * n.s * z[-1])[:, :, None, None]

    def sample_prior(self, n, normal):
        return self.networks.on_top(
            torch.from_numpy(mixture.sample_points(n, 9, seed=9)[0]), normal
        )


def points(n=1500):
    x, _ = mixture.sample_points(n, 9, seed=1)
    return x.reshape(-1, 1, 1, 2)


@pytest.mark.parametrize("levels", [1, 3])
def test_measures_of_networks_without_fault(levels):
    x = points()
    found = quality.measure(Ideal(x, levels), dataset_of(x), Config(data="mixture", levels=levels))
    assert found.pop(MODES_MISSED) == 0
    assert found.pop(NEAR_MODES) == pytest.approx(0.989, abs=0.005)
    assert found.pop(RECONSTRUCTION_DISTANCE) == pytest.approx(0, abs=1e-6)
    assert found.pop(CODE_USE) == pytest.approx(1, abs=1e-6)
    assert found.pop(PRIOR_GAP) == pytest.approx(0, abs=0.01)
    assert not found


def test_measures_of_networks_that_forget():
    """Every z is decoded to the data's mean, the middle mode."""
    x = points()
    found = quality.measure(Ideal(x, forget=True), dataset_of(x), Config(data="mixture"))
    assert found[MODES_MISSED] == 8 and found[NEAR_MODES] == 1
    assert found[CODE_USE] == pytest.approx(0, abs=1e-6)
    assert found[RECONSTRUCTION_DISTANCE] > 1.5


@pytest.mark.parametrize(
    "config, measured",
    [
        (IMAGE_CONFIG, {*OF_SAMPLES, CODE_USE, PRIOR_GAP}),
        (IMAGE_CONFIG.replace(model="gan"), OF_SAMPLES),
        (
            Config(data="mixture", width=0.1),
            {MODES_MISSED, NEAR_MODES, CODE_USE, PRIOR_GAP, RECONSTRUCTION_DISTANCE},
        ),
        (Config(data="mixture", width=0.1, model="gan"), {MODES_MISSED, NEAR_MODES}),
        (Config(data="folder", image_size=64, width=0.1), None),
    ],
    ids=["ali", "gan", "mixture", "mixture gan", "64 pixels"],
)
def test_measures_repeat_and_leave_no_trace(config, measured, pictures, no_weights):
    x = points(40) if config.data == "mixture" else pictures[:40]
    if config.image_size == 64:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    built = networks.build(config).train()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = quality.measure(built, dataset_of(x), config)
    if measured is not None:
        assert set(found) == measured
    assert all(math.isfinite(value) for value in found.values())
    torch.rand(7)  # what is drawn elsewhere in between does not matter
    assert quality.measure(built, dataset_of(x), config) == found
    assert built.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())
    torch.set_rng_state(states[0])
    quality.measure(built, dataset_of(x), config)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_a_dead_decoder_shows(pictures, no_weights):
    """All weights 0: every sample and reconstruction is the bias, every ẑ the same noise's."""
    built = networks.build(IMAGE_CONFIG)
    with torch.no_grad():
        for parameter in built.decoder.parameters():
            parameter.zero_()
    found = quality.measure(built, dataset_of(pictures[:100]), IMAGE_CONFIG)
    assert found[SAMPLE_DIVERSITY] == found[SAMPLE_SEPARATION] == 0
    assert found[CODE_USE] == pytest.approx(0, abs=1e-9)


def test_at_most_1000_images_are_looked_at_from_everywhere(monkeypatch, pictures, no_weights):
    monkeypatch.setattr(quality, "IMAGES", 50)
    seen = []
    chunks = inference.chunks
    monkeypatch.setattr(inference, "chunks", lambda n, x: (seen.append(x), chunks(n, x))[1])
    quality.measure(networks.build(IMAGE_CONFIG), dataset_of(pictures[:200]), IMAGE_CONFIG)
    rows = [int((pictures[:200] == image).all(axis=(1, 2, 3)).argmax()) for image in seen[0]]
    assert len(set(rows)) == 50 and min(rows) < 20 and max(rows) > 180


def test_chunks_do_not_show(monkeypatch, pictures, no_weights):
    built, data = networks.build(IMAGE_CONFIG), dataset_of(pictures[:60])
    with torch.no_grad():
        for parameter in built.decoder.parameters():
            parameter.mul_(20)
    whole = quality.measure(built, data, IMAGE_CONFIG)
    monkeypatch.setattr(inference, "CHUNK", 25)
    assert quality.measure(built, data, IMAGE_CONFIG) == pytest.approx(whole, rel=1e-3, abs=1e-3)


def test_what_is_not_finite_is_named(pictures, no_weights):
    built, data = networks.build(IMAGE_CONFIG), dataset_of(pictures[:10])
    last = built.encoder.layers.rows[-1]
    with torch.no_grad():
        last.bias.fill_(1e4)  # σ = exp(10⁴)
    with pytest.raises(FloatingPointError, match=r"^encodings$"):
        quality.measure(built, data, IMAGE_CONFIG)
    with torch.no_grad():
        built.decoder.layers.rows[0].weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match=r"^samples$"):
        quality.measure(built, data, IMAGE_CONFIG)


def test_one_image_is_too_few(pictures):
    with pytest.raises(UserError, match="two validation images"):
        quality.measure(networks.build(IMAGE_CONFIG), dataset_of(pictures[:1]), IMAGE_CONFIG)


# FID


def test_no_fid_without_its_weights(no_weights):
    assert quality.inception_weights() is None


@pytest.mark.slow
def test_fid_where_the_weights_are(no_weights, tmp_path, monkeypatch, pictures, pair):
    """Inception with random weights in the place where torch-fidelity keeps the real ones."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    def download(*_, **__):
        pytest.fail("tried to download the weights")

    monkeypatch.setattr(inception, "load_state_dict_from_url", download)
    path = tmp_path / "hub" / "checkpoints" / quality.INCEPTION_FILE
    path.parent.mkdir(parents=True)
    with monkeypatch.context() as patch:
        kind = inception.FeatureExtractorInceptionV3
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        torch.save(kind("inception-v3-compat", ["2048"]).state_dict(), path)
    assert quality.inception_weights() == path
    x = pair[0][:4]
    cpu = torch.device("cpu")
    assert quality.inception_distance(x, x, path, cpu) == pytest.approx(0, abs=1e-3)
    found = quality.measure(networks.build(IMAGE_CONFIG), dataset_of(pictures[:4]), IMAGE_CONFIG)
    assert found[quality.FID] > 0
