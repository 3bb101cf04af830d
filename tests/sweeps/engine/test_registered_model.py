"""The registered model's files and description, for names with a meaning in addresses."""

import ast

import mlflow
import numpy as np
import pytest

from ali import data
from ali.config import Config
from sweeps.engine.registered_model import _about_all, save_model
from tests.ali.cli.commands import untrained


def test_a_sweep_whose_name_has_signs_of_an_address(tmp_path):
    config = Config(data="mixture", width=0.05)
    checkpoint = untrained(tmp_path / "a%41b#&" / "checkpoint", config)
    dataset = data.load(config)
    save_model(tmp_path / "model", checkpoint, config, dataset)
    encoded = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(dataset.valid.x[:3])
    assert encoded.shape == (3, 2) and np.isfinite(encoded).all()


@pytest.mark.parametrize("name", ["svhn", 'a"b', "été", "{x}"])
def test_the_line_that_loads_it_is_python(name):
    _, code, _ = _about_all(name, "sqlite:///mlflow.db").split("```")
    texts = {node.value for node in ast.walk(ast.parse(code.removeprefix("python")))
             if isinstance(node, ast.Constant)}  # fmt: skip
    assert f"models:/ali-{name}@champion" in texts
