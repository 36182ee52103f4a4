"""One hub of two nodes for all faults, on the machinery of `benchmarks.chaos`."""

import sys
from collections.abc import Iterator
from functools import partial

import pytest

from benchmarks.peers.mending import Mender
from benchmarks.peers.ours import Hub
from benchmarks.peers.verdict import processes_of
from compute_hub.sdk import HubClient
from tests.chaos.watching import await_whole


@pytest.fixture(scope="module")
def _struck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Mender]]:
    folder = tmp_path_factory.mktemp("chaos")
    with Hub(folder, partial(print, file=sys.stderr), meter_interval_ms="1000") as hub, Mender(hub) as mender:
        yield hub, mender
    assert processes_of(folder) == []


@pytest.fixture
def hub(_struck: tuple[Hub, Mender]) -> Hub:
    """Whole again, by itself, after whatever the test before did to it."""
    hub, _ = _struck
    await_whole(hub)
    return hub


@pytest.fixture
def mender(_struck: tuple[Hub, Mender]) -> Mender:
    return _struck[1]


@pytest.fixture
def client(hub: Hub) -> Iterator[HubClient]:
    with hub.client() as client:
        yield client
