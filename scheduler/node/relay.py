"""The second way to a supervisor, for the time Ray is away: a door of `hub node` that hands bytes on to its socket.

Whoever knocks proves that he knows the cluster's token, and so does the door, before a byte of either is read; then
the supervisor's own protocol is spoken (`protocol.py`). Nothing secret travels but what Ray's own calls carry too.
"""

import hashlib
import hmac
import secrets
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel.clock import boottime_ms
from scheduler.node.client import SupervisorClient
from scheduler.node.sockets import reachable

LINK_LABEL: Final = "hub.link"
"""Label by which a node says where its relay listens: `host:port`."""

_NONCE_BYTES: Final = 32
_PATIENCE_S: Final = 5.0
"""For a handshake in all, however it trickles in."""

_CHUNK: Final = 1 << 16
_CONNECTIONS_MAX: Final = 32
"""Of callers that know the token, and as many again that have yet to prove it."""

_DEAD: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""A caller whose machine is gone gives its place back after a minute."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a node's relay listens, as `host:port`, and whether the node has been given up."""

    address: str
    given_up: bool


class Refused(ConnectionError):
    """The other side does not know the token."""


class Relay:
    """Listens on one address for as long as its process lives.

    Args:
        host: where to listen; a loopback or private address.
        token: of the cluster.
        supervisor: the supervisor's socket; each connection is handed on to a new one there.
        port_file: remembers the port, so that a machine that was started anew is found where it was.
    """

    def __init__(self, host: str, token: bytes, supervisor: Path, port_file: Path) -> None:
        self._token = token
        self._supervisor = supervisor
        self._free = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._turn = threading.Lock()
        self._knocking: dict[socket.socket, None] = {}
        self._listener = _listen(host, port_file)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Listen no more; the port is free when this returns."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would not wake who accepts
        self._accepting.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._turn:
                if len(self._knocking) >= _CONNECTIONS_MAX:
                    # Who knows the token has proved it long before; whoever only holds the door makes room.
                    oldest = next(iter(self._knocking))
                    del self._knocking[oldest]
                    _end(oldest)
                self._knocking[connection] = None
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                _shake_hands(connection, self._token, b"relay", b"caller", _PATIENCE_S)
            except OSError:
                return
            finally:
                with self._turn:
                    self._knocking.pop(connection, None)
            if self._free.acquire(blocking=False):
                try:
                    self._hand_on(connection)
                except OSError:
                    return
                finally:
                    self._free.release()

    def _hand_on(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _DEAD:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inner:
            with reachable(self._supervisor) as address:
                inner.connect(address)
            back = threading.Thread(target=_pump, args=(inner, connection), daemon=True)
            back.start()
            _pump(connection, inner)
            back.join()


def _listen(host: str, port_file: Path) -> socket.socket:
    """Listen on the port of the last time, or on any if there is none or it is taken."""
    known = port_file.read_text(encoding="ascii") if port_file.exists() else ""
    try:
        listener = socket.create_server((host, int(known or 0)))
    except (OSError, ValueError):
        listener = socket.create_server((host, 0))
    port_file.write_text(str(listener.getsockname()[1]), encoding="ascii")
    return listener


class RelayedClient(SupervisorClient):
    """One connection to a supervisor through its node's relay."""

    def __init__(self, address: str, token: bytes, *, timeout_s: float) -> None:
        super().__init__(Path(address), timeout_s=timeout_s)
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._token = token

    def connect(self) -> socket.socket:
        """A connection on which the supervisor answers. Raises OSError."""
        connection = socket.create_connection(self._address, timeout=self._timeout_s)
        try:
            _shake_hands(connection, self._token, b"caller", b"relay", self._timeout_s)
        except OSError:
            connection.close()
            raise
        return connection


def _shake_hands(connection: socket.socket, token: bytes, me: bytes, other: bytes, patience_s: float) -> None:
    until_ms = boottime_ms() + int(patience_s * 1000)
    connection.settimeout(patience_s)
    mine = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(mine)
    theirs = _exactly(connection, _NONCE_BYTES, until_ms)
    connection.sendall(_proof(token, me, theirs, mine))
    proof = _exactly(connection, _NONCE_BYTES, until_ms)
    if not hmac.compare_digest(proof, _proof(token, other, mine, theirs)):
        raise Refused("the other side does not know the token")
    connection.settimeout(None)


def _proof(token: bytes, who: bytes, asked: bytes, mine: bytes) -> bytes:
    return hmac.new(token, who + asked + mine, hashlib.sha256).digest()


def _exactly(connection: socket.socket, count: int, until_ms: int) -> bytes:
    data = b""
    while len(data) < count:
        left_ms = until_ms - boottime_ms()
        if left_ms <= 0:
            raise TimeoutError("it took too long")
        connection.settimeout(left_ms / 1000)
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("it hung up")
        data += more
    return data


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Hand on until one side ends, then end the other."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    _end(source)
    _end(sink)


def _end(connection: socket.socket) -> None:
    """Whoever waits for it, on either side, waits no more."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def read_token(path: Path) -> bytes:
    """The cluster's token in its file. Raises OSError."""
    return path.read_bytes().strip()
