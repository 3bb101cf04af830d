import shutil

import pytest

from sweeps.engine import tracking
from tests.integration.harness import Toy, new_database


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    return new_database(tmp_path_factory.mktemp("database"))


@pytest.fixture
def toy(tmp_path, database):
    return Toy(tmp_path, database=database)


@pytest.fixture
def local(tmp_path, database):
    """(client, destination) on a local database, with the parent run open."""
    shutil.copy(database, tmp_path)
    uri = tracking.default_uri(tmp_path)
    client = tracking.connect(uri)
    experiment = tracking.experiment_id(client, tmp_path)
    parent = tracking.start_sweep(client, experiment, "s", "val_error", {"epochs": 3})
    return client, tracking.TrackingContext(uri, experiment, "s", parent, "val_error", ("lr_d",))
