"""Rows of a table → encoder G_z, decoder G_x and discriminator D (§2, appendix A)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali import distributed
from ali.config import Config
from ali.metrics import D_LOSS, G_LOSS
from ali.models.base import Networks, Normal, wide
from ali.models.chain import Chain, Layer
from ali.models.tables import (
    CONV,
    LEAKY,
    LINEAR,
    MAP,
    NONE,
    PIXEL,
    Row,
    Rows,
    Table,
    apply_config,
)

PIXEL_EPS = 1e-7  # keeps the log-odds of an always-black pixel finite
PIXEL_MEAN_IMAGES = 500
POOLED = 4  # pixels a side of a GAN's features, as in the DCGAN row of Table 1


class Encoder(nn.Module):
    """G_z: q(z₁ | x) = N(μ(x), σ²(x) I), and q(z_l | z_1 … z_{l−1}, x) for the levels above (§2.6).

    Those are Gaussian too; their input from x is that of the table's last row. If the table has
    `noise`, z₁ is a deterministic function of x and that noise (Fig. 7).
    """

    def __init__(self, table: Table, config: Config, slope: float, dtype: torch.dtype) -> None:
        super().__init__()
        maps, size, _ = table.image
        self.layers = Chain(table.encoder, maps + table.noise, size, slope)
        penultimate, rows = table.encoder[-2].maps, _level_rows(table)
        self.upper = nn.ModuleList(
            Chain(rows, penultimate + level * table.z, 1, slope)
            for level in range(1, config.levels)
        )
        self.noise, self.dtype, self.sigma = table.noise, dtype, config.sigma

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) in [0, 1] → μ, log σ of z₁, each (B, z) fp32; log σ is not clamped."""
        return _mu_log_sigma(self.layers(self._cast(x)).float(), self.sigma)

    def sample(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        """x (B, C, H, W) → ẑ₁ … ẑ_L ~ q(z | x), each (B, z) fp32."""
        if self.noise:
            x = torch.cat([x, normal((len(x), self.noise, *x.shape[2:]))], dim=1)
        penultimate, out = self.layers.forward_with_penultimate(self._cast(x))
        z_hat = [wide(out) if self.noise else _gaussian(out, normal, self.sigma)]
        for chain in self.upper:
            assert penultimate is not None
            below = torch.cat([penultimate, *(z.to(self.dtype) for z in z_hat)], dim=1)
            z_hat.append(_gaussian(chain(below), normal, self.sigma))
        return tuple(z_hat)

    def features(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) → (B, 5376) fp32 for the SVM of §4.4 (Table 3 at width 1).

        The last three hidden layers after batch norm and before the leaky ReLU (4096, 512, 512),
        and μ (256), as the authors' code has it; the paper's 8960 fits no set of its layers.
        """
        *hidden, output = self.layers.preactivations(self._cast(x))[-4:]
        mu = output.chunk(2, dim=1)[0]
        return torch.cat([h.float().flatten(1) for h in (*hidden, mu)], dim=1)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=torch.channels_last)


class Decoder(nn.Module):
    """G_x: x̃ = G_x(z₁ … z_L), deterministic, and p(z_l | z_{l+1} … z_L), Gaussian (§2.6)."""

    def __init__(self, table: Table, config: Config, slope: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = Chain(table.decoder, config.levels * table.z, 1, slope)
        rows = _level_rows(table)
        self.upper = nn.ModuleList(
            Chain(rows, above * table.z, 1, slope) for above in range(1, config.levels)
        )
        self.image, self.z, self.dtype, self.sigma = table.image, table.z, dtype, config.sigma
        self.linear = table.decoder[-1].nonlinearity == LINEAR

    def forward(self, *z: Tensor) -> Tensor:
        """z₁ … z_L, each (B, z) → x̃ (B, C, H, W) fp32, images in [0, 1]."""
        out = self.layers(torch.cat([part.to(self.dtype) for part in z], dim=1))
        x_tilde = wide(out) if self.linear else out.sigmoid()
        return x_tilde.view(len(out), *self.image) if x_tilde.dim() == 2 else x_tilde

    def sample_prior(self, n: int, normal: Normal) -> tuple[Tensor, ...]:
        """z₁ … z_L ~ p(z), each (n, z) fp32: z_L is standard normal."""
        return self.sample_below(normal((n, self.z)), normal)

    def sample_below(self, z_top: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        """z₁ … z_L with z_L = z_top (n, z), the others ~ p(z_l | z_{l+1} … z_L)."""
        z = [z_top]
        for chain in self.upper:
            above = torch.cat([part.to(self.dtype) for part in z], dim=1)
            z.insert(0, _gaussian(chain(above), normal, self.sigma))
        return tuple(z)


class Discriminator(nn.Module):
    """D(x, z): the logit that (x, z₁ … z_L) is from the encoder's joint; a GAN's has no z."""

    def __init__(self, table: Table, levels: int, slope: float, dtype: torch.dtype) -> None:
        super().__init__()
        maps, size, _ = table.image
        self.x = Chain(table.d_x, maps, size, slope, table.pieces)
        joint = self.x.out_maps
        if levels:
            self.z = Chain(table.d_z, levels * table.z, 1, slope, table.pieces)
            joint += self.z.out_maps
        self.xz = Chain(table.d_xz, joint, 1, slope, table.pieces)
        self.dtype = dtype

    def forward(
        self, x: Tensor, z: Tensor | None, generator: distributed.RandomSource | None = None
    ) -> Tensor:
        """x (B, C, H, W), z (B, L·z) → logit (B,) fp32; dropout as in `logits`."""
        return self.logits((x,), () if z is None else (z,), generator)

    def logits(
        self,
        x: Sequence[Tensor],
        z: Sequence[Tensor],
        generator: distributed.RandomSource | None = None,
    ) -> Tensor:
        """Logits (ΣB,) fp32 of several batches, concatenated: one pass, shared batch norm.

        `z` is empty for a GAN. In training mode dropout masks are drawn from `generator`; None: no
        dropout.
        """
        return wide(self.with_penultimate(x, z, generator)[1]).squeeze(1)

    def with_penultimate(
        self,
        x: Sequence[Tensor],
        z: Sequence[Tensor],
        generator: distributed.RandomSource | None = None,
        before_dropout: bool = False,
    ) -> tuple[Tensor | None, Tensor]:
        """The last row's input, with its dropout or before, and its output (ΣB, maps)."""
        images = [part.to(self.dtype, memory_format=torch.channels_last) for part in x]
        h = self.x(*images, generator=generator)
        if z:
            h_z = self.z(*(part.to(self.dtype) for part in z), generator=generator)
            h = torch.cat([h, h_z], dim=1)
        return self.xz.forward_with_penultimate(
            h, generator=generator, before_dropout=before_dropout
        )

    def features(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) → (B, D) fp32: D(x)'s layers, max-pooled to 4×4 (Table 1's DCGAN row)."""
        h, pooled = x.to(self.dtype, memory_format=torch.channels_last), []
        for layer in self.x.rows:
            h = self.x.activation(layer.normalise(layer.operation(h)), layer.row)
            large = h.dim() == 4 and layer.size > POOLED
            part = F.adaptive_max_pool2d(h, POOLED) if large else h
            pooled.append(part.float().flatten(1))
        return torch.cat(pooled, dim=1)


class ALI(Networks):
    """The three networks of one experiment; a GAN has no encoder."""

    LOSSES = (D_LOSS, G_LOSS)

    def __init__(self, table: Table, config: Config, dtype: torch.dtype) -> None:
        super().__init__(config.model, table.image)

        def slope(given: float | None) -> float:
            return table.slope if given is None else given

        gan = not self.kind.encodes
        self.table, self.levels = table, config.levels
        self.encoder = None if gan else Encoder(table, config, slope(config.slope_encoder), dtype)
        self.decoder = Decoder(table, config, slope(config.slope_decoder), dtype)
        self.discriminator = Discriminator(
            table, 0 if gan else config.levels, slope(config.slope_discriminator), dtype
        )

    def weights(self) -> list[list[nn.Parameter]]:
        """The discriminator's weights; those of encoder and decoder."""
        encoder = [] if self.encoder is None else [*self.encoder.parameters()]
        return [[*self.discriminator.parameters()], [*encoder, *self.decoder.parameters()]]

    def features(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) → (B, D) fp32 for the SVM: of the encoder, or a GAN's discriminator."""
        source = self.discriminator if self.encoder is None else self.encoder
        return source.features(x)


