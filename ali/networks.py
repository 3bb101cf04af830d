"""Rows of a table → encoder G_z, decoder G_x and discriminator D (§2, appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali import layers
from ali.config import Config, Precision
from ali.errors import UserError
from ali.tables import (
    CONV,
    LEAKY,
    MAP,
    NONE,
    PIXEL,
    TABLE3,
    TCONV,
    Row,
    Rows,
    Table,
    configured,
    out_size,
)

WEIGHT_STD = 0.01  # "Isotropic gaussian (μ = 0, σ = 0.01), Constant(0)"
PIXEL_EPS = 1e-7  # keeps the log-odds of an always-black pixel finite


class Layer(nn.Module):
    """One row on an input of `size` × `size` pixels: operation, bias, batch norm.

    Activations are (B, C, H, W) channels-last, or (B, C) where a map is a single pixel.
    Weights and statistics are fp32; the operation runs in the type of its input.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, row: Row, in_maps: int, size: int) -> None:
        super().__init__()
        self.row = row
        self.size = out_size(row, size)
        shape = (row.maps, in_maps) if row.operation == CONV else (in_maps, row.maps)
        weight = torch.empty(*shape, row.kernel, row.kernel)
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last))
        bias_shape = {MAP: (row.maps,), PIXEL: (row.maps, self.size, self.size)}
        self.bias = None if row.bias == NONE else nn.Parameter(torch.zeros(bias_shape[row.bias]))
        if row.bn:
            self.gamma = nn.Parameter(torch.ones(row.maps))
            self.beta = nn.Parameter(torch.zeros(row.maps))
            self.register_buffer("running_mean", torch.zeros(row.maps))
            self.register_buffer("running_var", torch.ones(row.maps))

    def operation(self, h: Tensor) -> Tensor:
        """The (transposed) convolution, with its bias if that is one a map."""
        weight = self.weight.to(h.dtype)
        if self.row.operation == TCONV:
            return layers.tconv(h, weight, self.row.stride)
        bias = None if self.bias is None or self.row.bias == PIXEL else self.bias.to(h.dtype)
        return layers.conv(h, weight, bias, self.row.stride)

    def normalise(self, h: Tensor) -> Tensor:
        """Batch norm, or the bias a pixel, of `operation`'s output: what the nonlinearity gets."""
        if self.row.bn:
            return F.batch_norm(
                h,
                self.running_mean,
                self.running_var,
                self.gamma,
                self.beta,
                self.training,
                layers.BN_MOMENTUM,
                layers.BN_EPS,
            )
        if self.bias is not None and self.row.bias == PIXEL:
            return h.float() + self.bias
        return h


class Chain(nn.Sequential):
    """Rows one after the other, from `in_maps` maps of `size` × `size` pixels."""

    def __init__(self, rows: Rows, in_maps: int, size: int, slope: float) -> None:
        built: list[Layer] = []
        for row in rows:
            built.append(Layer(row, in_maps, size))
            in_maps, size = row.maps, built[-1].size
        super().__init__(*built)
        self.rows, self.slope = built, slope

    def forward(self, *parts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The output for the parts' concatenation along the batch; shares its statistics.

        The first operation runs on each part apart, so that no gradient is computed of a part
        that needs none. In training mode dropout masks are drawn from `generator` (None: no
        dropout).
        """
        rng = generator if self.training else None
        first, p = self.rows[0], self.rows[0].row.dropout
        outputs = [first.operation(layers.dropout(part, p, rng)) for part in parts]
        h = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        for layer, following in pairwise(self.rows):
            h = layer.normalise(h)
            h = layers.leaky_relu_dropout(h, self.slope, following.row.dropout, rng)
            h = following.operation(h)
        h = self.rows[-1].normalise(h)
        if self.rows[-1].row.nonlinearity == LEAKY:
            h = layers.leaky_relu_dropout(h, self.slope, 0.0, None)
        return h

    def preactivations(self, h: Tensor) -> list[Tensor]:
        """Every row's values before its nonlinearity, first to last; no dropout."""
        seen: list[Tensor] = []
        for layer in self.rows:
            seen.append(layer.normalise(layer.operation(h)))
            h = F.leaky_relu(seen[-1], self.slope)
        return seen


class Encoder(nn.Module):
    """G_z: q(z | x) = N(μ(x), σ²(x) I)."""

    def __init__(self, table: Table, slope: float, dtype: torch.dtype) -> None:
        super().__init__()
        maps, size, _ = table.image
        self.layers = Chain(table.encoder, maps, size, slope)
        self.dtype = dtype

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) in [0, 1] → μ, log σ, each (B, z) fp32; log σ is not clamped."""
        mu, log_sigma = self.layers(self._cast(x)).float().chunk(2, dim=1)
        return mu, log_sigma

    def features(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) → (B, 5376) fp32 for the SVM of §4.4 (at width 1).

        The last three hidden layers after batch norm and before the leaky ReLU (4096, 512, 512),
        and μ (256), as the authors' code has it; the paper's 8960 fits no set of its layers.
        """
        *hidden, output = self.layers.preactivations(self._cast(x))[-4:]
        mu = output.chunk(2, dim=1)[0]
        return torch.cat([h.float().flatten(1) for h in (*hidden, mu)], dim=1)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=torch.channels_last)


