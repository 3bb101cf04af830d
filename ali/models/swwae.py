"""The stacked what-where autoencoder (Zhao et al. 2015).

Stages of convolutions, ReLU and max-pooling. The maxima ("what") go up, their places ("where") to
the mirrored stage of the decoder, which puts what it gets back to those places. The loss has three
terms, of which unlabelled images have the last two:

    −log p(y | x) + λ_rec ‖x − x̃‖² + λ_M Σ_m ‖x_m − x̃_m‖²

x_m is what stage m passes up, x̃_m what the decoder makes of it. The paper's network for SVHN is
not known. Ours is the one that a port of its code uses in a test, and a layer of 10 on top:

    (128)5c-2p-(128)3c-(256)3c-2p-(256)3c-2p-10fc

with "same" padding, hard switches, squares averaged and not summed, images in [−1, 1], and dropout
before the last layer.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ali.config import Config
from ali.errors import UserError
from ali.metrics import LOSS
from ali.models import layers
from ali.models.base import Labelled, LatentModel, Noise, Normal, wide

# Kernel and maps of each convolution; a stage ends in 2×2 max-pooling.
STAGES = (
    ((5, 128),),
    ((3, 128), (3, 256)),
    ((3, 256),),
)
POOL = 2


class WhatWhere(LatentModel):
    """A code is the topmost "what", then the "where" of each stage, bottom to top."""

    LOSSES = (LOSS,)

    def __init__(
        self, image: tuple[int, int, int], config: Config, dtype: torch.dtype, classes: int
    ) -> None:
        super().__init__(config.model, image)
        maps, size, _ = image
        if size % POOL ** len(STAGES):
            raise UserError(f"--model swwae takes images, and {config.data} has none")
        self.stages, self.mirrored = nn.ModuleList(), nn.ModuleList()
        for stage in STAGES:
            widths = [maps, *(max(1, round(n * config.width)) for _, n in stage)]
            sizes = [(k, a, b) for (k, _), (a, b) in zip(stage, pairwise(widths), strict=True)]
            self.stages.append(nn.ModuleList(_conv(k, a, b) for k, a, b in sizes))
            self.mirrored.append(nn.ModuleList(_conv(k, b, a) for k, a, b in reversed(sizes)))
            maps, size = widths[-1], size // POOL
        self.classifier = nn.Linear(maps * size * size, classes)
        self.dtype = dtype
        self.reconstruction_weight = config.setting("reconstruction_weight")
        self.middle_weight = config.setting("middle_weight")
        self.dropout = config.setting("dropout_fc")
        self.register_buffer("classes", torch.tensor(classes))

    def initialise(self, x: np.ndarray, generator: torch.Generator) -> None:
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def losses(self, x: Tensor, labelled: Labelled | None, noise: Noise) -> tuple[Tensor, ...]:
        assert labelled is not None
        x_l, y = labelled
        both = torch.cat([x_l, x])
        whats, wheres = self.up(both)
        h = layers.dropout(whats[-1][: len(x_l)].flatten(1), self.dropout, noise.source)
        error = F.cross_entropy(self._logits(h), y)
        x_tilde, middle = self.down(whats[-1], wheres)
        reconstruction = F.mse_loss(x_tilde, 2 * both - 1)
        between = [F.mse_loss(wide(m), wide(w)) for m, w in zip(middle, whats[:-1], strict=True)]
        loss = error + self.reconstruction_weight * reconstruction
        return (loss + self.middle_weight * torch.stack(between).sum(),)

    def up(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What and where of each stage, bottom to top; x (B, C, H, W) in [0, 1]."""
        h, whats, wheres = (2 * x - 1).to(self.dtype), list[Tensor](), list[Tensor]()
        for stage in self.stages:
            for layer in _layers(stage):
                h = F.relu(_apply(layer, h))
            h, where = F.max_pool2d(h, POOL, return_indices=True)
            whats.append(h)
            wheres.append(where)
        return whats, wheres

    def down(self, what: Tensor, wheres: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x̃ (B, C, H, W) in [−1, 1] or about, and what each stage but the last is decoded to."""
        h, middle = what, list[Tensor]()
        for number in reversed(range(len(wheres))):
            h = F.max_unpool2d(h, wheres[number], [POOL, POOL])
            convolutions = _layers(self.mirrored[number])
            for layer in convolutions:
                h = _apply(layer, h)
                if number or layer is not convolutions[-1]:
                    h = F.relu(h)
            middle.insert(0, h)
        return wide(middle[0]), middle[1:]

    def class_scores(self, x: Tensor, normal: Normal) -> Tensor:
        return self._logits(self.up(x)[0][-1].flatten(1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The topmost "what", which has no distribution."""
        what = wide(self.up(x)[0][-1].flatten(1))
        return what, torch.full_like(what, -torch.inf)

    def sample_codes(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        whats, wheres = self.up(x)
        return (whats[-1], *wheres)

    def decode(self, *codes: Tensor) -> Tensor:
        what, *wheres = codes
        return (0.5 * self.down(what, wheres)[0] + 0.5).clamp(0, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def _logits(self, h: Tensor) -> Tensor:
        weight, bias = (one.to(self.dtype) for one in self.classifier.parameters())
        return wide(F.linear(h, weight, bias))


def _conv(kernel: int, maps: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(maps, out, kernel, padding=kernel // 2)


def _layers(stage: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in stage.children() if isinstance(layer, nn.Conv2d)]


def _apply(layer: nn.Conv2d, h: Tensor) -> Tensor:
    """The convolution, in the type of its input."""
    assert layer.bias is not None
    return F.conv2d(h, layer.weight.to(h.dtype), layer.bias.to(h.dtype), padding=layer.padding)
