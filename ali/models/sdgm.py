"""Deep generative models with an auxiliary variable a: ADGM and SDGM (Maaløe et al. 2016).

    p(y) uniform, p(z) = N(0, I), p(a | z, y); ADGM p(x | z, y), SDGM p(x | a, z, y)
    q(a | x), q(y | a, x), q(z | a, x, y)

    −L(x, y) = E_q [log p(x | ·) + log p(y) + log p(z) + log p(a | z, y)
                    − log q(a | x) − log q(z | a, x, y)]
    −U(x) = E_q(a|x) Σ_y q(y | a, x) [−L_a(x, y) − log q(y | a, x)]

Minimised: mean_labelled [L − α log q(y | a, x)] + mean_unlabelled U − log N(weights; 0, 1) / N,
with α = β N / N_l. All densities are those of samples; y is summed exactly.

As their code has it: pixels 0 to 255 with uniform noise, divided by each colour's standard
deviation, mean not subtracted; two ReLU layers a network; the gradient's norm is at most 5, then
each of its elements at most 1. Ours, where they say nothing of SVHN: layers of 1000, a and z of
300, one sample of a and z in training and 100 samples of a to classify; as many labelled as
unlabelled images a step, but 100 each and not 1000; noise drawn anew each step; no schedule of the
rate; the variance of p(x | ·) bounded below; a wider range of β in the search.
"""

from __future__ import annotations

import math

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
    log_normal,
    log_standard_normal,
    one_hot,
    over_labels,
    random_classes,
)

HIDDEN = 1000  # units of a hidden layer at width 1
HEAD_STD = 0.001  # of the initial weights of means and log-variances
SAMPLES = 100  # of a, to classify an image
MAX_NORM, MAX_GRADIENT = 5.0, 1.0
PIXEL_RANGE = 255  # pixel values above 0
STD_IMAGES = 10_000


