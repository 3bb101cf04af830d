"""K classes and an implied fake one: against the binary loss, and known values."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ali.config import Config
from ali.models import narrow
from ali.models.base import Noise
from ali.models.labelled import feature_distance, unlabelled_loss
from ali.models.registry import create
from ali.models.tables import paper_table
from ali.training.losses import losses
from tests.ali.models.test_vae import untouched
from tests.ali.training.states import images

K = 10
SMALL = Config(model="ali-labels", width=0.1, precision="fp32")


def networks(config=SMALL):
    generator = torch.Generator().manual_seed(0)
    return create(config, images().x, K, generator, torch.float32).train()


def batch(seed=0, n=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 32, 32, generator=generator)
    return x, torch.arange(n) % K


def noise(seed=0):
    return Noise(torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_the_losses_are_the_binary_ones_of_logsumexp():
    """ALI's loss of the discriminator is twice the unlabelled one: it has no ½."""
    generator = torch.Generator().manual_seed(0)
    of_x, of_samples = (3 * torch.randn(7, K, generator=generator).double() for _ in range(2))
    s_q, s_p = of_x.logsumexp(1), of_samples.logsumexp(1)
    binary, _ = losses(s_q, s_p)
    assert 2 * unlabelled_loss(s_q, s_p) == pytest.approx(binary.item(), rel=1e-6)
    # against K + 1 classes of which the last has the logit 0: −log Σ_k p(k), and −log p(fake)
    both = [F.pad(logits, (0, 1)).log_softmax(1) for logits in (of_x, of_samples)]
    real, fake = both[0][:, :K].logsumexp(1), both[1][:, K]
    expected = -0.5 * real.mean() - 0.5 * fake.mean()
    assert unlabelled_loss(s_q, s_p).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_free_logit_of_the_fake_class_adds_nothing():
    """A K + 1-th logit equals ours once it is taken off the others."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, K + 1, generator=generator).double()
    s = (logits[:, :K] - logits[:, K:]).logsumexp(1)
    p = logits.softmax(1)
    assert torch.allclose(s.sigmoid(), p[:, :K].sum(1))
    assert torch.allclose((-s).sigmoid(), p[:, K])


@pytest.mark.parametrize("model", ["ali-labels", "gan-labels"])
def test_losses_of_zero_logits(model):
    """log 10 for the labelled, 1.246603 and 2.493205 for the others, at weights of 1."""
    made = networks(Config.of_model(model).replace(width=0.1, precision="fp32"))
    last = made.discriminator.xz.rows[-1]
    nn.init.zeros_(last.weight)
    loss_d, loss_g = made.losses(batch()[0], batch(1), noise())
    assert loss_d.item() == pytest.approx(2.302585 + 1.246603, abs=1e-5)
    if model == "ali-labels":
        assert loss_g.item() == pytest.approx(2.493205, abs=1e-5)


def test_labels_weigh_as_asked_and_reach_the_discriminator_alone():
    x, known = batch()[0], batch(1)
    found = {}
    for weight in (0.0, 1.0, 3.0):
        made = networks(SMALL.replace(label_weight=weight, dropout_x=0.0, dropout_z=0.0))
        found[weight] = made.losses(x, known, noise())
    assert found[0.0][1].item() == found[3.0][1].item()
    error = found[1.0][0] - found[0.0][0]
    assert (found[3.0][0] - found[0.0][0]).item() == pytest.approx(3 * error.item(), rel=1e-4)


def test_feature_matching_compares_means_of_units():
    h, h_tilde = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[1.0, 1.0], [1.0, 7.0]])
    assert feature_distance(h, h_tilde).item() == 1.0  # |1 − 1| and |2 − 4|
    made = networks(Config.of_model("gan-labels").replace(width=0.1, precision="fp32"))
    loss_g = made.losses(batch()[0], batch(1), noise())[1]
    theta = list(made.discriminator.xz.rows[-1].parameters())
    assert torch.autograd.grad(loss_g, theta, allow_unused=True) == (None,) * len(theta)


@pytest.mark.parametrize("compiled", [True, False])
def test_features_are_matched_before_the_dropout_of_the_last_layer(compiled):
    """That dropout would be noise in the difference of the means; the logits still have it."""
    made = networks(Config.of_model("gan-labels").replace(width=0.1, dropout_xz=0.5))
    with contextlib.nullcontext() if compiled else narrow.left_out():
        hidden, logits = made.discriminator.with_penultimate(
            (batch()[0],), (), torch.Generator().manual_seed(0), before_dropout=True
        )
        dropped, same = made.discriminator.with_penultimate(
            (batch()[0],), (), torch.Generator().manual_seed(0)
        )
    assert (hidden == 0).float().mean() < 0.01 < 0.4 < (dropped == 0).float().mean()
    kept = dropped != 0
    assert torch.allclose(hidden[kept], dropped[kept] / 2, rtol=1e-2)
    assert torch.allclose(logits, same, rtol=1e-2, atol=1e-4)


def test_codes_of_labelled_images_train_the_encoder_nowhere(monkeypatch):
    """Not through the batch norm that D(z) and D(x, z) share with the others' codes, either."""
    made = networks(SMALL.replace(bn_z=True, bn_xz=True))
    seen = []
    codes = type(made).codes
    monkeypatch.setattr(
        type(made), "codes", lambda self, x, n: seen.append(codes(self, x, n)) or seen[-1]
    )
    loss_g = made.losses(batch()[0], batch(1), noise())[1]
    of_labelled, of_images = torch.autograd.grad(
        loss_g, [seen[0][0], seen[1][0]], allow_unused=True
    )
    assert of_labelled is None and of_images.abs().sum() > 0


@pytest.mark.parametrize("levels", [1, 2])
def test_it_classifies_at_the_mean_or_a_sample_of_z(levels):
    """The mean is the same on every call; with one level it is G_z's μ."""
    x = batch()[0]
    mean = networks(SMALL.replace(levels=levels)).eval()
    draw = noise().normal
    scores = mean.class_scores(x, draw)
    assert torch.equal(scores, mean.class_scores(x, draw))
    if levels == 1:
        _, logits = mean.discriminator.with_penultimate((x,), (mean.encoder(x)[0],))
        assert torch.allclose(scores, logits)
    sampled = networks(SMALL.replace(levels=levels, predict_z="sample")).eval()
    assert not torch.equal(sampled.class_scores(x, draw), sampled.class_scores(x, draw))


def test_sizes():
    """D of Table 3 with 10 outputs: its last row has ten times the weights."""
    rows = {
        model: untouched(Config(model=model)) for model in ("ali-labels", "gan-labels", "convnet")
    }
    weights = {
        model: sum(layer.weight.numel() for layer in _rows(made)) for model, made in rows.items()
    }
    assert weights["ali-labels"] == 5_288_288
    assert weights["gan-labels"] == weights["convnet"]
    assert paper_table(Config()).d_xz[-1].maps == 1  # the table itself stays


def _rows(made):
    parts = (made.discriminator.x, getattr(made.discriminator, "z", None), made.discriminator.xz)
    return [layer for part in parts if part is not None for layer in part.rows]


def test_the_convnet_never_looks_at_other_images():
    made = networks(Config.of_model("convnet").replace(width=0.1, precision="fp32"))
    known = batch(1)
    (one,), (other,) = (made.losses(batch(seed)[0], known, noise(3)) for seed in (0, 5))
    assert one.item() == other.item() and one.item() == pytest.approx(math.log(K), abs=0.01)
