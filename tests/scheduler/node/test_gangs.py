"""Ranks of one gang on one host share a network namespace, under one supervisor or two, and nobody else."""

from pathlib import Path

import pytest

from scheduler.node.protocol import EndReason, Gang, Network, RunSpec
from tests.scheduler.node.harness import Machine, Node

pytestmark = pytest.mark.slow

SERVE = """
import socket, os
s = socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
print("listening", flush=True)
c, _ = s.accept()
print(c.recv(100).decode(), flush=True)
"""
CALL = """
import socket, os, time
while True:
    try:
        c = socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 1)
        break
    except OSError:
        time.sleep(0.01)
c.sendall(b"hello from rank " + os.environ["RANK"].encode())
"""


def rank(node: Node, number: int, program: str, gang: str) -> RunSpec:
    return node.spec(
        "python3",
        "-c",
        program,
        rank=number,
        world_size=2,
        network=Network.JOB,
        gang=Gang(gang),
        time_limit_ms=300_000,
    )


def test_two_ranks_under_one_supervisor_talk_to_each_other(node: Node) -> None:
    server, caller = rank(node, 0, SERVE, "g1"), rank(node, 1, CALL, "g1")
    node.begin(server)
    node.begin(caller)
    assert node.ended(server).exit_code == 0
    assert node.ended(caller).exit_code == 0
    assert "hello from rank 1" in Path(server.log).read_text()


def test_two_ranks_under_two_supervisors_of_one_host_talk_to_each_other(machine: Machine) -> None:
    a, b = machine.node("a"), machine.node("b")
    server, caller = rank(a, 0, SERVE, "g1"), rank(b, 1, CALL, "g1")
    a.begin(server)
    b.begin(caller)
    assert a.ended(server).exit_code == 0
    assert b.ended(caller).exit_code == 0
    assert "hello from rank 1" in Path(server.log).read_text()


def test_another_gang_does_not_hear_it(node: Node) -> None:
    server = rank(node, 0, SERVE, "g1")
    node.begin(server)
    stranger = node.spec(
        "python3",
        "-c",
        CALL.replace("while True:", "for _ in range(50):"),
        rank=1,
        network=Network.JOB,
        gang=Gang("g2"),
    )
    assert node.run(stranger).exit_code == 1
    assert "hello" not in Path(server.log).read_text()
    node.desired.clear()
    node.ended(server)


def test_a_gang_outlives_the_supervisor_that_made_its_network(machine: Machine) -> None:
    a, b = machine.node("a"), machine.node("b")
    first = a.spec("sleep", "100", network=Network.JOB, gang=Gang("g"))
    server = rank(b, 0, SERVE, "g")
    a.begin(first)
    b.begin(server)
    while "listening" not in (Path(server.log).read_text() if Path(server.log).exists() else ""):
        b.sync()
    a.kill()
    caller = rank(b, 1, CALL, "g")
    b.begin(caller)
    assert b.ended(server).exit_code == 0
    assert b.ended(caller).exit_code == 0
    a.start()
    assert a.status(first).end_reason is EndReason.SUPERVISOR_LOST


@pytest.mark.parametrize("rounds", [8])
def test_gangs_come_and_go_without_leaving_anything(node: Node, rounds: int) -> None:
    for number in range(rounds):
        specs = [node.spec("true", network=Network.JOB, gang=Gang(f"g{number % 2}")) for _ in range(2)]
        for spec in specs:
            node.begin(spec)
        assert [node.ended(spec).exit_code for spec in specs] == [0, 0]