class AuxiliaryModel(LatentModel):
    """ADGM, or SDGM, whose p(x | ·) sees a too. A code is (y, z), or (y, a, z)."""

    LOSSES = (LOSS,)
    images: Tensor  # N
    scale: Tensor

    def __init__(
        self, image: tuple[int, int, int], config: Config, dtype: torch.dtype, classes: int
    ) -> None:
        super().__init__(config.model, image)
        pixels, z = math.prod(image), config.setting("z_size")
        hidden = [max(1, round(HIDDEN * config.width))] * 2

        def network(inputs: list[int], heads: list[int]) -> DenseNetwork:
            return DenseNetwork(inputs, hidden, heads, F.relu, dtype)

        self.skip, self.z, self.k = config.model == "sdgm", z, classes
        self.q_a = network([pixels], [z, z])
        self.q_y = network([pixels, z], [classes])
        self.q_z = network([pixels, z, classes], [z, z])
        self.p_a = network([z, classes], [z, z])
        self.p_x = network([z, classes, z] if self.skip else [z, classes], [pixels, pixels])
        self.label_weight, self.labels = config.setting("label_weight"), config.labels
        self.known_weight = config.setting("known_weight")  # of L where y is known
        self.register_buffer("classes", torch.tensor(classes))
        self.register_buffer("images", torch.tensor(1.0))
        self.register_buffer("scale", torch.ones(image[0], 1, 1))  # standard deviation, a colour

    def initialise(self, x: np.ndarray, generator: torch.Generator) -> None:
        self.images.fill_(len(x))
        pixels = to_unit(torch.from_numpy(x[:STD_IMAGES].copy())) * self.pixel_range
        self.scale.copy_(pixels.std(dim=(0, 2, 3))[:, None, None])
        for network in (self.q_a, self.q_y, self.q_z, self.p_a, self.p_x):
            for layer in network.linears():
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            if network is not self.q_y:
                for layer in network.linears()[-2:]:  # μ and log σ²
                    nn.init.normal_(layer.weight, 0, HEAD_STD, generator=generator)

    @property
    def pixel_range(self) -> int:
        """The pixel value that is scaled to 1 in images; points of the plane are not scaled."""
        return 1 if self.image[1] == 1 else PIXEL_RANGE

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        # Read here, so that no step waits for the device.
        self.n = max(float(self.images), float(self.labels))

    def vectors(self, x: Tensor, uniform: Tensor | float = 0.5) -> Tensor:
        """x (B, C, H, W) in [0, 1] → (B, C·H·W) in standard deviations; `uniform`: noise in [0, 1),
        by which pixels fill the whole interval between two values."""
        h = x * self.pixel_range + (uniform if self.pixel_range > 1 else 0)
        return (h / self.scale).flatten(1)

    def losses(self, x: Tensor, labelled: Labelled | None, noise: Noise) -> tuple[Tensor, ...]:
        assert labelled is not None
        x_l, y = labelled
        v_l = self.vectors(x_l, noise.uniform(tuple(x_l.shape)))
        v = self.vectors(x, noise.uniform(tuple(x.shape)))
        known, log_q = self.labelled_terms(v_l, y, noise.normal)
        alpha = self.label_weight * self.n / self.labels
        error = F.nll_loss(log_q, y)
        unknown = self.unlabelled_bound(v, noise.normal)
        bound = self.known_weight * known.mean() + unknown.mean() + self.log_prior() / self.n
        return (alpha * error - bound,)

    def labelled_terms(self, v: Tensor, y: Tensor, normal: Normal) -> tuple[Tensor, Tensor]:
        """−L (B,) and log q(y | a, v) (B, K) at one sample of a."""
        a, log_q_a = self.draw_a(v, normal)
        bound = self.bound(v, a, one_hot(y, self.k, v), normal) - log_q_a
        return bound, self.log_q(v, a)

    def unlabelled_bound(self, v: Tensor, normal: Normal) -> Tensor:
        """−U (B,) at one sample of a, and one of z per class."""
        a, log_q_a = self.draw_a(v, normal)
        every = torch.eye(self.k, device=v.device, dtype=v.dtype)[None]
        bounds = self.bound(v[:, None], a[:, None], every, normal)  # (B, K)
        return over_labels(self.log_q(v, a), bounds) - log_q_a

    def draw_a(self, v: Tensor, normal: Normal) -> tuple[Tensor, Tensor]:
        """a ~ q(a | v), and log q(a | v)."""
        mu, log_var = self.q_a(v)
        a = draw_normal(normal, mu, log_var)
        return a, log_normal(a, mu, log_var)

    def log_q(self, v: Tensor, a: Tensor) -> Tensor:
        """log q(y | a, v) (B, K)."""
        return self.q_y(v, a)[0].log_softmax(dim=-1)

    def bound(self, v: Tensor, a: Tensor, y: Tensor, normal: Normal) -> Tensor:
        """log p(v | ·) p(y) p(z) p(a | z, y) / q(z | a, v, y) at one z; they broadcast."""
        mu, log_var = self.q_z(v, a, y)
        z = draw_normal(normal, mu, log_var)
        mean, log_var_v = self.p_x(z, y, a) if self.skip else self.p_x(z, y)
        return (
            log_normal(v, mean, bounded(log_var_v))
            - math.log(self.k)
            + log_standard_normal(z)
            + log_normal(a, *self.p_a(z, y))
            - log_normal(z, mu, log_var)
        )

    def log_prior(self) -> Tensor:
        """log N(W; 0, 1) of the weights, up to a constant."""
        networks = (self.q_a, self.q_y, self.q_z, self.p_a, self.p_x)
        layers = [layer for network in networks for layer in network.linears()]
        return -0.5 * torch.stack([layer.weight.square().sum() for layer in layers]).sum()

    def limited(self, gradients: list[Tensor]) -> list[Tensor]:
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = (MAX_NORM / norm).clamp(max=1.0)
        return [(g * scale).clamp(-MAX_GRADIENT, MAX_GRADIENT) for g in gradients]

    def class_scores(self, x: Tensor, normal: Normal) -> Tensor:
        """log of the mean over samples of a of q(y | a, x) (B, K)."""
        v = self.vectors(x)
        mu, log_var = self.q_a(v)
        found = [self.log_q(v, draw_normal(normal, mu, log_var)) for _ in range(SAMPLES)]
        return torch.stack(found).logsumexp(dim=0) - math.log(SAMPLES)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ of z, at the mean of a and the most likely y."""
        v = self.vectors(x)
        a = self.q_a(v)[0]
        mu, log_var = self.q_z(v, a, self._likely(v, a))
        return mu, 0.5 * log_var

    def sample_codes(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        v = self.vectors(x)
        a, _ = self.draw_a(v, normal)
        y = self._likely(v, a)
        z = draw_normal(normal, *self.q_z(v, a, y))
        return (y, a, z) if self.skip else (y, z)

    def sample_prior(self, n: int, normal: Normal) -> tuple[Tensor, ...]:
        y, z = random_classes(n, self.k, normal), normal((n, self.z))
        return (y, draw_normal(normal, *self.p_a(z, y)), z) if self.skip else (y, z)

    def decode(self, *codes: Tensor) -> Tensor:
        y, *a, z = codes
        x = self.p_x(z, y, *a)[0].unflatten(1, self.image) * self.scale
        return x if self.pixel_range == 1 else ((x - 0.5) / self.pixel_range).clamp(0, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def _likely(self, v: Tensor, a: Tensor) -> Tensor:
        """The most likely y, one-hot."""
        return one_hot(self.log_q(v, a).argmax(dim=1), self.k, v)
