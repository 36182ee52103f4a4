"""The network of a run that talks to nobody: its tenant's next run gets it when nothing is left in it."""

import ctypes
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, create_connection, create_server, socket

import pytest

from scheduler.node.networks import LoneNetworks
from scheduler.node.protocol import EndReason, Gang, Network
from tests.scheduler.node.harness import Machine, Node, await_line, open_descriptors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("root")]

_LIBC = ctypes.CDLL(None, use_errno=True)

WHICH = "readlink /proc/self/ns/net"

CLOSED_A_MOMENT_AGO = """
import os, socket
listening = socket.create_server(("127.0.0.1", 5000))
ours = socket.create_connection(("127.0.0.1", 5000))
theirs, _ = listening.accept()
theirs.close()
ours.close()
print(os.readlink("/proc/self/ns/net"))
"""

KILLED_AT_WORK = """
import os, socket, time
listening = socket.socket()
listening.bind(("127.0.0.1", 5000))
listening.listen()
ours = socket.create_connection(("127.0.0.1", 5000))
theirs, _ = listening.accept()
ours.sendall(b"never read")
print(os.readlink("/proc/self/ns/net"), flush=True)
time.sleep(600)
"""

LABELS = """
import socket, struct
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as labelled:
    make, anybody, seconds = 0, 1, 150
    wanted = struct.pack("!16sI", socket.inet_pton(socket.AF_INET6, "::1"), 0x12345)
    labelled.setsockopt(socket.IPPROTO_IPV6, 32, wanted + struct.pack("=BBHHHI", make, anybody, 1, seconds, 0, 0))
print(open("/proc/net/ip6_flowlabel").read().split()[8])
"""

SEEN_LABELS = """
print(len(open("/proc/net/ip6_flowlabel").readlines()))
"""

BIND = """
import socket
socket.socket().bind(("127.0.0.1", 5000))
print("bound")
"""


def _ours() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def _orphans() -> int:
    """Sockets of this machine that nobody has open any more and that still send."""
    words = next(
        line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")
    ).split()
    return int(words[words.index("orphan") + 1])


def _socket_inside(handle: int) -> socket:
    """A socket of a network, made by a thread that goes there."""
    with ThreadPoolExecutor(1) as pool:

        def go() -> socket:
            assert _LIBC.setns(handle, 0) == 0
            return socket(AF_INET, SOCK_DGRAM)

        return pool.submit(go).result()


def _which(node: Node, tenant: str) -> str:
    status, said = node.sh(WHICH, tenant_id=tenant)
    assert status.exit_code == 0
    return said


def _python(node: Node, program: str) -> str:
    spec = node.spec("python3", "-c", program, environment="python")
    assert node.run(spec).exit_code == 0, Path(spec.log).read_text()
    return Path(spec.log).read_text()


def test_the_next_run_of_a_tenant_has_the_network_of_the_last_and_another_tenants_never(
    machine: Machine,
) -> None:
    node = machine.node()
    first = _which(node, "one")
    assert _which(node, "one") == first
    other = _which(node, "other")
    assert other not in {first, f"{_ours()}\n"}
    assert (_which(node, "one"), _which(node, "other")) == (first, other)


def test_two_runs_at_once_have_two(machine: Machine) -> None:
    node = machine.node()
    script = f"{WHICH}; until test -e /job/go; do sleep 0.05; done"
    specs = [node.begin(node.spec("/bin/sh", "-c", script)) for _ in range(2)]
    for spec in specs:
        await_line(spec, "net:")
    for spec in specs:
        Path(spec.workspace, "go").touch()
        assert node.ended(spec).exit_code == 0
    networks = {Path(spec.log).read_text() for spec in specs}
    assert len(networks) == 2
    assert _which(node, "tenant") in networks


def test_a_port_whose_connection_was_closed_a_moment_ago_is_nobodys_hindrance(machine: Machine) -> None:
    node = machine.node()
    said = _python(node, CLOSED_A_MOMENT_AGO)
    assert _python(node, BIND) == "bound\n"
    assert _which(node, "tenant") != said


