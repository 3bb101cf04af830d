"""The model that a full training registers in MLflow: its files, description, tags and alias."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ali
from ali.catalog import KINDS, Kind
from ali.config import Config
from ali.metrics import EPOCH
from ali.output import without_password
from ali.training.checkpoint import read_manifest
from sweeps.engine.tracking.schema import SWEEP, TRIAL

if TYPE_CHECKING:
    from ali.data import Dataset

CHAMPION = "champion"  # alias of the newest version
EXAMPLES = 2  # images in the input example
NEEDED = ("mlflow", "torch", "numpy", "safetensors", "pillow")  # by `predict`'s imports
CODE = Path(__file__).with_name("pyfunc_model.py")


def model_name(sweep: str) -> str:
    """The registered model of a sweep."""
    return f"ali-{sweep}"


def register(
    client: Any,
    run_id: str,
    checkpoint: Path,
    found: dict[str, float],
    tags: dict[str, str],
    dataset: Dataset,
) -> str | None:
    """Logs a checkpoint to its run as a model of MLflow, and registers it as the champion.

    Returns the model's version; None if this run's checkpoint of this epoch is one already.
    A version's files are never rewritten.

    Args:
        found: the test's results, by metric.
        tags: the run's; SWEEP, TRIAL and DATA say what it was trained on.
    """
    from mlflow.exceptions import MlflowException

    manifest, name = read_manifest(checkpoint), model_name(tags[SWEEP])
    folder = f"mlflow_model_{manifest.epoch:06d}"  # model_*: an earlier version's, not loadable
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    kind, about_all = KINDS[manifest.config.model], partial(_about_all, tags[SWEEP], client)
    try:
        client.create_registered_model(name, description=about_all(kind))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # An earlier sweep of this name may have had another model. What a user has written stays.
        others = {about_all(other) for other in KINDS.values()} - {about_all(kind)}
        if client.get_registered_model(name).description in others:
            client.update_registered_model(name, about_all(kind))
    known = [v for v in client.search_model_versions(f"run_id = '{run_id}'") if v.source == source]
    if known:  # perhaps a kill came before it was made the champion
        newest = max(int(v.version) for v in known)
        if int(client.get_registered_model(name).aliases.get(CHAMPION, 0)) < newest:
            client.set_registered_model_alias(name, CHAMPION, str(newest))
        return None
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place, folder), checkpoint, manifest.config, dataset)
        client.log_artifacts(run_id, str(Path(place, folder)), folder)
    about = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items())
    about = (
        f"Trial {tags[TRIAL].partition('-')[0]} of sweep {tags[SWEEP]}, {manifest.epoch} epochs on "
        f"{manifest.config.data}, seed {manifest.config.seed}: {about}."
    )
    made = client.create_model_version(
        name, source, run_id, {**tags, EPOCH: manifest.epoch, **found}, description=about
    )
    client.set_registered_model_alias(name, CHAMPION, made.version)
    return made.version


def save_model(folder: Path, checkpoint: Path, config: Config, dataset: Dataset) -> None:
    """Writes a checkpoint as a model of MLflow: `mlflow.pyfunc.load_model` reads it.

    No object is pickled: the code is a file, the networks are the checkpoint's safetensors. Beside
    them is a copy of the package `ali`.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from sweeps.engine.pyfunc_model import CHECKPOINT, CLASSES, ENCODINGS, SAMPLES, outputs_of

    example = np.ascontiguousarray(dataset.valid.x[:EXAMPLES])
    output = outputs_of(KINDS[config.model])[0]
    params = ParamSchema([ParamSpec("output", "string", output), ParamSpec("seed", "long", 0)])
    inputs = Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))])
    encodings = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    classes = Schema([TensorSpec(np.dtype(np.int64), (-1,))])
    outputs = {ENCODINGS: encodings, SAMPLES: inputs, CLASSES: classes}[output]
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(CODE),
        artifacts={CHECKPOINT: checkpoint.absolute().as_uri()},  # in a path it decodes %41
        code_paths=[str(Path(ali.__file__).parent)],
        signature=ModelSignature(inputs, outputs, params),
        input_example=example,
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in NEEDED],
    )


def _about_all(sweep: str, client: Any, kind: Kind) -> str:
    """The description of a sweep's registered model: how it is loaded, and all that it makes."""
    from sweeps.engine.pyfunc_model import RECONSTRUCTIONS, SAMPLES, outputs_of

    default, *others = outputs_of(kind)
    seed: dict[str, dict[str, Any]] = {o: {"seed": 1} for o in (RECONSTRUCTIONS, SAMPLES)}
    asked = [seed[default]] if default in seed else []
    asked += [{"output": output, **seed.get(output, {})} for output in others]
    calls = "".join(f"model.predict(images, params={json.dumps(params)})\n" for params in asked)
    address = json.dumps(f"models:/{model_name(sweep)}@{CHAMPION}", ensure_ascii=False)
    return (
        f"The best configuration of sweep `{sweep}`, trained in full by `sweeps/best.py`.\n\n"
        "```python\n"
        "import mlflow\n\n"
        f'mlflow.set_tracking_uri("{without_password(client.tracking_uri)}")\n'
        f"model = mlflow.pyfunc.load_model({address})\n"
        f"model.predict(images)  # {default}\n"
        f"{calls}"
        "```\n"
    )
