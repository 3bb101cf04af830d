"""A trained model as MLflow loads it: what it makes of images, which depends on the model's kind.

Every registered model holds a copy of this file and of the package `ali`, all that it needs of the
project; MLflow runs it when it loads the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

if TYPE_CHECKING:
    from ali.catalog import Kind

CHECKPOINT = "checkpoint"  # the model's one artifact: a checkpoint of `ali`
ENCODINGS, RECONSTRUCTIONS, SAMPLES = "encodings", "reconstructions", "samples"  # values of output
CLASSES = "classes"  # another value, for models trained with labels


def outputs_of(kind: Kind) -> list[str]:
    """The values of `output` that a model has, the default first."""
    found = [ENCODINGS, RECONSTRUCTIONS] if kind.encodes else []
    found += [SAMPLES] if kind.generates else []
    return found + ([CLASSES] if kind.classifies else [])


class AliModel(PythonModel):
    """An ALI, a GAN or another model. The device is a GPU where there is one."""

    def load_context(self, context: Any) -> None:
        from ali.training.state import load_networks
        from ali.training.step import device

        self.networks, _ = load_networks(Path(context.artifacts[CHECKPOINT]), device())

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Applies the model to images, uint8 (N, H, W, 3), or mixture points, fp32 (N, 1, 1, 2).

        Args:
            params: `output`, the first that the model has if it is not given: ENCODINGS, the mean
                of q(z | x), fp32 (N, z), or ẑ for the mixture; RECONSTRUCTIONS; SAMPLES, as many as
                there are images (only their number is used); CLASSES, int64 (N,), of a model
                trained with labels. `seed`: seeds ẑ and z.

        Raises ValueError for an output that the model does not have.
        """
        from ali.models import inference

        params, known = params or {}, outputs_of(self.networks.kind)
        output, seed = params.get("output", known[0]), int(params.get("seed", 0))
        if output not in known:
            raise ValueError(f"output must be one of {', '.join(known)}, not {output!r}")
        if output == ENCODINGS:
            return inference.encode(self.networks, model_input, seed)
        if output == RECONSTRUCTIONS:
            return inference.reconstruct(self.networks, model_input, seed)
        if output == SAMPLES:
            return inference.sample(self.networks, len(model_input), seed)
        return inference.classify(self.networks, model_input, seed)


set_model(AliModel())
