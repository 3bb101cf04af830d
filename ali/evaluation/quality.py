"""How good samples, reconstructions and encodings are, measured without labels.

The measures detect how ALI fails: samples that collapse, reconstructions that ignore ẑ (§4.1),
encodings far from the prior. Nothing is downloaded: images are compared by the features of a fixed
random network, which ranks models on one data set. FID is measured too if Inception's weights are
on this machine.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist, pdist, squareform
from torch import Tensor, nn

from ali.catalog import KINDS
from ali.config import Config
from ali.data import Dataset, mixture, to_unit
from ali.errors import UserError
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
from ali.models import inference
from ali.models.base import Networks

FID = "fid"  # Fréchet distance of Inception features, if the weights are on this machine
IMAGES = 1000  # samples, and validation images they are compared with, at most
POINTS = 10_000  # samples of the mixture, as the authors draw
SEED = 160600704  # of all random numbers here: the same in every trial
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity keeps it


def measure(networks: Networks, dataset: Dataset, config: Config) -> dict[str, float]:
    """All measures that apply to the data and the model, by name; the same bits on every call.

    Images: SAMPLE_DISTANCE, SAMPLE_DIVERSITY, SAMPLE_SEPARATION, and FID if `inception_weights`
    finds them. Mixture: MODES_MISSED and NEAR_MODES of 10,000 samples. With an encoder also
    CODE_USE and PRIOR_GAP, and on the mixture RECONSTRUCTION_DISTANCE.

    The networks use their running statistics and are not changed; no global random state is used.
    Raises FloatingPointError if samples, reconstructions or encodings are not finite (the message
    names which), UserError for fewer than two validation images.
    """
    points, held_out = config.data == "mixture", len(dataset.valid)
    kind = KINDS[config.model]
    if held_out < 2:
        raise UserError(f"sample quality needs two validation images, not {held_out}: add images")
    repeatable = torch.backends.cudnn.flags(enabled=True, deterministic=True)
    with inference.evaluating(networks), repeatable:
        real = _held_out(_Same(dataset.valid.x), points)
        describe: nn.Module = nn.Flatten() if points else RandomFeatures()
        found: dict[str, float] = {}
        if kind.generates:
            x_tilde = _samples(networks, POINTS if points else len(real.x))
            if points:
                found = _of_mixture(x_tilde.flatten(1).numpy(), config.modes)
            else:
                found = _of_samples(describe(x_tilde).numpy(), real)
                if weights := inception_weights():
                    device = inference.device_of(networks)
                    found[FID] = inception_distance(x_tilde, real.x, weights, device)
        if kind.encodes:
            z_hat, x_hat = _reconstructions(networks, real.images)
            if kind.generates:
                found[PRIOR_GAP] = prior_gap(z_hat.numpy())
            found[CODE_USE] = code_use(real.features, describe(x_hat).numpy())
            if points:
                distance = mixture.reconstruction_distance(real.features, x_hat.flatten(1).numpy())
                found[RECONSTRUCTION_DISTANCE] = distance
    return found


def names(config: Config) -> set[str]:
    """Names of the measures that `measure` returns."""
    kind, found = KINDS[config.model], set[str]()
    if kind.generates and config.data == "mixture":
        found |= {MODES_MISSED, NEAR_MODES}
    elif kind.generates:
        found |= {SAMPLE_DISTANCE, SAMPLE_DIVERSITY, SAMPLE_SEPARATION}
        found |= {FID} if inception_weights() else set()
    if kind.encodes:
        found |= {CODE_USE} | ({PRIOR_GAP} if kind.generates else set())
        found |= {RECONSTRUCTION_DISTANCE} if config.data == "mixture" else set()
    return found


# The measures


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖m_a − m_b‖² + Tr(C_a + C_b − 2 (C_a C_b)^½) of features (n, D) (Heusel et al. 2017).

    In squared units of the features; 0 for equal means and covariances, unbounded above. Two finite
    samples of one distribution have a distance above 0, which decreases with n (house numbers on
    RandomFeatures: 0.06 at n = 300, 0.02 at 1000, 0.004 at 4000): compare values at equal n only.
    """
    # As in torchmetrics, whose import would cost every trial seconds.
    x, y = torch.from_numpy(a).double(), torch.from_numpy(b).double()
    c_a, c_b = torch.cov(x.T), torch.cov(y.T)
    apart = (x.mean(0) - y.mean(0)).square().sum()
    root = torch.linalg.eigvals(c_a @ c_b).sqrt().real.sum()
    return max(0.0, float(apart + c_a.trace() + c_b.trace() - 2 * root))  # it may be −1e-9