class Decoder(nn.Module):
    """G_x: deterministic, x̃ = G_x(z)."""

    def __init__(self, table: Table, slope: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = Chain(table.decoder, table.z, 1, slope)
        self.dtype = dtype

    def forward(self, z: Tensor) -> Tensor:
        """z (B, z) → x̃ (B, 3, H, W) fp32 in [0, 1]."""
        return self.layers(z.to(self.dtype)).sigmoid()


class Discriminator(nn.Module):
    """D(x, z): the logit that (x, z) comes from the encoder's joint."""

    def __init__(self, table: Table, slope: float, dtype: torch.dtype) -> None:
        super().__init__()
        maps, size, _ = table.image
        self.x = Chain(table.d_x, maps, size, slope)
        self.z = Chain(table.d_z, table.z, 1, slope)
        self.xz = Chain(table.d_xz, table.d_x[-1].maps + table.d_z[-1].maps, 1, slope)
        self.dtype = dtype

    def forward(self, x: Tensor, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x (B, 3, H, W), z (B, z) → logit (B,) fp32; dropout as in `both`."""
        return self.both((x,), (z,), generator)

    def both(
        self, x: Sequence[Tensor], z: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Logits (ΣB,) fp32 of several batches, concatenated: one pass, shared batch norm.

        In training mode dropout masks are drawn from `generator`; None: no dropout.
        """
        images = [part.to(self.dtype, memory_format=torch.channels_last) for part in x]
        h_x = self.x(*images, generator=generator)
        h_z = self.z(*(part.to(self.dtype) for part in z), generator=generator)
        return self.xz(torch.cat([h_x, h_z], dim=1), generator=generator).float().squeeze(1)


class ALI(nn.Module):
    """The three networks of one experiment."""

    def __init__(self, table: Table, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = table
        self.encoder = Encoder(table, config.slope_encoder, dtype)
        self.decoder = Decoder(table, config.slope_decoder, dtype)
        self.discriminator = Discriminator(table, config.slope_discriminator, dtype)


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
        dtype: what activations are computed in; weights are fp32 in any case.
    """
    generator = generator or torch.Generator().manual_seed(config.seed)
    networks = ALI(configured(TABLE3, config), config, dtype)
    for layer in networks.modules():
        if isinstance(layer, Layer):
            nn.init.normal_(layer.weight, 0.0, WEIGHT_STD, generator=generator)
    if pixel_mean is not None:
        with torch.no_grad():
            mean = pixel_mean.float().clamp(PIXEL_EPS, 1 - PIXEL_EPS)
            bias = networks.decoder.layers.rows[-1].bias
            assert bias is not None  # the table's last row is PIXEL
            bias.copy_(mean.logit())
    return networks


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What activations are computed in on `device`.

    "auto" is bf16 where the hardware multiplies matrices in it (AMX or AVX512-BF16 on a CPU),
    else fp32. Raises UserError when bf16 is asked of a GPU that cannot.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not has_bf16:
            raise UserError("this GPU has no bf16 arithmetic: use --precision fp32")
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    bf16 = precision == "bf16" or (precision == "auto" and has_bf16)
    return torch.bfloat16 if bf16 else torch.float32
