"""What a registered model makes of images, and what its description says of that."""

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

from ali.catalog import Model
from ali.training.state import State
from sweeps.engine import registered_model
from sweeps.engine.pyfunc_model import AliModel, outputs_of
from tests.ali.noise import noise
from tests.ali.training.test_models import CPU, config_of

OUTPUTS = {"encodings", "reconstructions", "samples", "classes"}


class Registry:
    """MLflow's client, up to the point where the model is written."""

    tracking_uri = "http://somewhere"

    def __init__(self, description=None):
        self.description = description

    def get_run(self, _):
        return SimpleNamespace(info=SimpleNamespace(artifact_uri="file:///artifacts"))

    def create_registered_model(self, _, description):
        if self.description is not None:
            raise MlflowException("exists", RESOURCE_ALREADY_EXISTS)
        self.description = description

    def get_registered_model(self, _):
        return SimpleNamespace(description=self.description)

    def update_registered_model(self, _, description):
        self.description = description

    def search_model_versions(self, _):
        raise InterruptedError


def described(config, folder, registry):
    dataset = noise()
    State.create(config, dataset.train, CPU, dataset.classes).save(folder)
    with pytest.raises(InterruptedError):
        registered_model.register(registry, "run", folder, {}, {"sweep": "s"}, dataset)
    return registry.description


@pytest.mark.parametrize("model", get_args(Model))
def test_the_description_shows_all_that_the_model_makes_and_nothing_else(model, tmp_path):
    """Of a GAN it showed encodings and reconstructions, for which it has no encoder."""
    text = described(config_of(model), tmp_path, Registry())
    loaded = AliModel()
    loaded.load_context(SimpleNamespace(artifacts={"checkpoint": str(tmp_path)}))
    images = noise().valid.x[:3]

    def predict(images, params=None):
        return loaded.predict(None, images, params)

    calls = [line for line in text.splitlines() if line.startswith("model.predict(")]
    for call in calls:
        exec(call, {"model": SimpleNamespace(predict=predict), "images": images})
    made = set(outputs_of(loaded.networks.kind))
    assert {output for output in OUTPUTS if output in text} == made
    for output in OUTPUTS:
        if output in made:
            assert len(predict(images, {"output": output})) == 3
        else:
            with pytest.raises(ValueError, match="output must be one of") as refused:
                predict(images, {"output": output})
            assert all(name in str(refused.value) for name in made)
    first = predict(images, {"output": outputs_of(loaded.networks.kind)[0]})
    assert np.array_equal(predict(images), first), "without parameters"


def test_a_description_of_ours_follows_the_model_and_one_of_the_users_stays(tmp_path):
    """A sweep's name may be used again, for another model."""
    of_ali = described(config_of("ali"), tmp_path / "1", Registry())
    of_gan = described(config_of("gan"), tmp_path / "2", Registry())
    assert of_ali != of_gan == described(config_of("gan"), tmp_path / "3", Registry(of_ali))
    assert described(config_of("gan"), tmp_path / "4", Registry("mine")) == "mine"
