"""Real supervisors and a real database for the controller."""

import pytest
from sqlalchemy import Engine

from scheduler.store import Store
from tests.scheduler.controller.cluster import Cluster
from tests.scheduler.controller.counted import Centre
from tests.scheduler.node.conftest import hosts, machine  # noqa: F401 - fixtures are used by their names
from tests.scheduler.node.harness import Machine


@pytest.fixture
def cluster(engine: Engine, machine: Machine) -> Cluster:  # noqa: F811 - pytest's way of asking for a fixture
    return Cluster(engine, machine)


@pytest.fixture
def centre(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Centre:
    folder = tmp_path_factory.mktemp("store")
    return Centre(engine, Store(folder / "uploads", folder))