def diversity(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance between two of a, divided by that between two of b; features (n, D).

    0: all of a are the same image (mode collapse); 1: as different from each other as those of b.
    """
    return float(pdist(a).mean() / pdist(b).mean())


def separation(a: np.ndarray, b: np.ndarray) -> float:
    """How far one of a is from the nearest other one, beside the same of b; features (n, D), n > 1.

    Distances count in mean distances between two of a, or of b. 0: all of a are a few pictures,
    repeated, which `diversity` does not show (ten pictures of house numbers: 0.0, and a diversity
    of 0.9); 1: as distinct as those of b. Blur costs little: house numbers of 4×4 pixels, enlarged,
    have 0.65. Samples that repeat tell how few a generator knows (Arora, Risteski and Zhang 2018).
    """
    return _nearest(pdist(a)) / _nearest_of_data(b)


def _nearest(distances: np.ndarray) -> float:
    """Mean distance to the nearest other one, in mean distances, of pairs as from `pdist`."""
    if not distances.any():
        return 0.0
    square = squareform(distances)
    np.fill_diagonal(square, np.inf)
    return float(square.min(axis=1).mean() / distances.mean())


def _nearest_of_data(b: np.ndarray) -> float:
    """`_nearest` of features (n, D); what occurs twice counts once; 1 where all are the same."""
    return _nearest(pdist(np.unique(b, axis=0))) or 1.0


def code_use(x: np.ndarray, x_hat: np.ndarray) -> float:
    """1 − E d(x, G_x(ẑ(x))) / E d(x, G_x(ẑ(x′))), x′ another image; features (n, D) of x, G_x(ẑ).

    1: reconstructions are exact; 0: that of any other image is as close, so ẑ says nothing about x.
    By chance it can be a little below 0.
    """
    distances = cdist(x, x_hat)
    own, n = distances.trace(), len(x)
    return float(1 - (own / n) / ((distances.sum() - own) / (n * (n - 1))))


def prior_gap(z_hat: np.ndarray) -> float:
    """Mean over dimensions of KL(N(m, s²) ‖ N(0, 1)), m and s² those of ẑ (n, z): nats.

    0: the aggregate posterior has the prior's mean and variance in each dimension (it can still
    differ from the prior); unbounded above. A variance of 0 (the encoder ignores x) counts as
    1e-12: 13.3 nats.
    """
    z_hat = z_hat.astype(np.float64)
    m, s2 = z_hat.mean(axis=0), np.maximum(z_hat.var(axis=0), 1e-12)
    return float((0.5 * (m**2 + s2 - 1 - np.log(s2))).mean())


def inception_weights() -> Path | None:
    """The file of FID's Inception weights, if torch-fidelity has downloaded it before; else None.

    It is in $TORCH_HOME/hub/checkpoints (default ~/.cache/torch). None without torch-fidelity.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    return path if importlib.util.find_spec("torch_fidelity") and path.is_file() else None


