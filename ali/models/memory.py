"""What training takes of a GPU's memory, before anything is trained."""

from __future__ import annotations

from ali.config import Config
from ali.models.inference import CHUNK
from ali.models.tables import apply_config, out_size, rows_with_inputs

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
    weights = activations = largest = 0
    for name, rows in rows_with_inputs(apply_config(config), config.levels).items():
        images = 2 if name.startswith("d_") else 1  # D sees images and samples
        for row, maps, size in rows:
            outputs = row.maps * out_size(row, size) ** 2
            weights += row.kernel**2 * maps * row.maps
            activations += images * outputs
            largest = max(largest, outputs)
    trained = A_WEIGHT * weights + AN_ACTIVATION * config.batch_size * activations
    return CONTEXT + data_bytes + trained + EVALUATED * largest
