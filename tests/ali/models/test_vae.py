"""M1 and M2: sizes of the shipped weights, bounds against sums, exact posteriors and Pyro; PCA."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MultivariateNormal, Normal

from ali.config import Config
from ali.data import to_unit
from ali.models.densities import (
    MIN_LOG_VAR,
    bounded,
    kl_from_prior,
    log_normal,
    log_standard_normal,
    one_hot,
    over_labels,
)
from ali.models.registry import create, empty
from ali.models.vae import LabelledVAE, Whitening
from tests.ali.training.states import images

F64 = torch.float64


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def untouched(config):
    """Networks of ten classes whose weights nobody has drawn, which takes longer at full size."""
    return empty(config, {"classes": torch.tensor(10)}, torch.float32)


def made(config, n=40):
    generator = torch.Generator().manual_seed(0)
    return create(config, images().x[:n], 10, generator, torch.float32)


def small(seed=0, size=6, classes=4, z=3, hidden=(8,), std=0.5):
    """M2 on vectors of 6, with weights of a size that matters, in fp64."""
    torch.manual_seed(seed)
    m2 = LabelledVAE(size, classes, z, hidden, F64).double()
    for weight in m2.parameters():
        nn.init.normal_(weight, 0, std)
    return m2


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator, dtype=F64)


def test_sizes_of_the_shipped_weights():
    m1 = untouched(Config(model="vae-m1", components=514))
    assert (parameters(m1.q), parameters(m1.p)) == (808_600, 916_028)
    m1 = untouched(Config(model="vae-m1"))
    assert (parameters(m1.q), parameters(m1.p)) == (851_600, 1_002_200)
    m2 = untouched(Config(model="vae-m2")).m2
    assert (parameters(m2.q), parameters(m2.p)) == (856_600, 1_007_200)
    m2 = untouched(Config(model="vae-m1m2")).m2
    assert [parameters(part) for part in (m2.q, m2.p, m2.classifier)] == [205_600, 331_100, 155_510]
    assert parameters(m2) == 692_210


def test_densities_are_those_of_torch():
    normal = draws()
    x, mu, log_var = normal((5, 3)), normal((5, 3)), normal((5, 3))
    q = Normal(mu, (0.5 * log_var).exp())
    assert torch.allclose(log_normal(x, mu, log_var), q.log_prob(x).sum(-1))
    assert torch.allclose(log_standard_normal(x), Normal(0.0, 1.0).log_prob(x).sum(-1))
    prior = Normal(torch.zeros_like(mu), 1.0)
    kl = torch.distributions.kl_divergence(q, prior).sum(-1)
    assert torch.allclose(kl_from_prior(mu, log_var), kl)


def test_a_log_variance_below_its_bound_can_come_back():
    """Values are those of a clamp; below, only a gradient that lifts is kept."""
    low = MIN_LOG_VAR
    h = torch.tensor([low - 9, low - 9, low, low, low + 1, 3.0], dtype=F64, requires_grad=True)
    slope = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=F64)
    assert torch.equal(bounded(h), h.clamp(min=low))
    (gradient,) = torch.autograd.grad((bounded(h) * slope).sum(), h)
    assert torch.equal(gradient, torch.tensor([0.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=F64))


def lost_units(head, loss):
    """Outputs of a head for log σ² that, far below the bound, have no gradient that lifts them."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(MIN_LOG_VAR - 12)
    (gradient,) = torch.autograd.grad(loss(), head.bias)
    return int((gradient >= 0).sum())


def test_no_unit_of_p_is_lost_below_the_bound():
    m2, y = small(), torch.tensor([0, 2, 3])
    v_l, v = draws(1)((3, 6)), draws(2)((3, 6))
    args = {"label_weight": 0.3, "labels": 3, "images": 50.0}
    assert lost_units(m2.p.heads[1], lambda: m2.loss(v_l, y, v, draws(5), **args)) == 0
    m1 = made(Config(model="vae-m1", width=0.02, components=8)).double()
    m1.compute_in(F64)
    assert lost_units(m1.p.heads[1], lambda: -m1.bound(draws(1)((3, 8)), draws(5)).mean()) == 0


def test_the_unlabelled_bound_is_the_sum_over_y():
    m2, v, every = small(), draws(1)((5, 6)), torch.arange(4)
    eps = draws(2)((5, 4, 3))
    found = m2.unlabelled_bound(v, lambda shape: eps)
    total = torch.zeros(5, dtype=F64)
    for y in every:
        known = m2.bound(v, one_hot(y.expand(5), 4, v), lambda shape, y=y: eps[:, y])
        log_q = m2.log_q(v)[:, y]
        total += log_q.exp() * (known - log_q)
    assert torch.allclose(found, total)


def test_the_best_q_of_y_gives_logsumexp_and_no_other_more():
    bounds = draws()((6, 4))
    assert torch.allclose(over_labels(bounds.log_softmax(1), bounds), bounds.logsumexp(1))
    other = draws(1)((6, 4)).log_softmax(1)
    assert (over_labels(other, bounds) < bounds.logsumexp(1)).all()
    sure = torch.full((6, 4), -1e9, dtype=F64)
    sure[:, 2] = 0
    assert torch.allclose(over_labels(sure, bounds), bounds[:, 2])


