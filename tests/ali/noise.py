"""Images of noise to train on, and the bits of what is trained."""

import numpy as np

from ali.data import Dataset, Images


def noise():
    """60 training images (32, 32, 3) of ten classes, 30 to validate on."""
    rng = np.random.default_rng(0)
    pool, valid = (
        Images(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10) for n in (60, 30)
    )
    return Dataset("noise", pool, pool, valid, 10, "0" * 16)


def bits(state):
    return {name: tensor.clone() for name, tensor in state.networks.state_dict().items()}
