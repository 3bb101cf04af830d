"""The interface that the networks of every model implement, their losses included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ali import distributed
from ali.catalog import KINDS, Kind, Model
from ali.errors import UserError

Normal = Callable[[tuple[int, ...]], Tensor]  # shape → N(0, 1) numbers on the networks' device
Labelled = tuple[Tensor, Tensor]  # x (B, C, H, W) in [0, 1]; y int64 (B,)


def wide(h: Tensor) -> Tensor:
    """h in fp32; unchanged if it is fp64, as in gradient checks."""
    return h if h.dtype == torch.float64 else h.float()


@dataclass(frozen=True)
class Noise:
    """The random numbers of a training step; with several workers, those of the worker's rows.

    Attributes:
        source: what they are drawn from, dropout masks included.
    """

    source: distributed.RandomSource
    device: torch.device

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return self._draw(torch.randn, shape)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """In [0, 1)."""
        return self._draw(torch.rand, shape)

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        def rows(n: int, generator: torch.Generator) -> Tensor:
            return draw((n, *shape[1:]), generator=generator, device=self.device)

        return distributed.draw_rows(self.source, shape[0], rows)


class Networks(nn.Module):
    """The networks of one experiment.

    Attributes:
        model: as in Config.
        image: channels, height, width of what it is trained on.
        levels: stochastic layers z₁ … z_L.
        encoder: x → codes; None for a model that has none. Called, it returns mean and log σ of
            q(z | x); `sample(x, normal)` draws the codes that `decoder` takes.
        decoder: `decoder(*codes)` is x̃ in [0, 1]; `sample_prior(n, normal)` draws n codes. None for
            a model that has none.
        discriminator: of models that have one.
    """

    LOSSES: ClassVar[tuple[str, ...]]  # metrics: each loss's mean over an epoch
    levels: int = 1
    encoder: Any
    decoder: Any
    discriminator: Any

    def __init__(self, model: Model, image: tuple[int, int, int]) -> None:
        super().__init__()
        self.model, self.image = model, image

    @property
    def kind(self) -> Kind:
        return KINDS[self.model]

    def initialise(self, x: np.ndarray, generator: torch.Generator) -> None:
        """Draws the weights from `generator`; takes what it needs to know from training images.

        x: uint8 (N, H, W, C), or fp32 points (N, 1, 1, 2).
        """
        raise NotImplementedError

    def losses(self, x: Tensor, labelled: Labelled | None, noise: Noise) -> tuple[Tensor, ...]:
        """One loss for each group of `weights`, which it trains: fp32 scalars, in training mode.

        Args:
            x: (B, C, H, W) in [0, 1], unlabelled.
            labelled: as many labelled images, for a model that classifies.

        ALI and the GAN have none: their step is Algorithm 1 (ali/training/step.py).
        """
        raise NotImplementedError

    def weights(self) -> Sequence[Sequence[nn.Parameter]]:
        """The weights of each optimiser, in the order of `kind.adam`."""
        return [list(self.parameters())]

    def limited(self, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients that one optimiser steps with. Default: unchanged."""
        return gradients

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, counted from 0, of `epochs` in all. Default: does nothing."""
        return None

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) → (B, D) fp32, what SVMs classify (§4.4)."""
        raise NotImplementedError

    def class_scores(self, x: Tensor, normal: Normal) -> Tensor:
        """x (B, C, H, W) → (B, K) fp32: the largest is the class of x."""
        raise NotImplementedError

    def require_encoder(self) -> Any:
        """The encoder. Raises UserError for a model that has none."""
        if self.encoder is None:
            uses = "sample" if self.kind.generates else "classify"
            raise UserError(
                f"a {self.name} has no encoder: use it to {uses} only, or train with --model ali"
            )
        return self.encoder

    def require_prior(self) -> Any:
        """The decoder, to sample from. Raises UserError for a model without a prior."""
        if not self.kind.generates:
            raise UserError(
                f"a {self.name} has no prior to sample from: train with --model ali, for example"
            )
        return self.decoder

    def require_classifier(self) -> None:
        """Raises UserError for a model that is trained without labels."""
        if not self.kind.classifies:
            raise UserError(
                f"a {self.name} is trained without labels and does not classify: SVMs do, on its "
                "features (python -m ali table1)"
            )

    @property
    def name(self) -> str:
        """The model's name in a sentence."""
        return {"ali": "ALI", "gan": "GAN"}.get(self.model, self.model)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Changes the type of activations."""
        for part in self.modules():
            if hasattr(part, "dtype"):
                vars(part)["dtype"] = dtype


class LatentModel(Networks):
    """Networks without modules called encoder and decoder: subclasses say what a code is.

    Codes are tensors (n, …); the last one has the prior N(0, I).
    """

    def __init__(self, model: Model, image: tuple[int, int, int]) -> None:
        super().__init__(model, image)
        self.encoder, self.decoder = _EncoderOf(self), _DecoderOf(self)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) → mean and log σ of q(z | x), (B, z) each."""
        raise NotImplementedError

    def sample_codes(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        """x (B, C, H, W) → codes of x, drawn."""
        raise NotImplementedError

    def sample_prior(self, n: int, normal: Normal) -> tuple[Tensor, ...]:
        """n codes from the prior."""
        raise NotImplementedError

    def decode(self, *codes: Tensor) -> Tensor:
        """Codes → the mean of p(x | codes), (n, C, H, W), images in [0, 1]."""
        raise NotImplementedError


class _EncoderOf:
    """A latent model used as `Networks.encoder`. Not a module: its weights are the model's."""

    noise = 0

    def __init__(self, model: LatentModel) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.posterior(x)

    def sample(self, x: Tensor, normal: Normal) -> tuple[Tensor, ...]:
        return self.model.sample_codes(x, normal)


class _DecoderOf:
    """A latent model used as `Networks.decoder`."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model

    def __call__(self, *codes: Tensor) -> Tensor:
        return self.model.decode(*codes)

    def sample_prior(self, n: int, normal: Normal) -> tuple[Tensor, ...]:
        return self.model.sample_prior(n, normal)
