"""Ranks of one gang on several hosts reach each other, and nobody else; namespaces on one underlay are the hosts."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import psutil
import pytest

from scheduler.node.config import NodeConfig, SandboxMode
from scheduler.node.errors import InvalidRun, NodeFailed
from scheduler.node.overlay import Overlay, mac_of, open_overlay, vni_of
from scheduler.node.protocol import (
    RANK_NETWORK,
    UNAVAILABLE,
    EndReason,
    Gang,
    Network,
    RunSpec,
    RunState,
    rank_address,
)
from tests.scheduler.node.harness import Machine, Node, await_line
from tests.scheduler.node.hosts import Host
from tests.scheduler.node.test_gangs import CALL

pytestmark = pytest.mark.slow

ALL_WITH_ALL = """
import os, socket, sys, threading, time
me, own = int(os.environ["RANK"]), sys.argv[1:]
listener = socket.create_server((own[me], 7000), backlog=len(own))

def echo(other):
    while said := other.recv(1 << 16):
        other.sendall(said)

def answer():
    while True:
        threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()

threading.Thread(target=answer, daemon=True).start()
kept = []

def ask(address):
    while True:
        try:
            asked = socket.create_connection((address, 7000), 5)
        except OSError:
            continue
        asked.sendall(b"x" * 5000)
        assert len(asked.recv(5000, socket.MSG_WAITALL)) == 5000
        kept.append(asked)
        return asked.getsockname()[0]

print(me, os.environ["MASTER_ADDR"], os.environ["NCCL_SOCKET_IFNAME"], os.environ["GLOO_SOCKET_IFNAME"])
print("from", *(ask(address) for address in own), flush=True)
time.sleep(300)  # others may still ask
"""
STAY = "import time; time.sleep(300)"
SERVE = """
import os, socket
here = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(here)
listener = socket.create_server(here)
print("listening", flush=True)
word = ""
while word != "the last":
    word = datagrams.recv(100).decode()
    print("datagram:", word, flush=True)
other, _ = listener.accept()
print(other.recv(100).decode(), flush=True)
"""
FORGE = """
import socket, struct, sys
to, number, mac, from_mac, address, from_address, port, word = sys.argv[1:]
payload = word.encode()
udp = struct.pack("!4H", 1, int(port), 8 + len(payload), 0) + payload
ends = socket.inet_aton(from_address) + socket.inet_aton(address)
ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + ends
total = sum(struct.unpack("!10H", ip))
ip = ip[:10] + struct.pack("!H", 0xFFFF - (total % 0xFFFF)) + ip[12:]
macs = bytes.fromhex((mac + from_mac).replace(":", ""))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
    plain.sendto(struct.pack("!II", 0x08000000, int(number) << 8) + macs + bytes((8, 0)) + ip + udp, (to, 4789))
"""
REACH = """
import socket, sys
port, *hosts = sys.argv[1:]
for host in hosts:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as one:
            try:
                one.connect((host, int(port)))
                print(host, "is reached")
            except OSError as error:
                print(host, error.strerror)
