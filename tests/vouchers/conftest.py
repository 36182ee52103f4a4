"""One database per module for the tests of vouchers."""

from collections.abc import Iterator

import pytest

from kernel.database import open_engine
from kernel.postgres import PrivatePostgres
from tests.conftest import IDLE_MS
from tests.vouchers.world import World


@pytest.fixture(scope="module")
def world(postgres: PrivatePostgres, request: pytest.FixtureRequest) -> Iterator[World]:
    """One migrated database for a module's tests, which keep apart by names."""
    name = request.module.__name__.rsplit(".", 1)[-1]
    postgres.create_database(name, template="migrated")
    engine = open_engine(postgres.url(name), pool_size=40, idle_ms=IDLE_MS)
    yield World(engine)
    engine.dispose()
    postgres.drop_database(name)
