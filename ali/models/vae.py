"""The variational autoencoders of Kingma et al. 2014: M1, M2, and M2 on M1's codes (M1 + M2).

    M1  log p(x) ≥ E_q(z|x) log p(x | z) − KL(q(z | x) ‖ N(0, I))
    M2  log p(x, y) ≥ −L(x, y) =
            E_q(z|x,y) [log p(x | y, z) + log p(y) + log p(z) − log q(z | x, y)]
        log p(x) ≥ −U(x) = Σ_y q(y | x) [−L(x, y) − log q(y | x)]

M2 minimises Σ_labelled L + Σ_unlabelled U + α N / N_l Σ_labelled −log q(y | x), here divided by the
number N of training images. y is summed exactly, KL(q(z | x, y) ‖ p(z)) is in closed form.

As their code has it: pixels less their mean, whitened by PCA; softplus units; Gaussian p with
learned variance; a N(0, 1) prior on M2's weights. Ours, since they say nothing or it does not suit
short budgets: the initial weights of M2 with two hidden layers, since with theirs, N(0, 0.001²),
the loss stayed level for 1500 steps on two moons; for M2 on M1's codes the sizes of their MNIST
experiment (one layer of 500, z of 50); as many labelled as other images per step, weighted by
their share of the data; Adam with its bias correction; the variance of p bounded below
(densities.MIN_LOG_VAR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali.config import Config
from ali.data import to_unit
from ali.metrics import LOSS
from ali.models.base import Labelled, LatentModel, Noise, Normal
from ali.models.densities import (
    DenseNetwork,
    bounded,
    draw_normal,
    kl_from_prior,
    log_normal,
    one_hot,
    over_labels,
    random_classes,
)

PCA_IMAGES = 10_000
HIDDEN = 500  # units of a hidden layer at width 1
M1_CODE = 300  # dimensions of M1's z below M2
M2_STD = 0.001  # of the initial weights of M2 with one hidden layer


class Whitening(nn.Module):
    """Pixels ↔ principal components of training images, each of variance 1 there."""

    mean: Tensor
    basis: Tensor
    std: Tensor

    def __init__(self, image: tuple[int, int, int], components: int) -> None:
        super().__init__()
        self.image, pixels = image, math.prod(image)
        components = min(components, pixels)
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, components))
        self.register_buffer("std", torch.ones(components))

    def fit(self, x: np.ndarray, generator: torch.Generator) -> None:
        """Takes the components of 10,000 images x, uint8 (N, H, W, C), drawn at random.

        Components without variance, as with fewer images than components, are always 0.
        """
        from sklearn.decomposition import PCA

        chosen = torch.randperm(len(x), generator=generator)[:PCA_IMAGES].sort().values.numpy()
        rows = to_unit(torch.from_numpy(x[chosen])).flatten(1).double().numpy()
        components = min(self.basis.shape[1], len(rows) - 1)
        solver = "covariance_eigh" if len(rows) > rows.shape[1] else "full"
        found = PCA(components, svd_solver=solver).fit(rows)
        self.mean.copy_(torch.from_numpy(found.mean_))
        self.basis.zero_()
        self.basis[:, :components] = torch.from_numpy(found.components_.T)
        self.std[:components] = torch.from_numpy(np.sqrt(found.explained_variance_))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1] → (B, components)."""
        return (x.flatten(1) - self.mean) @ self.basis / self.std.clamp(min=1e-6)

    def pixels(self, v: Tensor) -> Tensor:
        """The inverse, on the components that are kept; images are clamped to [0, 1]."""
        x = (self.mean + (v * self.std) @ self.basis.T).unflatten(1, self.image)
        return x if self.image[1] == 1 else x.clamp(0, 1)


