"""What training takes of a GPU's memory, before anything is trained."""

from __future__ import annotations

from ali.config import Config
from ali.models.tables import Rows, apply_config, out_maps, out_size

CONTEXT = 2**30  # bytes that CUDA itself takes for a process, and what torch reserves at least
A_WEIGHT = 16  # bytes: fp32, its gradient, Adam's two moments
AN_ACTIVATION = 16  # bytes: bf16, what its gradient needs, and as much again for workspaces


def gpu_memory(config: Config) -> int:
    """About how many bytes of a GPU's memory training takes in a process of its own.

    Computed from the networks of ALI's table, whatever the model: the others' are not larger. What
    was measured is in docs/results.md.
    """
    table = apply_config(config)
    maps, size, _ = table.image
    z = config.levels * table.z
    weights = activations = 0
    joint = sum(out_maps(rows[-1], table.pieces) for rows in (table.d_x, table.d_z) if rows)
    for rows, inputs, pixels, images in (
        (table.encoder, maps + table.noise, size, 1),
        (table.decoder, z, 1, 1),
        (table.d_x, maps, size, 2),  # it sees images and samples
        (table.d_z, z, 1, 2),
        (table.d_xz, joint, 1, 2),
    ):
        w, a = _sizes(rows, inputs, pixels, table.pieces)
        weights, activations = weights + w, activations + images * a
    return CONTEXT + A_WEIGHT * weights + AN_ACTIVATION * config.batch_size * activations


def _sizes(rows: Rows, maps: int, size: int, pieces: int) -> tuple[int, int]:
    """Weights, and activations for one input."""
    weights = activations = 0
    for row in rows:
        weights += row.kernel**2 * maps * row.maps
        maps, size = out_maps(row, pieces), out_size(row, size)
        activations += row.maps * size**2
    return weights, activations
