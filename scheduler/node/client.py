"""Talks to a supervisor: what the Ray agent (or anybody on the machine) uses. Synchronous, one call at a time.

Every call has a deadline. A connection that failed is opened anew by the next call; a sync may therefore be
sent twice, which changes nothing, because it says what shall be and not what to do.
"""

import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from scheduler.node.errors import SupervisorUnreachable
from scheduler.node.lines import answer, question
from scheduler.node.protocol import Change, Hello, Over, OverRequest, Report, SyncRequest, WaitRequest
from scheduler.node.sockets import reachable

T = TypeVar("T")

_WAIT_MARGIN_S: Final = 5.0


class SupervisorClient:
    """One connection to the supervisor that listens on a socket.

    Raises from every call:
        SupervisorUnreachable: nobody answers, or not in time.
        SupervisorRefused: with the supervisor's code and sentence among the facts.
        MalformedMessage: the answer is not what the protocol says.
    """

    def __init__(self, socket_path: Path, *, timeout_s: float = 10.0) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._unread = b""

    def hello(self) -> Hello:
        """Who answers."""
        return self._call(Hello, "hello", {})

    def sync(self, request: SyncRequest) -> Report:
        """Say what shall run, learn what does."""
        return self._call(Report, "sync", request)

    def wait_for_change(self, after_seq: int, timeout_ms: int) -> Change:
        """Return when a run changes state after `after_seq`, or after the time is over."""
        timeout_s = timeout_ms / 1000 + _WAIT_MARGIN_S
        return self._call(Change, "wait_for_change", WaitRequest(after_seq, timeout_ms), timeout_s)

    def sync_when_over(self, request: OverRequest) -> Report | None:
        """Sync when none of its runs lives any more; None if that takes longer than it may."""
        timeout_s = request.timeout_ms / 1000 + _WAIT_MARGIN_S
        return self._call(Over, "sync_when_over", request, timeout_s).report

    def ask(self, line: bytes, timeout_s: float | None = None) -> bytes:
        """Hand a question on (`lines.py`) and bring the answer, unread."""
        try:
            connection = self._connected()
            connection.settimeout(timeout_s or self._timeout_s)
            connection.sendall(line)
            return self._read_line(connection)
        except OSError as error:
            self.close()
            raise SupervisorUnreachable(socket=self._path, reason=str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Hang up; the next call connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, kind: type[T], method: str, params: object, timeout_s: float | None = None) -> T:
        return answer(kind, method, self.ask(question(method, params), timeout_s))

    def connect(self) -> socket.socket:
        """A fresh connection to the supervisor. Raises OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self._timeout_s)
        try:
            with reachable(self._path) as address:
                connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = self.connect()
        return self._socket

    def _read_line(self, connection: socket.socket) -> bytes:
        parts = [self._unread]
        while b"\n" not in parts[-1]:
            data = connection.recv(1 << 18)
            if not data:
                raise ConnectionError("it hung up")
            parts.append(data)
        line, _, self._unread = b"".join(parts).partition(b"\n")
        return line
