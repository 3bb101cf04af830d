"""A trained model as MLflow loads it: encodings, reconstructions or samples of images.

Every registered model holds a copy of this file and of the package `ali`, all that it needs of the
project; MLflow runs it when it loads the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

CHECKPOINT = "checkpoint"  # the model's one artifact: a checkpoint of `ali`
ENCODINGS, RECONSTRUCTIONS, SAMPLES = "encodings", "reconstructions", "samples"  # values of output
CLASSES = "classes"  # another value, for models trained with labels


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
            params: `output`: ENCODINGS, the mean of q(z | x), fp32 (N, z), or ẑ for the mixture;
                RECONSTRUCTIONS; SAMPLES, as many as there are images (only their number is used);
                or CLASSES, int64 (N,), of a model trained with labels. `seed`: seeds ẑ and z.
        """
        from ali.models import inference

        params = params or {}
        output, seed = params.get("output", ENCODINGS), int(params.get("seed", 0))
        if output == ENCODINGS:
            return inference.encode(self.networks, model_input, seed)
        if output == RECONSTRUCTIONS:
            return inference.reconstruct(self.networks, model_input, seed)
        if output == SAMPLES:
            return inference.sample(self.networks, len(model_input), seed)
        if output == CLASSES:
            return inference.classify(self.networks, model_input, seed)
        choices = ", ".join((ENCODINGS, RECONSTRUCTIONS, SAMPLES, CLASSES))
        raise ValueError(f"output must be one of {choices}, not {output!r}")


set_model(AliModel())
