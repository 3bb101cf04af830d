import pytest

from tests.integration.harness import Toy, new_database


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    return new_database(tmp_path_factory.mktemp("database"))


@pytest.fixture
def toy(tmp_path, database):
    return Toy(tmp_path, database=database)
