import pytest

from sweeps.engine import tracking
from tests.integration.harness import Toy


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A new MLflow database to copy: making its tables takes longer than a toy sweep."""
    folder = tmp_path_factory.mktemp("database")
    tracking.connect(tracking.default_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def toy(tmp_path, database):
    return Toy(tmp_path, database=database)
