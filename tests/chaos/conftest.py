"""One hub of two nodes for all faults of a session, on the machinery of `benchmarks.chaos`."""

import sys
from collections.abc import Iterator
from functools import partial

import pytest

from benchmarks.chaos import left_behind
from benchmarks.peers.ours import Hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("chaos")
    with Hub(folder, partial(print, file=sys.stderr), meter_interval_ms="1000") as hub:
        yield hub
    assert left_behind(folder) == []
