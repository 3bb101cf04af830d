"""Two moons, six labels (Maaløe et al. 2016): models with labels beat the nearest neighbour."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.neighbors import KNeighborsClassifier

from ali.config import Config
from ali.data import Images, LabelledBatches
from ali.evaluation import protocol
from ali.training import step
from ali.training.state import State

SEEDS = (0, 1)
KNOWN = [(-0.95, 0.05), (-0.05, 0.95), (1.05, 0.05), (-0.05, 0.35), (1.05, -0.55), (1.85, 0.35)]
X_KNOWN, Y_KNOWN = np.array(KNOWN, np.float32), np.array([0, 0, 0, 1, 1, 1])
BASE = {"data": "mixture", "labels": 6, "batch_size": 100, "precision": "fp32"}
QUICK = {"width": 0.2, "lr_d": 2e-3}
# Their share of all points: with 1, p(x | ·) has half of its weight at six, and y serves them alone
AUXILIARY = {"known_weight": 6 / 2000, "width": 0.1, "z_size": 10, "lr_g": 1e-3, "epochs": 50}
CONFIGS = {  # 1000 steps
    "ali-labels": QUICK | {"width": 0.3, "lr_g": 1e-3, "dropout_xz": 0.1, "epochs": 50},
    "gan-labels": QUICK | {"lr_g": 1e-3, "dropout_xz": 0.0, "weight_std": 0.1, "epochs": 50},
    "vae-m2": {"width": 0.2, "z_size": 10, "lr_g": 3e-3, "label_weight": 3.0, "epochs": 50},
    "sdgm": AUXILIARY,
    "adgm": AUXILIARY,
}
CENTRE = np.array([0.5, 0.25], np.float32)


@cache
def moons(seed):
    """Points fp32 (N, 1, 1, 2), and which moon each is of."""
    x, y = make_moons(2000, noise=0.2, random_state=seed)
    return Images(x.astype(np.float32).reshape(-1, 1, 1, 2), y)


def nearest_neighbour_error(seed):
    test = moons(100 + seed)
    knn = KNeighborsClassifier(1).fit(X_KNOWN, Y_KNOWN)
    return (knn.predict(test.x.reshape(-1, 2)) != test.y).mean()


def error(config, seed):
    images = moons(seed)
    test, known = moons(100 + seed), X_KNOWN
    auxiliary = config.model in ("sdgm", "adgm")
    if auxiliary:  # they take no mean off
        images, test = (Images(part.x - CENTRE, part.y) for part in (images, test))
        known = known - CENTRE
    state = State.create(config.replace(seed=seed), images, "cpu", classes=2)
    x = torch.from_numpy(known).view(-1, 1, 1, 2)
    state.labelled = LabelledBatches(x, torch.from_numpy(Y_KNOWN))
    for _ in range(config.epochs):
        step.train_epoch(state, torch.from_numpy(images.x))
    return protocol.classifier_error(state.networks, test)


@pytest.mark.slow
@pytest.mark.parametrize("model", CONFIGS)
def test_it_beats_the_nearest_neighbour(model):
    config = Config.of_model(model).replace(**BASE, **CONFIGS[model])
    theirs = np.mean([nearest_neighbour_error(seed) for seed in SEEDS])
    assert np.mean([error(config, seed) for seed in SEEDS]) < theirs
