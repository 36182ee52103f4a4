"""Keeps a courier running and speaks with it; whatever becomes of it, the controller waits for nothing.

Invariant: at most one question is open. A courier that owes an answer is not asked again, and an answer that comes
when nobody waits for it any more is dropped.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Final

import structlog

from kernel.errors import HubError
from scheduler.controller.wakeups import Wakeups
from scheduler.node.lines import answer
from scheduler.node.protocol import Over as Waited
from scheduler.node.protocol import OverRequest, Report, SyncRequest
from scheduler.ray.messages import Answer, Ask, AskAhead, Changed, Members, Order, Over, Watch
from scheduler.ray.sealing import sealed
from scheduler.ray.watching import Watches

_PAUSE_S: Final = 1.0
_GRACE_S: Final = 2.0
_log = structlog.get_logger(__name__)


class Couriers:
    """One courier after the other (`courier.py`).

    Args:
        address: of Ray's head.
        wakeups: is told of new members and of nodes where something changed.
        reported: is told what nodes that were asked ahead report, under the number with which they were.
    """

    def __init__(self, address: str, wakeups: Wakeups, reported: Callable[[int, str, Report], None]) -> None:
        self._address = address
        self._wakeups = wakeups
        self._reported = reported
        self._line: socket.socket | None = None
        self._connection: Connection | None = None
        self._members: frozenset[str] = frozenset()
        self.watches = Watches()
        self._asked = self._answered = 0
        self._answer: Answer | None = None
        self._news = threading.Condition()
        self._closing = threading.Event()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="courier-send")
        self._keeper = threading.Thread(target=self._keep, name="courier", daemon=True)
        self._keeper.start()

    @property
    def members(self) -> frozenset[str]:
        """Hub nodes that can be reached through Ray, as far as is known."""
        return self._members

    def ask(self, requests: Mapping[str, SyncRequest], patience_s: float) -> dict[str, Report]:
        """What the agents answered within so long; nothing while there is no courier or it still owes an answer."""
        with self._news:
            connection = self._connection
            if connection is None or self._asked != self._answered or not self._members & requests.keys():
                return {}
            self._asked += 1
            question = Ask(self._asked, {name: sealed(request) for name, request in requests.items()})
            self._sender.submit(self._send, connection, question)
            self._news.wait_for(lambda: self._asked == self._answered, timeout=patience_s)
            told = self._answer
        return _reports(told.lines) if told is not None and told.number == question.number else {}

    def watch(self, names: Collection[str]) -> None:
        """Have each of these nodes watched after what was heard of it, unless it already is."""
        with self._news:
            if self._connection is not None and (due := self.watches.order(names)):
                self._sender.submit(self._send, self._connection, Watch(due))

    def ask_ahead(self, number: int, requests: Mapping[str, OverRequest]) -> None:
        """Have each of these nodes sync when what it waits for is over, in place of watching it."""
        with self._news:
            if self._connection is not None and requests:
                self.watches.forget(requests)
                lines = {name: sealed(request) for name, request in requests.items()}
                within_ms = max(request.timeout_ms for request in requests.values())
                self._sender.submit(self._send, self._connection, AskAhead(number, lines, within_ms))

    def close(self) -> None:
        """End the courier; the agents stay."""
        self._closing.set()
        with self._news:
            if self._line is not None:
                self._line.shutdown(socket.SHUT_RDWR)  # which ends the courier, and the reading of it
        self._keeper.join(timeout=2 * _GRACE_S)
        self._sender.shutdown(wait=False, cancel_futures=True)

    def _send(self, connection: Connection, order: Order) -> None:
        try:
            connection.send(order)
        except OSError:
            return  # whoever listens to it hears of its end

    def _keep(self) -> None:
        while not self._closing.is_set():
            try:
                self._live_with_one()
            except OSError as error:
                _log.warning("no_courier", error=str(error))
            self._closing.wait(_PAUSE_S)

    def _live_with_one(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-m", "scheduler.ray.courier", self._address, str(theirs.fileno())]
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        connection = Connection(os.dup(ours.fileno()))
        with self._news:
            self._line, self._connection = ours, connection
        try:
            while True:
                self._take(connection.recv())
        except (EOFError, OSError):
            pass
        finally:
            with self._news:
                self._line, self._connection, self._members = None, None, frozenset()
                self._answered, self._answer = self._asked, None
                self.watches.forget_orders()
                self._news.notify_all()
            connection.close()
            ours.close()
            status = _end(process)
        if not self._closing.is_set():
            _log.warning("courier_ended", status=status)

    def _take(self, word: object) -> None:
        match word:
            case Answer():
                with self._news:
                    self._answered, self._answer = word.number, word
                    self._news.notify_all()
            case Members():
                self._members = word.names
                self._wakeups.put("membership")
            case Over():
                try:
                    said = answer(Waited, "sync_when_over", word.line)
                except HubError as error:
                    _log.warning("not_asked_ahead", node=word.node, error=str(error))
                else:
                    if said.report is not None:
                        self._reported(word.number, word.node, said.report)
            case Changed() if self.watches.told(word.node, word.after, word.seq):
                self._wakeups.put(word.node)


def _reports(lines: Mapping[str, bytes]) -> dict[str, Report]:
    """What the nodes report; one that refused is left out."""
    reports = {}
    for name, line in lines.items():
        try:
            reports[name] = answer(Report, "sync", line)
        except HubError as error:
            _log.warning("sync_failed", node=name, error=str(error))
    return reports


def _end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