def test_the_exact_posterior_gives_the_evidence_for_every_sample():
    """Linear-Gaussian p(v | y, z): log p(v, y, z) − log q(z | v, y) does not depend on z."""
    normal = draws()
    w, mu_y, v = normal((6, 3)), normal((4, 6)), normal((6,))
    s2 = 0.7
    evidence = MultivariateNormal(mu_y, w @ w.T + s2 * torch.eye(6, dtype=F64)).log_prob(v)
    inverse = torch.linalg.inv(torch.eye(3, dtype=F64) + w.T @ w / s2)
    for y in range(4):
        posterior = MultivariateNormal(inverse @ w.T @ (v - mu_y[y]) / s2, inverse)
        for z in normal((5, 3)):
            log_p = log_normal(v, mu_y[y] + w @ z, torch.full((6,), math.log(s2), dtype=F64))
            term = log_p + log_standard_normal(z) - posterior.log_prob(z)
            assert term.item() == pytest.approx(evidence[y].item(), abs=1e-9)


def test_bounds_against_pyro():
    """Mean of many samples, y enumerated; ours has the KL in closed form, Pyro samples it."""
    pyro = pytest.importorskip("pyro")
    from pyro import distributions as dist
    from pyro.infer import TraceEnum_ELBO, config_enumerate

    m2, v = small(std=0.2), draws(1)((2, 6))
    samples = 3000
    wide = v.repeat_interleave(samples, 0)

    def model(v, y=None):
        with pyro.plate("data", len(v)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(4, dtype=F64) / 4), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
            mean, log_var = m2.p(y, z)
            scale = (0.5 * log_var.clamp(min=-8)).exp()
            pyro.sample("v", dist.Normal(mean, scale).to_event(1), obs=v)

    @config_enumerate
    def guide(v, y=None):
        with pyro.plate("data", len(v)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=m2.log_q(v)))
            mu, log_var = m2.q(v, y)
            pyro.sample("z", dist.Normal(mu, (0.5 * log_var).exp()).to_event(1))

    torch.manual_seed(0)
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    with torch.no_grad():
        theirs = -elbo.loss(model, guide, wide) / samples
        ours = m2.unlabelled_bound(wide, draws(3)).sum().item() / samples
        y = one_hot(torch.tensor([1, 3]), 4, v)
        many = y.repeat_interleave(samples, 0)
        theirs_known = -elbo.loss(model, guide, wide, many) / samples
        ours_known = m2.bound(wide, many, draws(4)).sum().item() / samples
    assert ours == pytest.approx(theirs, rel=0.03)
    assert ours_known == pytest.approx(theirs_known, rel=0.03)


def test_gradients_of_m2_are_those_of_finite_differences():
    m2, y = small(), torch.tensor([0, 2, 3])
    v_l, v = draws(1)((3, 6)), draws(2)((3, 6))

    def loss():
        return m2.loss(v_l, y, v, draws(5), label_weight=0.3, labels=3, images=50.0)

    check_gradients(loss, list(m2.parameters()))


def check_gradients(loss, weights, step=1e-6):
    """Along a random direction of each weight, in fp64."""
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    seen = 0
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=generator, dtype=F64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * step * direction)
                values.append(loss().item())
                weight.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        found = 0.0 if gradient is None else (gradient * direction).sum().item()
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-6 * max(1.0, abs(values[0])))
        seen += abs(found) > 1e-6
    assert seen > len(weights) // 2


def test_whitening_is_that_of_scikit_learn_and_has_an_inverse():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), np.uint8)
    whitening = Whitening((3, 4, 4), 20)
    whitening.fit(x, torch.Generator())
    pixels = to_unit(torch.from_numpy(x))
    v = whitening(pixels)
    assert v.var(0).numpy() == pytest.approx(np.ones(20), rel=1e-4)
    theirs = PCA(20, whiten=True).fit_transform(pixels.flatten(1).numpy())
    assert np.abs(v.numpy()) == pytest.approx(np.abs(theirs), abs=2e-3)
    whole = Whitening((3, 4, 4), 10_000)
    whole.fit(x, torch.Generator())
    assert torch.allclose(whole.pixels(whole(pixels)), pixels, atol=1e-4)


def test_fewer_images_than_components_leave_the_others_at_0():
    whitening = Whitening((3, 32, 32), 600)
    whitening.fit(images().x, torch.Generator())
    v = whitening(to_unit(torch.from_numpy(images().x)))
    assert v[:, 39:].abs().max() == 0 and v.isfinite().all()


def test_unlabelled_images_count_however_few_they_are():
    """The labelled images are drawn from the whole pool, of which --train-size may be a part."""
    networks = made(Config(model="vae-m2", width=0.1, labels=1000), n=40)
    networks.begin_epoch(0, 1)
    assert networks.n == 1040


def test_m2_waits_for_m1_and_never_goes_back():
    config = Config(model="vae-m1m2", width=0.1)
    networks = made(config)
    order = []
    for epoch, epochs in ((0, 4), (1, 4), (2, 4), (3, 40)):
        networks.begin_epoch(epoch, epochs)
        order.append(networks.of_m2)
    assert order == [False, False, True, True]
    again = made(config.replace(m1_epochs=1))
    again.load_state_dict(made(config.replace(m1_epochs=3)).state_dict())
    again.begin_epoch(1, 100)
    assert again.of_m2


def test_classes_of_samples_are_uniform():
    networks = made(Config(model="vae-m2", width=0.1))
    generator = torch.Generator().manual_seed(0)
    y, _ = networks.sample_prior(4000, lambda shape: torch.randn(shape, generator=generator))
    share = y.mean(0)
    assert torch.allclose(share, torch.full((10,), 0.1), atol=0.02)
    assert Categorical(share).entropy() > 2.29
