"""Nodes asked around Ray: a slow one is heard in the end, and a silent one keeps nobody waiting for long."""

import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kernel.clock import boottime_ms, unix_ms, utc_now
from scheduler.controller.wakeups import Wakeups, over
from scheduler.node.codec import decode, encode
from scheduler.node.protocol import Over, OverRequest, Report, SyncRequest
from scheduler.node.relay import Link, Relay
from scheduler.ray.cluster import RayMachines
from scheduler.ray.relays import PATIENCE_S, PATIENCE_S_MAX, Relays
from tests.scheduler.controller.counted import simulated

TOKEN = b"the cluster's token"


class SlowSupervisor:
    """A simulated node on a supervisor's socket that lets every question wait until the test lets it answer.

    What waits for runs to be over has an event of its own.
    """

    def __init__(self, path: Path) -> None:
        self._node = simulated("n")
        self.may_answer, self.is_over = threading.Event(), threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._converse, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rwb") as line:
            for question in line:
                asked = json.loads(question)
                ahead = asked["method"] == "sync_when_over"
                request = decode(SyncRequest, asked["params"]["sync"] if ahead else asked["params"])
                (self.is_over if ahead else self.may_answer).wait()
                report, _ = self._node.sync(request, boottime_ms(), unix_ms(utc_now()))
                answer = encode(Over(report) if ahead else report)
                line.write(json.dumps({"ok": answer}).encode() + b"\n")
                line.flush()


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:  # a socket's path must be short
        yield Path(name)


@pytest.fixture
def supervisor(folder: Path) -> Iterator[SlowSupervisor]:
    supervisor = SlowSupervisor(folder / "s")
    yield supervisor
    supervisor.close()


@pytest.fixture
def relay(supervisor: SlowSupervisor, folder: Path) -> Iterator[Relay]:  # noqa: ARG001 - to whom it relays
    relay = Relay("127.0.0.1", TOKEN, folder / "s", folder / "port")
    yield relay
    relay.close()


@pytest.fixture
def relays(relay: Relay) -> Iterator[Relays]:
    relays = Relays(TOKEN)
    relays.links = {"n": relay.address}
    yield relays
    relays.close()


def test_a_node_that_answers_late_gets_more_time_over_the_same_connection_and_is_heard(
    supervisor: SlowSupervisor, relays: Relays
) -> None:
    question = {"n": SyncRequest(1, 60_000)}
    assert relays.ask(question) == {}
    assert PATIENCE_S < relays.patience_s("n") <= PATIENCE_S_MAX
    assert relays.ask(question) == {}  # it still owes an answer, and is not asked again
    supervisor.may_answer.set()
    while not (heard := relays.ask(question)):
        pass
    assert heard["n"].node == "n"
    assert relays.patience_s("n") == PATIENCE_S


def test_a_node_that_is_asked_ahead_around_ray_answers_other_questions_meanwhile(
    supervisor: SlowSupervisor, relays: Relays
) -> None:
    supervisor.may_answer.set()
    heard = queue.SimpleQueue[tuple[str, Report]]()
    question = {"n": SyncRequest(1, 60_000)}
    relays.ask_ahead({"n": OverRequest(("r",), 60_000, question["n"])}, lambda *said: heard.put(said))
    while not relays.ask(question):
        pass
    assert heard.empty()
    supervisor.is_over.set()
    name, report = heard.get()
    assert (name, report.node) == ("n", "n")


def test_a_controller_hears_around_ray_that_what_it_awaits_is_over(
    supervisor: SlowSupervisor, relay: Relay
) -> None:
    supervisor.may_answer.set()
    supervisor.is_over.set()
    wakeups, links = Wakeups(), {"n": Link(relay.address, given_up=False)}
    machines = RayMachines("127.0.0.1:9", wakeups, links=lambda: links, token=TOKEN)  # where no Ray is
    while not machines.reachable():
        wakeups.wait(0.05)
    while not machines.sync({"n": SyncRequest(1, 60_000)}):
        pass
    machines.ask_ahead({"n": OverRequest(("r",), 60_000, SyncRequest(1, 60_000))})
    while over("n") not in wakeups.wait(60):
        pass
    assert machines.early(["n"])["n"].node == "n"
    assert machines.early(["n"]) == {}
    machines.close()


def test_a_node_that_is_not_there_is_known_to_be_so_at_once() -> None:
    relays = Relays(TOKEN)
    relays.links = {"n": "127.0.0.1:9"}
    for _ in range(4):
        assert relays.ask({"n": SyncRequest(1, 60_000), "m": SyncRequest(1, 60_000)}) == {}
    assert relays.patience_s("n") == PATIENCE_S_MAX
    assert not relays.listens("127.0.0.1:9")
    relays.close()


def test_callers_who_only_hold_the_door_keep_nobody_out_who_knows_the_token(folder: Path) -> None:
    supervisor = SlowSupervisor(folder / "s")
    supervisor.may_answer.set()
    relay = Relay("127.0.0.1", TOKEN, folder / "s", folder / "port")
    host, _, port = relay.address.rpartition(":")
    relays = Relays(TOKEN)
    relays.links = {"n": relay.address}
    with ExitStack() as held:
        callers = [held.enter_context(socket.create_connection((host, int(port)))) for _ in range(100)]
        for caller in callers:
            with suppress(ConnectionError):
                caller.sendall(b"?")  # and never a whole proof
        callers[-1].settimeout(30)
        assert len(callers[-1].recv(64)) == 32  # whoever comes last is asked for his proof, too
        while not (heard := relays.ask({"n": SyncRequest(1, 60_000)})):
            pass
        assert heard["n"].node == "n"
        callers[0].settimeout(30)
        with suppress(ConnectionError):
            while callers[0].recv(64):  # the nonce it was sent, and then it has had to make room
                pass
    relays.close()
    relay.close()
    supervisor.close()
