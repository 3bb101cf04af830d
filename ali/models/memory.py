"""What training takes of a GPU's memory, before anything is trained."""

from __future__ import annotations

from ali.config import Config
from ali.models.inference import CHUNK
from ali.models.tables import Rows, apply_config, out_maps, out_size

CONTEXT = 2**30  # bytes that CUDA itself takes for a process, and what torch reserves at least
A_WEIGHT = 16  # bytes: fp32, its gradient, Adam's two moments
AN_ACTIVATION = 16  # bytes: bf16, what its gradient needs, and as much again for workspaces
EVALUATED = 4 * CHUNK  # bytes for each activation of the largest layer: its input and output


def gpu_memory(config: Config, data_bytes: int) -> int | None:
    """About how many bytes of a GPU's memory training takes in a process of its own.

    An upper bound by what was measured (docs/results.md); None for models other than ALI and the
    GAN, of which nothing was.

    Args:
        data_bytes: of the training images, which lie there, too.
    """
    if config.model not in ("ali", "gan"):
        return None
    table = apply_config(config)
    maps, size, _ = table.image
    z = config.levels * table.z
    weights = activations = largest = 0
    joint = sum(out_maps(rows[-1], table.pieces) for rows in (table.d_x, table.d_z) if rows)
    for rows, inputs, pixels, images in (
        (table.encoder, maps + table.noise, size, 1),
        (table.decoder, z, 1, 1),
        (table.d_x, maps, size, 2),  # it sees images and samples
        (table.d_z, z, 1, 2),
        (table.d_xz, joint, 1, 2),
    ):
        w, each = _sizes(rows, inputs, pixels, table.pieces)
        weights, activations = weights + w, activations + images * sum(each)
        largest = max(largest, *each, 0)
    trained = A_WEIGHT * weights + AN_ACTIVATION * config.batch_size * activations
    return CONTEXT + data_bytes + trained + EVALUATED * largest


def _sizes(rows: Rows, maps: int, size: int, pieces: int) -> tuple[int, list[int]]:
    """Weights, and each row's activations for one input."""
    weights, activations = 0, []
    for row in rows:
        weights += row.kernel**2 * maps * row.maps
        maps, size = out_maps(row, pieces), out_size(row, size)
        activations.append(row.maps * size**2)
    return weights, activations