def inception_distance(x_tilde: Tensor, x: Tensor, weights: Path, device: torch.device) -> float:
    """FID (Heusel et al. 2017) of samples from images, both fp32 (n, 3, H, W) in [0, 1].

    Papers use 50,000 samples; with 1000 the distance is larger and not comparable with theirs.
    About 12 GFLOP per image: seconds on a GPU, minutes on a CPU.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # here: its import costs seconds

    distance = FrechetInceptionDistance(
        normalize=True,
        antialias=False,
        feature_extractor_weights_path=str(weights),
        sync_on_compute=False,
    ).to(device)
    for images, real in ((x_tilde, False), (x, True)):
        for part in images.split(50):
            distance.update(part.to(device), real=real)
    return max(0.0, float(distance.compute()))


class RandomFeatures(nn.Module):
    """Images fp32 (B, 3, H, W) in [0, 1], 32 or 64 pixels a side → features fp32 (B, 304).

    First the mean colour in each cell of a 4×4 grid; then, for each of three layers, the strength
    of its random patterns in each quarter of the image (the last layer: in the whole image). A
    layer is a convolution with random filters of zero mean (so constant areas give 0), the modulus,
    and 2×2 pooling: a scattering network (Bruna and Mallat 2013) with random filters. GAIN balances
    colours and patterns: blur, noise, wrong colours, wrong places and missing variety all increase
    the distance.
    """

    MAPS, CELLS, GAIN = (16, 32, 64), (2, 2, 1), 2.0
    AT_ONCE = 50  # images per pass, whose activations fit the processor's cache
    COLOUR_CELLS = 4

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.filters, maps = [], 3
        for out in self.MAPS:
            filters = torch.randn(out, maps, 3, 3, generator=generator)
            filters -= filters.mean(dim=(2, 3), keepdim=True)
            self.filters.append(self.GAIN / math.sqrt(9 * maps) * filters)
            maps = out

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._features(part) for part in x.split(self.AT_ONCE)])

    def _features(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # two thirds of the time
        features, h = [F.adaptive_avg_pool2d(x, self.COLOUR_CELLS)], x
        for filters, cells in zip(self.filters, self.CELLS, strict=True):
            h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="reflect"), filters).abs()
            features.append(F.adaptive_avg_pool2d(h, cells))
            h = F.avg_pool2d(h, 2)
        return torch.cat([part.flatten(1) for part in features], dim=1)


# The inputs of the measures


def _of_mixture(x_tilde: np.ndarray, modes: int) -> dict[str, float]:
    return {
        MODES_MISSED: mixture.modes_missed(x_tilde, modes),
        NEAR_MODES: mixture.near_modes(x_tilde, modes),
    }


class _HeldOut(NamedTuple):
    """What samples and reconstructions are compared with: validation images.

    images (n, H, W, C); x, the same as fp32 (n, C, H, W) in [0, 1]; their features (n, D); of
    images, the mean `distance` between two and their `separation`.
    """

    images: np.ndarray
    x: Tensor
    features: np.ndarray
    distance: float = 0.0
    separation: float = 0.0


def _of_samples(samples: np.ndarray, real: _HeldOut) -> dict[str, float]:
    distances = pdist(samples)  # once for both measures
    return {
        SAMPLE_DISTANCE: frechet_distance(samples, real.features),
        SAMPLE_DIVERSITY: float(distances.mean() / real.distance),
        SAMPLE_SEPARATION: _nearest(distances) / real.separation,
    }


class _Same:
    """An array as a dictionary key, compared by identity, not by content."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.array is self.array


@functools.lru_cache(maxsize=1)
def _held_out(valid: _Same, points: bool) -> _HeldOut:
    rows = np.random.default_rng(SEED).permutation(len(valid.array))[:IMAGES]
    images = valid.array[np.sort(rows)]
    x = to_unit(torch.from_numpy(images))
    if points:
        return _HeldOut(images, x, x.flatten(1).numpy())
    features = RandomFeatures()(x).numpy()
    distance = float(pdist(features).mean())
    return _HeldOut(images, x, features, distance, _nearest_of_data(features))


def _samples(networks: Networks, n: int) -> Tensor:
    """n samples x̃ ~ p(x), on the CPU."""
    z = networks.decoder.sample_prior(n, inference.normal(SEED, networks))
    return _finite("samples", [_decoded(networks, z)])


def _reconstructions(networks: Networks, x: np.ndarray) -> tuple[Tensor, Tensor]:
    """The code that has a prior, ẑ_L, and G_x(ẑ₁ … ẑ_L), ẑ ~ q(z | x), on the CPU."""
    normal = inference.normal(SEED, networks)
    top, decoded = [], []
    for part in inference.chunks(networks, x):
        z_hat = networks.require_encoder().sample(part, normal)
        top.append(z_hat[-1].cpu())
        decoded.append(_decoded(networks, z_hat))
    return _finite("encodings", top), _finite("reconstructions", decoded)


def _decoded(networks: Networks, z: tuple[Tensor, ...]) -> Tensor:
    parts = zip(*(level.split(inference.CHUNK) for level in z), strict=True)
    return torch.cat([networks.decoder(*part).cpu() for part in parts])


def _finite(name: str, parts: list[Tensor]) -> Tensor:
    whole = torch.cat(parts)
    if not whole.isfinite().all():
        raise FloatingPointError(name)
    return whole.contiguous()
