"""The L2-SVM protocol of §4.4: from features of images to val_error and test errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ali.config import Config
from ali.data import Dataset, Images, labelled_draw, pixel_features
from ali.evaluation import svm
from ali.models import inference
from ali.models.base import Networks
from ali.models.inference import CHUNK, chunks, evaluating
from ali.models.layers import BN_MOMENTUM

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 (N, H, W, C) → features (N, D) fp32


def features(networks: Networks, x: np.ndarray) -> np.ndarray:
    """Encoder features of x, uint8 (N, H, W, 3): fp32 (N, 5376) at width 1, see Encoder.features.

    Batch norm uses its running statistics; the networks' mode is restored.
    """
    with evaluating(networks):
        return torch.cat([networks.features(h).cpu() for h in chunks(networks, x)]).numpy()


def discriminator_features(networks: Networks, x: np.ndarray) -> np.ndarray:
    """As `features`, of the discriminator: D(x)'s layers, max-pooled to 4×4, fp32 (N, D)."""
    with evaluating(networks):
        found = [networks.discriminator.features(h).cpu() for h in chunks(networks, x)]
        return torch.cat(found).numpy()


def val_error(networks: Networks, dataset: Dataset, config: Config) -> float:
    """Validation error, a fraction: the objective of a sweep.

    A model that classifies has its own error; others have that of SVMs on their features. C is
    chosen once, on the first labelled draw, as the one of the grid with the lowest error on the
    validation set; the result is the mean at that C over config.draws draws of config.labels
    images. The first draw's error is a little optimistic, as C was chosen on the same images. The
    draws do not depend on config.seed.

    Raises FloatingPointError if a feature is not finite, and UserError if the labelled pool is too
    small for a draw.
    """
    if networks.kind.classifies:
        return classifier_error(networks, dataset.valid)
    return _val_error(_encoder(networks), dataset, config)


def classifier_error(networks: Networks, images: Images) -> float:
    """Fraction of images that the networks' own classifier gets wrong."""
    assert images.y is not None
    return float((inference.classify(networks, images.x) != images.y).mean())


def update_bn_stats(networks: Networks, x: np.ndarray, batches: int = 50) -> None:
    """Sets the running statistics that `features` uses to those of x, uint8 (N, H, W, 3).

    They are the running mean over batches of 100 images, with the old values' share removed.
    """
    before = {name: buffer.clone() for name, buffer in networks.named_buffers()}
    was = networks.training
    networks.train()
    with torch.no_grad():
        for i in range(batches):
            rows = np.arange(i * 100, i * 100 + 100) % len(x)
            networks.features(next(chunks(networks, x[rows])))
        left = (1 - BN_MOMENTUM) ** batches  # the weight of the old values
        statistics = [one for one in networks.named_buffers() if "running" in one[0]]
        for name, buffer in statistics:
            buffer.sub_(left * before[name]).div_(1 - left)
    networks.train(was)


def raw_pixel_error(dataset: Dataset, config: Config) -> float:
    """val_error with the pixels in [0, 1] as features, which an encoder should beat."""
    return _val_error(pixel_features, dataset, config)


def test_errors(
    networks: Networks,
    dataset: Dataset,
    test: Images,
    config: Config,
    draws: int = 100,
    encode: Encode | None = None,
) -> np.ndarray:
    """Test errors (draws,), fractions, of one SVM per labelled draw; report mean ± std.

    A model that classifies has its own error, (1,). `encode` is used in place of `features`.

    As in §4.4, C is chosen on the validation set, once and as `val_error` does, and then 100 SVMs
    are fitted to 100 draws. Nothing is chosen on the test images.
    """
    assert test.y is not None
    if networks.kind.classifies and encode is None:
        return np.array([classifier_error(networks, test)])
    encode = encode or _encoder(networks)
    c, _ = _pick_c(encode, encode(dataset.valid.x), dataset, config)
    machines = [_fit(encode, dataset, config, i, [c]) for i in range(draws)]
    wrong = np.zeros(draws)
    for start in range(0, len(test), 10 * CHUNK):
        part = test[start : start + 10 * CHUNK]
        assert part.y is not None
        x = encode(part.x)
        wrong += [machine.errors(x, part.y)[0] * len(part) for machine in machines]
    return wrong / len(test)


test_errors.__test__ = False  # type: ignore[attr-defined]  # nothing for pytest to collect


def _val_error(encode: Encode, dataset: Dataset, config: Config) -> float:
    assert dataset.valid.y is not None
    valid = encode(dataset.valid.x)
    c, error = _pick_c(encode, valid, dataset, config)
    errors = [error]
    for i in range(1, config.draws):
        machine = _fit(encode, dataset, config, i, [c])
        errors.append(machine.errors(valid, dataset.valid.y)[0])
    return float(np.mean(errors))


def _pick_c(
    encode: Encode, valid: np.ndarray, dataset: Dataset, config: Config
) -> tuple[float, float]:
    """The C of the grid with the lowest validation error on draw 0, and that error."""
    assert dataset.valid.y is not None
    curve = _fit(encode, dataset, config, 0, svm.GRID).errors(valid, dataset.valid.y)
    return float(svm.GRID[curve.argmin()]), float(curve.min())


def _fit(
    encode: Encode, dataset: Dataset, config: Config, draw: int, cs: Sequence[float] | np.ndarray
) -> svm.Machines:
    """SVMs fitted to labelled draw number `draw`, one per C."""
    x, y = labelled_draw(dataset, config, draw)
    return svm.fit(encode(x), y, cs)


def _encoder(networks: Networks) -> Encode:
    return lambda x: features(networks, x)
