"""A ledger whose pool holds 100 micro-yuan; one database for all of these tests, emptied before each.

Copying the migrated database takes longer than most of them.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from kernel.database import open_engine, transaction
from kernel.postgres import PrivatePostgres
from ledger.posting import open_accounts, post_all
from tests.conftest import Database
from tests.ledger.world import CARDS, OWED, POOL, SPENT, T0, WORLD, move

_NAME = "ledger_tests"


@pytest.fixture(scope="session")
def shared(postgres: PrivatePostgres) -> Iterator[Engine]:
    """An engine on the one database, as the application role."""
    postgres.create_database(_NAME, template="migrated")
    engine = open_engine(postgres.url(_NAME))
    yield engine
    engine.dispose()
    postgres.drop_database(_NAME)


@pytest.fixture(scope="session")
def root(shared: Engine, postgres: PrivatePostgres) -> Iterator[Engine]:
    """An engine of the superuser's on the same database."""
    assert shared.url.database == _NAME
    engine = open_engine(postgres.url(_NAME, "postgres"), pool_size=1)
    yield engine
    engine.dispose()


@pytest.fixture
def database(postgres: PrivatePostgres, root: Engine) -> Database:
    """The one database, with an empty ledger."""
    with root.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("holds", "transfers", "accounts"):
            connection.execute(text(f"DELETE FROM {table}"))
    return Database(postgres, _NAME)


@pytest.fixture
def engine(database: Database, shared: Engine) -> Engine:
    """The engine on the emptied ledger."""
    assert shared.url.database == database.name
    return shared


@pytest.fixture
def funded(engine: Engine) -> Engine:
    """POOL holds 100."""
    with transaction(engine) as session:
        open_accounts(session, [WORLD, POOL, SPENT, OWED, CARDS], at=T0)
        post_all(session, [move("fund", WORLD, POOL, 100)], at=T0)
    return engine
