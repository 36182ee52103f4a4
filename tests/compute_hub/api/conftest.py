"""One database per module for the tests of the API."""

from collections.abc import Iterator

import pytest

from kernel.database import open_engine
from kernel.postgres import PrivatePostgres
from tests.compute_hub.api.house import House
from tests.conftest import IDLE_MS


@pytest.fixture(scope="module")
def house(
    postgres: PrivatePostgres, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """The API on one migrated database for a module's tests, which keep apart by names."""
    name = "api_" + request.module.__name__.rsplit(".", 1)[-1]
    postgres.create_database(name, template="migrated")
    engine = open_engine(postgres.url(name), pool_size=20, idle_ms=IDLE_MS)
    house = House(engine, tmp_path_factory.mktemp("state"))
    yield house
    house.close()
    engine.dispose()
    postgres.drop_database(name)
