"""What is said over the socket, and by whom."""

import json
import socket

import pytest

from scheduler.node.errors import SupervisorUnreachable
from tests.scheduler.node.harness import Machine, Node


def test_waiting_for_a_change_returns_at_once_when_there_was_one(node: Node) -> None:
    spec = node.spec("true")
    before = node.sync().seq
    node.run(spec)
    with node.client() as client:
        change = client.wait_for_change(before, 60_000)
    assert change.seq > before


def test_waiting_for_a_change_ends_with_its_time(node: Node) -> None:
    seq = node.sync().seq
    with node.client() as client:
        assert client.wait_for_change(seq, 10).seq == seq


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"[]\n", b'{"method": "launch"}\n', b'{"method": "sync", "params": {"x": 1}}\n']
)
def test_a_request_that_is_not_understood_is_answered(node: Node, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(node.socket))
        connection.sendall(line)
        answer = json.loads(connection.makefile().readline())
    assert answer["error"]["code"] == "malformed_message"
    assert answer["error"]["field"]


def test_the_socket_is_its_owners_alone(node: Node) -> None:
    assert node.socket.stat().st_mode & 0o777 == 0o600


def test_a_supervisor_that_is_not_there_is_named(node: Node) -> None:
    node.stop()
    with pytest.raises(SupervisorUnreachable), node.client() as client:
        client.hello()


def test_a_socket_below_a_very_long_path_works(machine: Machine) -> None:
    state = machine.folder / ("d" * 100) / ("e" * 100)
    node = machine.node(state_directory=str(state))
    assert node.run(node.spec("true")).exit_code == 0
