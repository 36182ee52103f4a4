"""A machine per test; after the test nothing of it may remain (`harness.a_machine` asserts it)."""

from collections.abc import Iterator, Sequence

import pytest

from tests.scheduler.node.harness import Machine, Node, a_machine
from tests.scheduler.node.hosts import Host, some_hosts


@pytest.fixture
def machine() -> Iterator[Machine]:
    with a_machine() as machine:
        yield machine


@pytest.fixture
def node(machine: Machine) -> Node:
    return machine.node()


@pytest.fixture
def hosts(machine: Machine, root: None) -> Iterator[Sequence[Host]]:  # noqa: ARG001 - asks to be root's
    """Three on one underlay; as only root's nodes span hosts, only root makes them."""
    with some_hosts(machine, 3) as hosts:
        yield hosts
