"""How good the networks are: the L2-SVM protocol of §4.4, and the pictures of Figures 2 to 6."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ali.config import Config
from ali.data import Dataset, Images, labelled_draw, pixel_features, to_unit
from ali.errors import UserError
from ali.evaluation import svm
from ali.models.layers import BN_MOMENTUM
from ali.models.networks import ALI, Normal

CHUNK = 500  # images encoded at once

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 (N, H, W, C) → features (N, D) fp32


# The L2-SVM protocol (§4.4)


def features(networks: ALI, x: np.ndarray) -> np.ndarray:
    """Encoder features of x, uint8 (N, H, W, 3): fp32 (N, 5376) at width 1, see Encoder.features.

    Batch norm uses its running statistics; the networks' mode is left as it was.
    """
    with evaluating(networks):
        return torch.cat([networks.features(h).cpu() for h in chunks(networks, x)]).numpy()


def mu(networks: ALI, x: np.ndarray) -> np.ndarray:
    """Mean of q(z | x) for x, uint8 (N, H, W, 3): fp32 (N, 256), with running statistics."""
    with evaluating(networks):
        return torch.cat([networks.sees()(h)[0].cpu() for h in chunks(networks, x)]).numpy()


def val_error(networks: ALI, dataset: Dataset, config: Config) -> float:
    """Validation error, a fraction: the objective of a sweep.

    C is picked once, on the first labelled draw, by its error on the validation set over the whole
    grid; the result is the mean at that C over config.draws draws of config.labels images. The
    first draw's share is a little optimistic, as C was chosen on the images it is judged by. The
    draws do not depend on config.seed.

    Raises FloatingPointError where a feature is not finite, and UserError for a draw that the
    labelled pool cannot give.
    """
    return _val_error(_encoder(networks), dataset, config)


def see(networks: ALI, x: np.ndarray, batches: int = 50) -> None:
    """Gives batch norm the statistics of x, uint8 (N, H, W, 3), wherever `features` needs them.

    They are the running mean over batches of 100 images, without a share of what was there before.
    """
    before = {name: buffer.clone() for name, buffer in networks.named_buffers()}
    was = networks.training
    networks.train()
    with torch.no_grad():
        for i in range(batches):
            rows = np.arange(i * 100, i * 100 + 100) % len(x)
            networks.features(next(chunks(networks, x[rows])))
        left = (1 - BN_MOMENTUM) ** batches  # the share of what was there before
        for name, buffer in networks.named_buffers():
            buffer.sub_(left * before[name]).div_(1 - left)
    networks.train(was)


def raw_pixel_error(dataset: Dataset, config: Config) -> float:
    """As `val_error`, with the pixels in [0, 1] as features: what an encoder has to beat."""
    return _val_error(pixel_features, dataset, config)


def test_errors(
    networks: ALI, dataset: Dataset, test: Images, config: Config, draws: int = 100
) -> np.ndarray:
    """Test error (draws,), fractions, of one SVM for each labelled draw; report mean ± std.

    As in §4.4, C is picked on the validation set, once and as `val_error` picks it, and then 100
    machines are fitted to 100 draws. The test images choose nothing.
    """
    assert test.y is not None
    encode = _encoder(networks)
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
    """The C of the grid with the least error on the validation features, on draw 0; that error."""
    assert dataset.valid.y is not None
    curve = _fit(encode, dataset, config, 0, svm.GRID).errors(valid, dataset.valid.y)
    return float(svm.GRID[curve.argmin()]), float(curve.min())


def _fit(
    encode: Encode, dataset: Dataset, config: Config, draw: int, cs: Sequence[float] | np.ndarray
) -> svm.Machines:
    """Machines for labelled draw number `draw`."""
    x, y = labelled_draw(dataset, config, draw)
    return svm.fit(encode(x), y, cs)


def _encoder(networks: ALI) -> Encode:
    return lambda x: features(networks, x)


# Pictures: each a grid as uint8 (H', W', 3), determined by the networks and its arguments


def samples(networks: ALI, n: int = 100, seed: int = 0) -> np.ndarray:
    """n samples x̃ = G_x(z), z ~ N(0, I): Figures 2(a) to 5(a)."""
    with evaluating(networks):
        z = networks.decoder.prior(n, normal(seed, networks))
        return _grid(networks.decoder(*z), columns=round(n**0.5))


def reconstructions(networks: ALI, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """x, uint8 (N, H, W, 3), in the odd columns, G_x(ẑ), ẑ ~ q(z | x), right of each: Fig. 2(b)."""
    with evaluating(networks):
        source = torch.cat(list(chunks(networks, x)))
        pairs = torch.stack([source, networks.decoder(*_z_hat(networks, source, seed))], dim=1)
        return _grid(pairs.flatten(0, 1), columns=2 * max(1, round((2 * len(x)) ** 0.5 / 2)))


def interpolations(
    networks: ALI, x: np.ndarray, rows: int = 8, steps: int = 10, seed: int = 0
) -> np.ndarray:
    """Decoded lines between ẑ₁ and ẑ₂ of pairs of images (§4.2), one pair a row.

    A row shows image i of x, uint8 (N ≥ 2, H, W, 3), `steps` equally spaced points from ẑ₁ to ẑ₂,
    both included, and image i + rows. Raises UserError for fewer than two images.
    """
    rows = min(rows, len(x) // 2)
    if rows < 1:
        raise UserError(f"an interpolation needs two images, not {len(x)}")
    with evaluating(networks):
        ends = torch.cat(list(chunks(networks, x[: 2 * rows])))
        t = torch.linspace(0, 1, steps, device=ends.device)[:, None]

        def between(z_hat: Tensor) -> Tensor:
            first, last = z_hat[:, None].chunk(2)  # (rows, 1, z)
            return ((1 - t) * first + t * last).flatten(0, 1)

        line = networks.decoder(*map(between, _z_hat(networks, ends, seed)))
        line = line.view(rows, steps, *ends.shape[1:])
        shown = torch.cat([ends[:rows, None], line, ends[rows:, None]], dim=1)
        return _grid(shown.flatten(0, 1), columns=steps + 2)


def _z_hat(networks: ALI, x: Tensor, seed: int) -> tuple[Tensor, ...]:
    return networks.sees().sample(x, normal(seed, networks))


def normal(seed: int, networks: ALI) -> Normal:
    """Drawn on the CPU from a generator of its own: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator).to(device(networks))


def _grid(images: Tensor, columns: int) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] → uint8 (H', W', 3), images row by row, white lines between them.

    As torchvision's make_grid, whose import takes seconds that every trial's process would wait.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    fill = (0, 0) * 3 + (0, rows * columns - len(images))
    tiles = F.pad(F.pad(images.cpu(), (2, 0, 2, 0), value=1.0), fill, value=1.0)
    tiles = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
    grid = F.pad(tiles.flatten(3, 4).flatten(1, 2), (0, 2, 0, 2), value=1.0)
    return grid.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def device(networks: ALI) -> torch.device:
    return next(networks.parameters()).device


def chunks(networks: ALI, x: np.ndarray) -> Iterator[Tensor]:
    """x, uint8 (N, H, W, 3), as fp32 (≤ CHUNK, 3, H, W) in [0, 1] on the networks' device."""
    for start in range(0, len(x), CHUNK):
        part = torch.from_numpy(np.array(x[start : start + CHUNK]))
        yield to_unit(part.to(device(networks)))


@contextmanager
def evaluating(networks: ALI) -> Iterator[None]:
    """Running statistics, no dropout, no gradients; the mode is put back."""
    was = networks.training
    networks.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        networks.train(was)
