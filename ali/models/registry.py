"""The networks of a configuration: new ones, and empty ones for weights that were saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ali.catalog import Model
from ali.config import Config
from ali.models import networks
from ali.models.base import Networks
from ali.models.labelled import ConvolutionalClassifier, LabelledALI
from ali.models.sdgm import AuxiliaryModel
from ali.models.swwae import WhatWhere
from ali.models.tables import apply_config, paper_table
from ali.models.vae import M1, M1M2, M2

Build = Callable[[Config, torch.dtype, int], Networks]  # the int: number of classes


def create(
    config: Config, x: np.ndarray, classes: int, generator: torch.Generator, dtype: torch.dtype
) -> Networks:
    """New networks on the CPU, weights drawn from `generator`.

    Args:
        x: training images, uint8 (N, H, W, C), or points of the plane.
        classes: number of classes; 0 without labels.
        dtype: of the activations; weights are always fp32.
    """
    if config.model not in _BUILD:
        return networks.build(config, networks.pixel_mean(x, config.seed), generator, dtype)
    made = _BUILD[config.model](config, _activations(config, dtype), classes)
    made.initialise(x, generator)
    return made


def empty(config: Config, saved: Mapping[str, Tensor], dtype: torch.dtype) -> Networks:
    """Networks on the CPU that `load_state_dict(saved)` fits."""
    if config.model not in _BUILD:
        return networks.build(config, dtype=dtype)
    classes = int(saved["classes"]) if "classes" in saved else 0
    return _BUILD[config.model](config, _activations(config, dtype), classes)


def _activations(config: Config, dtype: torch.dtype) -> torch.dtype:
    """fp32 for points in the plane, as networks.build has it."""
    return torch.float32 if paper_table(config).image[1] == 1 else dtype


def _of_table(made: type[LabelledALI] | type[ConvolutionalClassifier]) -> Build:
    return lambda config, dtype, classes: made(apply_config(config), config, dtype, classes)


def _of_image(made: type[M2] | type[AuxiliaryModel] | type[WhatWhere]) -> Build:
    return lambda config, dtype, classes: made(paper_table(config).image, config, dtype, classes)


def _m1(config: Config, dtype: torch.dtype, classes: int) -> Networks:
    return M1(paper_table(config).image, config, dtype, config.setting("z_size"))


_BUILD: dict[Model, Build] = {
    "ali-labels": _of_table(LabelledALI),
    "gan-labels": _of_table(LabelledALI),
    "convnet": _of_table(ConvolutionalClassifier),
    "vae-m1": _m1,
    "vae-m2": _of_image(M2),
    "vae-m1m2": _of_image(M1M2),
    "sdgm": _of_image(AuxiliaryModel),
    "adgm": _of_image(AuxiliaryModel),
    "swwae": _of_image(WhatWhere),
}