def test_a_label_that_outlives_its_socket_is_not_seen_by_the_next_run(machine: Machine) -> None:
    if not Path("/proc/net/ip6_flowlabel").exists():
        return  # a kernel without IPv6
    node = machine.node()
    assert _python(node, LABELS) == "12345\n"
    assert _python(node, SEEN_LABELS) == "1\n"  # the heading


def test_a_run_that_was_killed_with_its_connections_open_is_nobodys_hindrance(machine: Machine) -> None:
    node = machine.node()
    spec = node.begin(node.spec("python3", "-c", KILLED_AT_WORK, environment="python", grace_ms=0))
    await_line(spec, "net:")
    del node.desired[spec.run_id]
    assert node.ended(spec).end_reason is EndReason.STOPPED
    assert _python(node, BIND) == "bound\n"


def test_a_run_of_a_gang_and_one_alone_never_share_one(machine: Machine) -> None:
    node = machine.node()
    alone = _which(node, "tenant")
    spec = node.spec("/bin/sh", "-c", WHICH)
    together = replace(spec, network=Network.JOB, gang=Gang("g"))
    assert node.run(together).exit_code == 0
    assert Path(together.log).read_text() != alone
    assert _which(node, "tenant") == alone


@pytest.fixture
def networks() -> Iterator[LoneNetworks]:
    """Which keeps two."""
    made = LoneNetworks(kept_max=2)
    yield made
    made.close()


def test_who_lends_stays_where_it_is(networks: LoneNetworks) -> None:
    home = _ours()
    with networks.lend("t") as handle:
        assert f"net:[{os.fstat(handle).st_ino}]" != home == _ours()
    assert home == _ours()


def test_the_one_that_waited_longest_goes_first(networks: LoneNetworks) -> None:
    before = open_descriptors()
    found = {}
    for tenant in ("a", "b", "c"):
        with networks.lend(tenant) as handle:
            found[tenant] = os.fstat(handle).st_ino
    kept = open_descriptors() - before
    assert len([one for one in kept if Path("/proc/self/fd", one).readlink().name.startswith("net:")]) == 2
    for tenant in ("b", "c"):
        with networks.lend(tenant) as handle:
            assert os.fstat(handle).st_ino == found[tenant]


def test_what_others_leave_on_the_machine_is_no_reason_for_a_new_one(networks: LoneNetworks) -> None:
    with create_server(("127.0.0.1", 0)) as server, create_connection(server.getsockname()) as unread:
        theirs, _ = server.accept()
        with theirs:
            unread.settimeout(0)
            with suppress(BlockingIOError):
                while True:
                    unread.send(bytes(1 << 20))
            unread.close()  # which goes on sending to one that does not read
            assert _orphans() > 0
            numbers = []
            for _ in range(2):
                with networks.lend("t") as handle:
                    numbers.append(os.fstat(handle).st_ino)
            assert _orphans() > 0
    assert numbers[0] == numbers[1]


def test_one_in_which_something_is_open_is_not_lent_again(networks: LoneNetworks) -> None:
    with networks.lend("t") as handle:
        first = os.fstat(handle).st_ino
        inside = _socket_inside(handle)
    with inside, networks.lend("t") as handle:
        assert os.fstat(handle).st_ino != first


def test_nothing_is_open_when_all_is_over(networks: LoneNetworks) -> None:
    before = open_descriptors()
    with networks.lend("a"), networks.lend("a"):
        assert open_descriptors() > before
    networks.close()
    assert open_descriptors() == before


def test_where_descriptors_run_out_none_is_made_and_nothing_stays_open(networks: LoneNetworks) -> None:
    home, before = _ours(), open_descriptors()
    highest = max(int(one) for one in before)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = []
    with ExitStack() as filled:
        while (one := os.open("/dev/null", os.O_RDONLY)) <= highest:
            filled.callback(os.close, one)
        os.close(one)
        for spare in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, limits[1]))
            try:
                with networks.lend(f"t{spare}"):
                    pass
            except OSError:
                refused.append(spare)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            networks.close()
    kernels = [
        name for name in ("sockstat", "sockstat6", "ip6_flowlabel") if Path("/proc/self/net", name).exists()
    ]
    assert refused == list(range(2 + len(kernels)))  # where it was, the new one, and what tells what is in it
    assert (open_descriptors(), _ours()) == (before, home)