def _level_rows(table: Table) -> Rows:
    """Rows for [μ, log σ] of a Gaussian level: two hidden layers as wide as the encoder's last.

    The paper does not give them. They have batch norm, as all of G_z and G_x but the outputs (§4).
    """
    hidden = Row(CONV, 1, 1, table.encoder[-2].maps, True, 0.0, LEAKY, NONE)
    return hidden, hidden, Row(CONV, 1, 1, 2 * table.z, False, 0.0, LINEAR, MAP)


def _gaussian(out: Tensor, normal: Normal, sigma: str) -> Tensor:
    """A network's output for μ and σ (B, 2·z) → μ + σ ⊙ ε (B, z) fp32."""
    mu, log_sigma = _mu_log_sigma(wide(out), sigma)
    return mu + log_sigma.exp() * normal(tuple(mu.shape))


def _mu_log_sigma(out: Tensor, sigma: str) -> tuple[Tensor, Tensor]:
    """(B, 2·z) → μ, log σ, each (B, z): σ is exp or sigmoid of the second half."""
    mu, s = out.chunk(2, dim=1)
    return mu, F.logsigmoid(s) if sigma == "sigmoid" else s


def build(
    config: Config,
    pixel_mean: Tensor | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> ALI:
    """New networks on the CPU, weights N(0, 0.01²) drawn from `generator` (None: config.seed).

    Args:
        pixel_mean: (3, H, W) in [0, 1], mean of training images; the decoder's last bias starts
            at its log-odds (None: at 0).
        dtype: of the activations; weights are always fp32. For points in the plane activations are
            fp32 too: their modes are narrower than bf16's steps.
    """
    generator = generator or torch.Generator().manual_seed(config.seed)
    table = apply_config(config)
    networks = ALI(table, config, torch.float32 if table.image[1] == 1 else dtype)
    draw_weights(networks, table.weight_std, generator)
    if pixel_mean is not None:
        start_at_mean(networks.decoder, pixel_mean)
    return networks


def draw_weights(networks: nn.Module, std: float, generator: torch.Generator) -> None:
    """Initial weights N(0, std²) of each row."""
    for layer in networks.modules():
        if isinstance(layer, Layer):
            nn.init.normal_(layer.weight, 0.0, std, generator=generator)


def pixel_mean(x: np.ndarray, seed: int) -> Tensor:
    """Mean (3, H, W) in [0, 1] of 500 images of x, uint8 (N, H, W, 3), drawn at random."""
    count = min(PIXEL_MEAN_IMAGES, len(x))
    chosen = np.sort(np.random.default_rng(seed).choice(len(x), count, replace=False))
    return torch.from_numpy(x[chosen].mean(axis=0) / 255).permute(2, 0, 1).float()


def start_at_mean(decoder: Decoder, pixel_mean: Tensor) -> None:
    """Sets the decoder's untied last bias to the log-odds of the mean (C, H, W) in [0, 1]."""
    last = decoder.layers.rows[-1]
    if last.row.bias == PIXEL:
        with torch.no_grad():
            mean = pixel_mean.float().clamp(PIXEL_EPS, 1 - PIXEL_EPS)
            assert last.bias is not None
            last.bias.copy_(mean.logit())