"""
LISTEN = """
import socket, sys
both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
print(both.getsockname()[1], flush=True)
both.accept()
"""


def rank(node: Node, number: int, program: str, gang: Gang, *words: str) -> RunSpec:
    return node.spec(
        *("python3", "-c", program, *words),
        rank=number,
        world_size=len(gang.peers),
        network=Network.JOB,
        gang=gang,
        time_limit_ms=300_000,
    )


def gang_on(*hosts: Host, name: str = "gang-1") -> Gang:
    return Gang(name, peers=tuple(host.address for host in hosts))


def test_ranks_on_hosts_talk_each_from_its_hosts_address(machine: Machine, hosts: Sequence[Host]) -> None:
    a, b = hosts[0].node(machine), hosts[1].node(machine)
    nodes = (a, b, hosts[0].node(machine, "beside-a"))
    told = [node.sync().spanning.address for node in nodes]
    assert told == ["198.51.100.1", "198.51.100.2", "198.51.100.1"]
    gang = gang_on(hosts[0], hosts[1], hosts[0])
    addresses = [rank_address(number) for number in range(3)]
    specs = [
        node.begin(rank(node, number, ALL_WITH_ALL, gang, *addresses)) for number, node in enumerate(nodes)
    ]
    for spec in specs:
        await_line(spec, "from")
    for number, (spec, speaks_from) in enumerate(zip(specs, ("10.0.0.1", "10.0.0.2", "10.0.0.1"), strict=True)):
        said = Path(spec.log).read_text()
        assert said == f"{number} 10.0.0.1 gang0 gang0\nfrom {' '.join([speaks_from] * 3)}\n"
    (folder,) = hosts[0].gangs(machine)
    inside = ("nsenter", f"--net=/proc/{(folder / 'holder').read_text().split()[0]}/ns/net")
    shown = subprocess.run([*inside, "ip", "-json", "link"], check=True, capture_output=True).stdout
    links = {link["ifname"]: link["mtu"] for link in json.loads(shown)}
    assert links == {"lo": 65536, "gang0": 1450}
    for node, spec in zip(nodes, specs, strict=True):
        node.desired.clear()
        assert node.ended(spec).end_reason is EndReason.STOPPED
    for host in hosts:
        host.await_end_of_gangs(machine)


def test_two_gangs_on_the_same_hosts_do_not_hear_each_other(machine: Machine, hosts: Sequence[Host]) -> None:
    a, b = hosts[0].node(machine), hosts[1].node(machine)
    gang, others = gang_on(*hosts[:2]), gang_on(*hosts[:2], name="gang-2")
    server = a.begin(rank(a, 0, SERVE, gang))
    await_line(server, "listening")
    silent = a.begin(rank(a, 0, STAY, others))
    a.await_state(silent, RunState.RUNNING)
    stranger = rank(b, 1, CALL.replace("while True:", "for _ in range(50):"), others)
    assert b.run(stranger).exit_code == 1
    assert Path(server.log).read_text() == "listening\n"


def test_a_gang_reaches_no_host_and_no_address_beyond_it(machine: Machine, hosts: Sequence[Host]) -> None:
    a, b = hosts[0].node(machine), hosts[1].node(machine)
    gang = gang_on(*hosts[:2])
    other = a.begin(rank(a, 0, STAY, gang))
    a.await_state(other, RunState.RUNNING)
    command = [*hosts[1].wrapper, sys.executable, "-c", LISTEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        port = listening.stdout.readline().strip()
        beyond = [*(host.address for host in hosts), "169.254.169.254", "192.0.2.1", "8.8.8.8", "2001:db8::1"]
        spec = rank(b, 1, REACH, gang, port, *beyond)
        assert b.run(spec).exit_code == 0
        listening.kill()
    said = Path(spec.log).read_text().splitlines()
    assert said == [f"{host} Network is unreachable" for host in beyond for _ in range(2)]


def test_only_the_gangs_hosts_are_heard(machine: Machine, hosts: Sequence[Host]) -> None:
    a, b = hosts[0].node(machine), hosts[1].node(machine)
    gang = gang_on(*hosts[:2])
    server, caller = rank(a, 0, SERVE, gang), rank(b, 1, CALL, gang)
    a.begin(server)
    await_line(server, "listening")
    own, other = (mac_of(gang.id, host.address) for host in hosts[:2])
    for host, from_mac, from_address, word in (
        (hosts[2], other, rank_address(1), "from a host that is not of the gang"),
        (hosts[0], other, rank_address(1), "from the rank's own host"),
        (hosts[2], "02:00:00:00:00:01", rank_address(1), "from a host and a MAC that are not"),
        (hosts[1], "02:00:00:00:00:01", rank_address(1), "from a MAC that is not"),
        (hosts[1], other, rank_address(2), "from a rank that there is not"),
        (hosts[1], own, rank_address(1), "from its own MAC"),
        (hosts[1], other, rank_address(1), "the last"),
    ):
        words = (
            hosts[0].address,
            str(vni_of(gang.id)),
            own,
            from_mac,
            rank_address(0),
            from_address,
            "29500",
            word,
        )
        host.run(sys.executable, "-c", FORGE, *words)
    b.begin(caller)
    assert a.ended(server).exit_code == 0
    assert Path(server.log).read_text() == "listening\ndatagram: the last\nhello from rank 1\n"


def test_two_gangs_of_one_number_are_not_joined(machine: Machine, hosts: Sequence[Host]) -> None:
    first, second = two_of_one_number()
    a, b = hosts[0].node(machine), hosts[1].node(machine)
    level = a.sync().isolation.level
    staying = a.begin(rank(a, 0, STAY, gang_on(*hosts[:2], name=first)))
    a.await_state(staying, RunState.RUNNING)
    refused = a.run(rank(a, 0, "print()", gang_on(hosts[0], hosts[2], name=second)))
    assert refused.end_reason is EndReason.NODE_FAILED
    assert (
        refused.reason
        == f"This node has a network number {vni_of(second)} already, which would be this gang's."
    )
    assert a.sync().isolation.level == level
    del a.desired[staying.run_id]
    a.ended(staying)
    again = gang_on(*hosts[:2], name=second)
    talk(a, b, again)


def test_hosts_may_reach_each_other_over_ipv6(machine: Machine, hosts: Sequence[Host]) -> None:
    a, b = (host.node(machine, span_address=host.address6) for host in hosts[:2])
    talk(a, b, Gang("gang-6", peers=(hosts[0].address6, hosts[1].address6)))


def talk(a: Node, b: Node, gang: Gang) -> None:
    server, caller = rank(a, 0, SERVE.replace('word = ""', 'word = "the last"'), gang), rank(b, 1, CALL, gang)
    a.begin(server)
    b.begin(caller)
    assert a.ended(server).exit_code == 0
    assert Path(server.log).read_text() == "listening\nhello from rank 1\n"


def two_of_one_number() -> tuple[str, str]:
    seen: dict[int, str] = {}
    for name in map(str, count()):
        if vni_of(name) in seen:
            return seen[vni_of(name)], name
        seen[vni_of(name)] = name
    raise AssertionError


def test_a_killed_supervisor_leaves_nothing_of_its_gangs_network(
    machine: Machine, hosts: Sequence[Host]
) -> None:
    a, b = hosts[0].node(machine), hosts[1].node(machine)
    gang = gang_on(*hosts[:2])
    specs = [node.begin(rank(node, at, STAY, gang)) for at, node in enumerate((a, b))]
    for node, spec in zip((a, b), specs, strict=True):
        node.await_state(spec, RunState.RUNNING)
    (folder,) = hosts[0].gangs(machine)
    holder = psutil.Process(int((folder / "holder").read_text().split()[0]))
    assert hosts[0].listens()
    # As a connection does whose other end is gone, this keeps the namespace, but not its way out.
    with Path(f"/proc/{holder.pid}/ns/net").open("rb"):
        a.kill()
        holder.wait(timeout=60)
        a.start()
        hosts[0].await_end_of_gangs(machine)
    assert a.status(specs[0]).end_reason is EndReason.SUPERVISOR_LOST
    assert hosts[1].listens()
    assert b.status(specs[1]).state is RunState.RUNNING


def test_a_rank_that_cannot_be_part_of_its_gang_here_is_no_fault_of_the_jobs(
    machine: Machine, hosts: Sequence[Host]
) -> None:
    node = hosts[0].node(machine)
    moved = node.run(rank(node, 0, "print()", gang_on(hosts[2], hosts[1])))
    assert moved.end_reason is EndReason.NODE_FAILED
    assert moved.reason == "Other hosts reach this node at 198.51.100.1, not at 198.51.100.3."
    assert node.sync().isolation.level != UNAVAILABLE
    for peers, problem in (
        (("198.51.100.1",), "must be one address for each rank."),
        (("198.51.100.1",) * 2, "must be of several hosts; all of this gang say that others reach them at 198"),
        (("198.51.100.1", ""), "must be addresses of IP version 4 as this host's 198.51.100.1, not ''."),
        (("198.51.100.1", "2001:db8::1"), "must be addresses of IP version 4 as this host's 198.51.100.1, not"),
    ):
        spec = replace(rank(node, 0, "print()", Gang("g", peers=peers)), world_size=2)
        refused = node.run(spec)
        assert refused.end_reason is EndReason.START_FAILED
        assert refused.reason.startswith(f"gang.peers: {problem}")


def test_whether_a_node_spans_hosts_is_found_by_trying(machine: Machine, hosts: Sequence[Host]) -> None:
    node = hosts[0].node(machine)
    assert (node.sync().spanning.address, node.sync().spanning.problem) == (hosts[0].address, "")
    assert node.stop() == 0
    nft = shutil.which("nft", path="/usr/sbin:/usr/bin")
    broken = f'mount --bind /usr/bin/false {nft} && exec "$@"'
    node.wrapper = (*hosts[0].wrapper, "unshare", "--mount", "sh", "-c", broken, "sh")
    node.start()
    spanning = node.sync().spanning
    assert not spanning.address
    assert spanning.problem == (
        "This node runs no part of a gang that spans machines: "
        "The network of a gang that spans hosts could not be made: nsenter: left with status 1."
    )
    refused = node.run(rank(node, 0, "print()", gang_on(*hosts[:2])))
    assert (refused.end_reason, refused.reason) == (EndReason.NODE_FAILED, spanning.problem)
    assert node.run(node.spec("true")).exit_code == 0


CONFIG = NodeConfig("n", "h", "/s", "/w", "/r", span_address="198.51.100.1")
NOT_ROOT = "its supervisor is not root."


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"span_address": ""}, "its span_address, '', is no IP address."),
        ({"span_address": "n1.centre"}, "its span_address, 'n1.centre', is no IP address."),
        (
            {"span_address": "127.0.0.1"},
            "its span_address, 127.0.0.1, is one that other machines cannot reach.",
        ),
        ({"span_address": "::"}, "its span_address, ::, is one that other machines cannot reach."),
        ({}, "none of its interfaces has its span_address, 198.51.100.1."),
        ({"host_network": True}, "its jobs may use the host's network, from where they could send"),
        ({"sandbox": SandboxMode.PROCESS}, "its jobs may use the host's network, from where they could send"),
    ],
)
def test_a_node_that_cannot_span_says_why(changes: dict[str, object], why: str) -> None:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    with pytest.raises(NodeFailed, match=re.escape(why if os.geteuid() == 0 else NOT_ROOT)):
        asyncio.run(open_overlay(config))
    with ordinary_user(), pytest.raises(NodeFailed, match=re.escape(NOT_ROOT)):
        asyncio.run(open_overlay(config))


@contextmanager
def ordinary_user() -> Iterator[None]:
    before = os.geteuid()
    os.seteuid(before or 65534)
    yield
    os.seteuid(before)


def test_a_gang_has_no_more_ranks_than_its_network_has_addresses() -> None:
    most = RANK_NETWORK.num_addresses - 2
    assert rank_address(most - 1) == str(RANK_NETWORK.broadcast_address - 1)
    spec = RunSpec("r", "j", "t", 1, ("true",), "/w", "/l", world_size=most + 1)
    with pytest.raises(InvalidRun, match="more than a gang's network has addresses for"):
        Overlay("198.51.100.1", 1450).check(spec, Gang("g", peers=("198.51.100.1",) * (most + 1)))
