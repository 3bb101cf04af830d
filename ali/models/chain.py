"""A table's rows, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali import distributed
from ali.models import layers, narrow_chain
from ali.models.base import wide
from ali.models.tables import (
    CONV,
    LEAKY,
    MAP,
    MAXOUT,
    NONE,
    PIXEL,
    SIGMOID,
    TCONV,
    Row,
    Rows,
    out_maps,
    out_size,
)


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
        """The (transposed) convolution, with its bias if that is one per map."""
        if self.row.operation == TCONV:
            return layers.tconv(h, self.weight, self.row.stride)
        return layers.conv(h, self.weight, self.map_bias, self.row.stride)

    @property
    def map_bias(self) -> Tensor | None:
        """The bias if that is one per map."""
        return None if self.row.bias == PIXEL else self.bias

    def normalise(self, h: Tensor) -> Tensor:
        """Batch norm or per-pixel bias of `operation`'s output: the nonlinearity's input."""
        if self.row.bn and self.training and distributed.world_size() > 1:
            statistics = self.running_mean, self.running_var
            return distributed.batch_norm(
                h, *statistics, self.gamma, self.beta, layers.BN_MOMENTUM, layers.BN_EPS
            )
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
            biased = wide(h) + self.bias.view(h.shape[1:])
            return biased if self.row.nonlinearity == SIGMOID else biased.to(h.dtype)
        return h


class Chain(nn.Sequential):
    """Rows in sequence, on `in_maps` maps of `size` × `size` pixels; no rows: identity."""

    def __init__(self, rows: Rows, in_maps: int, size: int, slope: float, pieces: int = 1) -> None:
        built: list[Layer] = []
        for row in rows:
            built.append(Layer(row, in_maps, size))
            in_maps, size = out_maps(row, pieces), built[-1].size
        super().__init__(*built)
        self.rows, self.slope, self.pieces, self.out_maps = built, slope, pieces, in_maps

    def forward(self, *parts: Tensor, generator: distributed.RandomSource | None = None) -> Tensor:
        """The output for the parts, concatenated along the batch, with joint batch statistics.

        The first operation runs on each part separately, so that no gradient is computed for a
        part that needs none. In training mode dropout masks are drawn from `generator` (None: no
        dropout).
        """
        return self.forward_with_penultimate(*parts, generator=generator)[1]

    def forward_with_penultimate(
        self,
        *parts: Tensor,
        generator: distributed.RandomSource | None = None,
        before_dropout: bool = False,
    ) -> tuple[Tensor | None, Tensor]:
        """The last row's input (None if it is the only row), with its dropout or before, and the
        output.
        """
        if not self.rows:
            return None, torch.cat(parts).flatten(1)
        rng = generator if self.training else None
        if self.training and narrow_chain.serves(parts[0]):
            return self._compiled(parts, rng, before_dropout)
        first, p = self.rows[0], self.rows[0].row.dropout
        outputs = [first.operation(layers.dropout(part, p, rng)) for part in parts]
        h = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        last = None
        for layer, following in pairwise(self.rows):
            p = following.row.dropout
            if before_dropout and following is self.rows[-1]:
                last = self._normalised(h, layer)
                h = following.operation(layers.dropout(last, p, rng))
                continue
            last = self._normalised(h, layer, p, rng)
            h = following.operation(last)
        return last, self._normalised(h, self.rows[-1])

    def _compiled(
        self, parts: Sequence[Tensor], rng: distributed.RandomSource | None, before_dropout: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The same in training mode by ali.models.narrow_chain."""
        chain = narrow_chain.Recorder(parts, self.rows[0].row.dropout, rng)
        for i, layer in enumerate(self.rows, start=1):
            row, p = layer.row, self.rows[i].row.dropout if i < len(self.rows) else 0.0
            later = p if before_dropout and i == len(self.rows) - 1 else 0.0
            p -= later
            if row.operation == TCONV:
                chain.tconv(layer.weight, row.stride)
            else:
                chain.conv(layer.weight, layer.map_bias, row.stride)
            if layer.bias is not None and row.bias == PIXEL and not row.bn:
                chain.pixel_bias(layer.bias, wide=row.nonlinearity == SIGMOID)
            if row.nonlinearity == LEAKY and row.bn and row.maps <= narrow_chain.WIDEST:
                running = layer.running_mean, layer.running_var
                chain.batch_norm_leaky_relu_dropout(running, layer.gamma, layer.beta, self.slope, p)
            elif row.nonlinearity == LEAKY and not row.bn:
                chain.leaky_relu_dropout(self.slope, p)
            elif row.bn:
                chain.by_autograd(
                    partial(self._normalised, layer=layer, p=p, rng=rng), [layer.gamma, layer.beta]
                )
            elif row.nonlinearity == MAXOUT:
                chain.by_autograd(partial(self.activation, row=row, p=p, rng=rng), [])
            if i == len(self.rows) - 1:
                chain.keep()
                if later:
                    chain.by_autograd(partial(layers.dropout, p=later, generator=rng), [])
        return chain.outputs()

    def _normalised(
        self, h: Tensor, layer: Layer, p: float = 0.0, rng: distributed.RandomSource | None = None
    ) -> Tensor:
        """What follows a layer's operation, up to and with dropout on the next layer's input."""
        return self.activation(layer.normalise(h), layer.row, p, rng)

    def activation(
        self, h: Tensor, row: Row, p: float = 0.0, rng: distributed.RandomSource | None = None
    ) -> Tensor:
        """The row's nonlinearity (of a sigmoid only its argument), then dropout."""
        if row.nonlinearity == LEAKY:
            return layers.leaky_relu_dropout(h, self.slope, p, rng)
        if row.nonlinearity == MAXOUT:
            return layers.dropout(layers.maxout(h, self.pieces), p, rng)
        return h

    def preactivations(self, h: Tensor) -> list[Tensor]:
        """Every row's values before its nonlinearity, first to last; no dropout."""
        found: list[Tensor] = []
        for layer in self.rows:
            found.append(layer.normalise(layer.operation(h)))
            h = F.leaky_relu(found[-1], self.slope)
        return found
