"""The registered model of a sweep whose name has signs with a meaning in addresses or in Python."""

import ast
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from ali import data
from ali.config import Config
from sweeps.engine.registered_model import register, save_model
from sweeps.engine.tracking.schema import SWEEP
from tests.ali.cli.commands import untrained

CONFIG = Config(data="mixture", width=0.05)


def test_a_checkpoint_in_a_folder_with_signs_of_an_address(tmp_path):
    checkpoint = untrained(tmp_path / "a%41b#&" / "checkpoint", CONFIG)
    dataset = data.load(CONFIG)
    save_model(tmp_path / "model", checkpoint, CONFIG, dataset)
    encoded = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(dataset.valid.x[:3])
    assert encoded.shape == (3, 2) and np.isfinite(encoded).all()


class Told(Exception):
    """Carries what MLflow is told of the model."""


class Registry:
    tracking_uri = "sqlite:///mlflow.db"

    def get_run(self, run_id):
        return SimpleNamespace(info=SimpleNamespace(artifact_uri="file:///artifacts"))

    def create_registered_model(self, name, description):
        raise Told(description)


@pytest.mark.parametrize("name", ["svhn", 'a"b', "été", "{x}"])
def test_the_line_that_loads_it_is_python(tmp_path, name):
    checkpoint = untrained(tmp_path, CONFIG)
    with pytest.raises(Told) as told:
        register(Registry(), "0", checkpoint, {}, {SWEEP: name}, None)
    _, code, _ = str(told.value).split("```")
    nodes = ast.walk(ast.parse(code.removeprefix("python")))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert f"models:/ali-{name}@champion" in texts
