"""What all tests share: the real PostgreSQL, started once per session, and that nothing remains of a session.

Every test that asks gets a fresh migrated database.
"""

import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from kernel.database import open_engine
from kernel.migrations import migrate
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from tests.leftovers import leftovers, own_folder, remove

IDLE_MS = 120_000
_numbers = itertools.count(1)
_folder = own_folder()  # before anybody asks for a temporary file


@pytest.fixture(scope="session", autouse=True)
def nothing_remains() -> Iterator[None]:
    """When all tests and all other fixtures of the session are over, nothing of them may remain.

    The folder is kept when something does, and when a test failed.
    """
    yield
    found = leftovers(_folder)
    assert not found, f"left behind by this session, in {_folder}: {found}"


def pytest_sessionfinish(exitstatus: int) -> None:
    """Keep what failed tests wrote; remove the rest."""
    if exitstatus == pytest.ExitCode.OK:
        remove(_folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, for anybody else, what asks to be root's; the summary counts it as deselected."""
    if os.geteuid() == 0:
        return
    others = [item for item in items if "root" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def root() -> None:
    """Asked for by tests of what only root can make: machines with networks of their own."""


@dataclass(frozen=True)
class Database:
    """One migrated database of the test server."""

    server: PrivatePostgres
    name: str

    @property
    def url(self) -> str:
        """As the application's restricted role."""
        return self.server.url(self.name)

    @property
    def owner_url(self) -> str:
        """As the owner of the tables."""
        return self.server.url(self.name, OWNER_ROLE)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """The server, with the template database that holds the newest schema."""
    with tempfile.TemporaryDirectory(prefix="hub-test-") as folder:
        server = PrivatePostgres(Path(folder) / "pg", durable=False)
        server.start()
        server.create_database("migrated")
        migrate(server.url("migrated", OWNER_ROLE))
        yield server
        server.stop()


@pytest.fixture
def database(postgres: PrivatePostgres) -> Iterator[Database]:
    """A fresh copy of the migrated database, dropped afterwards."""
    name = f"test_{next(_numbers)}"
    postgres.create_database(name, template="migrated")
    yield Database(postgres, name)
    postgres.drop_database(name)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """An engine on a fresh database as the application role, for whom a busy machine may leave no time for a while."""
    engine = open_engine(database.url, idle_ms=IDLE_MS)
    yield engine
    engine.dispose()
