"""What is said over the socket, and by whom."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scheduler.node.errors import SupervisorUnreachable
from scheduler.node.protocol import OverRequest, RunState
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


def test_who_waits_for_runs_to_be_over_hears_of_it_when_none_lives_and_of_no_other_change(node: Node) -> None:
    script = "until test -e /job/go; do sleep 0.05; done"
    first, second, other = (node.begin(node.spec("/bin/sh", "-c", script)) for _ in range(3))
    with node.client() as client:
        Path(first.workspace, "go").touch()
        node.ended(first)
        assert client.sync_when_over(OverRequest((first.run_id, second.run_id), 10, node.request())) is None
        Path(second.workspace, "go").touch()
        told = client.sync_when_over(OverRequest((first.run_id, second.run_id), 60_000, node.request()))
        assert told is not None
        assert {run.run_id for run in told.runs if run.state is not RunState.ENDED} == {other.run_id}
        assert client.sync_when_over(OverRequest(("never heard of",), 60_000, node.request())) is not None
    node.desired.clear()
    node.ended(other)


def test_a_sync_that_was_overtaken_while_it_waited_is_only_answered(node: Node) -> None:
    script = "until test -e /job/go; do sleep 0.05; done"
    awaited = node.begin(node.spec("/bin/sh", "-c", script))
    number = 7
    ahead = OverRequest((awaited.run_id,), 60_000, node.request(number=number))
    with node.client() as client, ThreadPoolExecutor(1) as pool:
        told = pool.submit(client.sync_when_over, ahead)
        other = node.spec("/bin/sh", "-c", script)
        node.desired[other.run_id] = other  # of which what waits says nothing
        node.sync(number=number + 1)
        Path(awaited.workspace, "go").touch()
        report = told.result()
    assert report is not None
    ended = {run.run_id: run.state is RunState.ENDED for run in report.runs}
    assert ended == {awaited.run_id: True, other.run_id: False}
    assert node.status(other).end_reason is None
    node.desired.clear()
    node.sync(number=number + 2)
    node.ended(other)


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