class M1(LatentModel):
    """The VAE without labels. SVMs classify the means of its codes."""

    LOSSES = (LOSS,)

    def __init__(
        self, image: tuple[int, int, int], config: Config, dtype: torch.dtype, z: int
    ) -> None:
        super().__init__(config.model, image)
        self.whitening = Whitening(image, config.setting("components"))
        size, hidden = self.whitening.basis.shape[1], [_units(config)] * 2
        self.q = DenseNetwork([size], hidden, [z, z], F.softplus, dtype)
        self.p = DenseNetwork([z], hidden, [size, size], F.softplus, dtype)
        self.z = z

    def initialise(self, x: np.ndarray, generator: torch.Generator) -> None:
        self.whitening.fit(x, generator)
        for layer in self.q.linears() + self.p.linears():
            nn.init.normal_(layer.weight, 0, layer.in_features**-0.5, generator=generator)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, 0, 0.01, generator=generator)
        _zero(self.q.heads[1])

    def losses(self, x: Tensor, labelled: Labelled | None, noise: Noise) -> tuple[Tensor, ...]:
        return (-self.bound(self.whitening(x), noise.normal).mean(),)

    def bound(self, v: Tensor, normal: Normal) -> Tensor:
        """A lower bound on log p(v), (B,), from one sample of z."""
        mu, log_var = self.q(v)
        z = draw_normal(normal, mu, log_var)
        mean, log_var_v = self.p(z)
        log_p = log_normal(v, mean, bounded(log_var_v))
        return log_p - kl_from_prior(mu, log_var)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = self.q(self.whitening(x))
        return mu, 0.5 * log_var

    def sample_codes(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        return (draw_normal(normal, *self.q(self.whitening(x))),)

    def sample_prior(self, n: int, normal: Normal) -> tuple[Tensor, ...]:
        return (normal((n, self.z)),)

    def decode(self, *codes: Tensor) -> Tensor:
        return self.whitening.pixels(self.p(codes[0])[0])

    def features(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]


class LabelledVAE(nn.Module):
    """M2 on vectors v (B, size): q(y | v), q(z | v, y) and p(v | y, z)."""

    def __init__(
        self, size: int, classes: int, z: int, hidden: Sequence[int], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.classifier = DenseNetwork([size], hidden, [classes], F.softplus, dtype)
        self.q = DenseNetwork([size, classes], hidden, [z, z], F.softplus, dtype)
        self.p = DenseNetwork([classes, z], hidden, [size, size], F.softplus, dtype)
        self.classes, self.z = classes, z

    def initialise(self, generator: torch.Generator) -> None:
        for network in (self.classifier, self.q, self.p):
            for layer in network.linears():
                if network.others:
                    # With three small factors, noise drowns the gradient of each.
                    nn.init.xavier_uniform_(layer.weight, generator=generator)
                else:
                    nn.init.normal_(layer.weight, 0, M2_STD, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        _zero(self.q.heads[1])

    def log_q(self, v: Tensor) -> Tensor:
        """log q(y | v) (B, K)."""
        return self.classifier(v)[0].log_softmax(dim=-1)

    def bound(self, v: Tensor, y: Tensor, normal: Normal) -> Tensor:
        """−L(v, y), from one sample of z; v and one-hot y broadcast: (B, …)."""
        mu, log_var = self.q(v, y)
        z = draw_normal(normal, mu, log_var)
        mean, log_var_v = self.p(y, z)
        log_p = log_normal(v, mean, bounded(log_var_v))
        return log_p - math.log(self.classes) - kl_from_prior(mu, log_var)

    def unlabelled_bound(self, v: Tensor, normal: Normal) -> Tensor:
        """−U(v) (B,)."""
        every = torch.eye(self.classes, device=v.device, dtype=v.dtype)[None]
        return over_labels(self.log_q(v), self.bound(v[:, None], every, normal))

    def loss(
        self,
        v_l: Tensor,
        y: Tensor,
        v: Tensor,
        normal: Normal,
        label_weight: float,
        labels: int,
        images: float,
    ) -> Tensor:
        """The objective per image, from a batch with labels and one without.

        Args:
            label_weight: α.
            labels, images: N_l, and N, the labelled images and the unlabelled ones together.
        """
        known = self.bound(v_l, one_hot(y, self.classes, v_l), normal).mean()
        unknown = self.unlabelled_bound(v, normal).mean()
        share = labels / images
        error = F.nll_loss(self.log_q(v_l), y)
        bound = share * known + (1 - share) * unknown + self.log_prior() / images
        return label_weight * error - bound

    def log_prior(self) -> Tensor:
        """log N(θ; 0, 1) of the weights and the classifier's biases, up to a constant."""
        layers = self.classifier.linears() + self.q.linears() + self.p.linears()
        penalised = [layer.weight for layer in layers]
        penalised += [layer.bias for layer in self.classifier.linears()]
        return -0.5 * torch.stack([weight.square().sum() for weight in penalised]).sum()

    def posterior(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The most likely y, one-hot; mean and log σ² of q(z | v, y)."""
        y = one_hot(self.log_q(v).argmax(dim=1), self.classes, v)
        return (y, *self.q(v, y))


class M2(LatentModel):
    """M2 on whitened pixels. A code is (y, z)."""

    LOSSES = (LOSS,)
    images: Tensor  # N_u, the unlabelled ones; those with labels may be among them, as for SDGM

    def __init__(
        self, image: tuple[int, int, int], config: Config, dtype: torch.dtype, classes: int
    ) -> None:
        super().__init__(config.model, image)
        size, hidden = self.build_below(image, config, dtype)
        self.m2 = LabelledVAE(size, classes, config.setting("z_size"), hidden, dtype)
        self.register_buffer("classes", torch.tensor(classes))
        self.register_buffer("images", torch.tensor(1.0))
        self.label_weight, self.labels = config.setting("label_weight"), config.labels

    def build_below(
        self, image: tuple[int, int, int], config: Config, dtype: torch.dtype
    ) -> tuple[int, list[int]]:
        """Builds what turns images into vectors v; returns v's dimensions and M2's hidden units."""
        self.whitening = Whitening(image, config.setting("components"))
        return self.whitening.basis.shape[1], [_units(config)] * 2

    def initialise(self, x: np.ndarray, generator: torch.Generator) -> None:
        self.whitening.fit(x, generator)
        self.initialise_m2(x, generator)

    def initialise_m2(self, x: np.ndarray, generator: torch.Generator) -> None:
        self.images.fill_(len(x))
        self.m2.initialise(generator)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        # Read here, so that no step waits for the device.
        self.n = float(self.images) + self.labels

    def losses(self, x: Tensor, labelled: Labelled | None, noise: Noise) -> tuple[Tensor, ...]:
        assert labelled is not None
        x_l, y = labelled
        v_l, v = self.draw_vectors(x_l, noise.normal), self.draw_vectors(x, noise.normal)
        weight, labels = self.label_weight, self.labels
        return (self.m2.loss(v_l, y, v, noise.normal, weight, labels, self.n),)

    def draw_vectors(self, x: Tensor, normal: Normal) -> Tensor:
        """The vectors v of x that M2 is trained on."""
        return self.whitening(x)

    def vectors(self, x: Tensor) -> Tensor:
        """The vectors v of x that are classified."""
        return self.whitening(x)

    def class_scores(self, x: Tensor, normal: Normal) -> Tensor:
        return self.m2.log_q(self.vectors(x))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, mu, log_var = self.m2.posterior(self.vectors(x))
        return mu, 0.5 * log_var

    def sample_codes(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        y, mu, log_var = self.m2.posterior(self.vectors(x))
        return y, draw_normal(normal, mu, log_var)

    def sample_prior(self, n: int, normal: Normal) -> tuple[Tensor, ...]:
        return random_classes(n, self.m2.classes, normal), normal((n, self.m2.z))

    def decode(self, *codes: Tensor) -> Tensor:
        return self.whitening.pixels(self.m2.p(*codes)[0])

    def features(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]


class M1M2(M2):
    """M1, then M2 on M1's codes: in training fresh samples, else their means.

    M1 alone is trained for the first `m1_epochs` (None: half of all), then M2 alone. An image is
    encoded and reconstructed by M1; a sample's code is one of M2's samples.
    """

    m2_began: Tensor

    def build_below(
        self, image: tuple[int, int, int], config: Config, dtype: torch.dtype
    ) -> tuple[int, list[int]]:
        self.m1 = M1(image, config, dtype, M1_CODE)
        self.m1_epochs: int | None = config.setting("m1_epochs")
        # Saved with the weights: a resume with more epochs does not go back to M1.
        self.register_buffer("m2_began", torch.tensor(False))
        return M1_CODE, [_units(config)]

    def initialise(self, x: np.ndarray, generator: torch.Generator) -> None:
        self.m1.initialise(x, generator)
        self.initialise_m2(x, generator)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        super().begin_epoch(epoch, epochs)
        first = epochs // 2 if self.m1_epochs is None else self.m1_epochs
        if epoch >= first:
            self.m2_began.fill_(True)
        self.of_m2 = bool(self.m2_began)

    def losses(self, x: Tensor, labelled: Labelled | None, noise: Noise) -> tuple[Tensor, ...]:
        if not self.of_m2:
            return self.m1.losses(x, None, noise)
        return super().losses(x, labelled, noise)

    def draw_vectors(self, x: Tensor, normal: Normal) -> Tensor:
        with torch.no_grad():
            return self.m1.sample_codes(x, normal)[0]

    def vectors(self, x: Tensor) -> Tensor:
        return self.m1.posterior(x)[0]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.m1.posterior(x)

    def sample_codes(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        return self.m1.sample_codes(x, normal)

    def sample_prior(self, n: int, normal: Normal) -> tuple[Tensor, ...]:
        return (draw_normal(normal, *self.m2.p(*super().sample_prior(n, normal))),)

    def decode(self, *codes: Tensor) -> Tensor:
        return self.m1.decode(*codes)


def _units(config: Config) -> int:
    """Units of a hidden layer."""
    return max(1, round(HIDDEN * config.width))


def _zero(head: nn.Module) -> None:
    """The head of q's log σ² starts at 0: a variance of 1, as the prior's."""
    for weight in head.parameters():
        nn.init.zeros_(weight)
