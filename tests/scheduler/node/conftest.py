"""A machine per test; after the test nothing of it may remain (`harness.a_machine` asserts it)."""

from collections.abc import Iterator

import pytest

from tests.scheduler.node.harness import Machine, Node, a_machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    with a_machine() as machine:
        yield machine


@pytest.fixture
def node(machine: Machine) -> Node:
    return machine.node()
