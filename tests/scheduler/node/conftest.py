"""A machine per test; after the test nothing of it may remain: no process, cgroup, mount or gang folder."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scheduler.node.harness import Machine, Node, cgroups_of, processes_of


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="hub-node-") as name:
        folder = Path(name)
        machine = Machine(folder)
        yield machine
        for node in machine.nodes:
            if node.process is not None and node.process.poll() is None:
                assert node.stop() == 0, node.log.read_text()
        for node in machine.nodes:
            said = node.log.read_text()
            assert not said, said
        assert not processes_of(folder)
        assert not cgroups_of(machine.nodes)
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()
        assert not list((folder / "host" / "gangs").glob("*"))


@pytest.fixture
def node(machine: Machine) -> Node:
    return machine.node()
