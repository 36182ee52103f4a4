"""Ranks that agree over TCP: a star around rank 0, which listens at MASTER_ADDR:MASTER_PORT as under torchrun.

There is one operation: every rank gives some bytes, rank 0 combines them in the order of the ranks, and every
rank gets the same answer; all call it equally often. Every wait is bounded and ends early when the job is asked
to stop. A rank that dies ends all others with a sentence, because rank 0 hangs up on everybody when it fails.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

FRAME_BYTES_MAX: Final = 64 * 2**20

_HELLO: Final = struct.Struct("!8sII")
_MAGIC: Final = b"digits-1"
_LENGTH: Final = struct.Struct("!I")
_RETRY_S: Final = 0.2
_HELLO_S: Final = 5.0
_PORT_MAX: Final = 65535


class GangBroken(Exception):
    """The ranks cannot go on together; the message says why."""


@dataclass(frozen=True)
class Seat:
    """Which rank this process is, of how many, where rank 0 listens, and which process of its node it is."""

    rank: int
    world_size: int
    address: str
    port: int
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read torchrun's variables; without LOCAL_RANK, one process per node. Raises GangBroken."""
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                raise GangBroken(f"{name} is not set; start this program as a distributed job")
        seat = cls(
            _number(environment, "RANK"),
            _number(environment, "WORLD_SIZE"),
            environment["MASTER_ADDR"],
            _number(environment, "MASTER_PORT"),
            _number(environment, "LOCAL_RANK", "0"),
            _number(environment, "LOCAL_WORLD_SIZE", "1"),
        )
        if seat.rank >= seat.world_size:
            raise GangBroken(f"RANK {seat.rank} is not below WORLD_SIZE {seat.world_size}")
        if seat.local_rank >= seat.local_world_size:
            raise GangBroken(
                f"LOCAL_RANK {seat.local_rank} is not below LOCAL_WORLD_SIZE {seat.local_world_size}"
            )
        if not 0 < seat.port <= _PORT_MAX:
            raise GangBroken(f"MASTER_PORT {seat.port} is not a port")
        return seat

    def share(self, devices: list[str]) -> list[str]:
        """This process's cards among those it sees: all with one process per node, its own with one per card.

        A process that was shown its own card only keeps that.
        """
        return devices[self.local_rank :: self.local_world_size] or devices


class Gang:
    """The connections of one rank; rank 0 has one to each other rank, every other rank one to rank 0.

    Args:
        seat: who this is.
        timeout_s: how long to wait for the others, at the start and then at each message.
        check: called while waiting; what it raises ends the wait.
    """

    def __init__(self, seat: Seat, *, timeout_s: float, check: Callable[[], None]) -> None:
        self._seat = seat
        self._timeout_s = timeout_s
        self._check = check
        self._peers: dict[int, socket.socket] = {}

    def __enter__(self) -> Self:
        """Wait until all ranks are there. Raises GangBroken."""
        deadline = time.monotonic() + self._timeout_s
        try:
            if self._seat.rank == 0:
                self._welcome_all(deadline)
            else:
                self._peers[0] = self._reach_rank_0(deadline)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up, which also tells the others."""
        self._close()

    def agree(self, given: bytes, combine: Callable[[list[bytes]], bytes]) -> bytes:
        """What `combine` makes, on rank 0, of the bytes of all ranks in their order. Raises GangBroken."""
        if self._seat.rank != 0:
            self._send(0, given)
            return self._receive(0)
        ranks = sorted(self._peers)
        answer = combine([given, *(self._receive(rank) for rank in ranks)])
        for rank in ranks:
            self._send(rank, answer)
        return answer

    def _welcome_all(self, deadline: float) -> None:
        others = set(range(1, self._seat.world_size))
        if not others:
            return
        with self._listen() as listener:
            while missing := sorted(others - self._peers.keys()):
                if not self._readable(listener, deadline):
                    raise GangBroken(
                        f"only {len(self._peers) + 1} of {self._seat.world_size} ranks came "
                        f"within {self._timeout_s:g} s; missing: {', '.join(map(str, missing))}"
                    )
                connection, _ = listener.accept()
                rank = self._rank_of(connection, deadline)
                if rank in missing:
                    self._peers[rank] = self._tuned(connection)
                else:
                    connection.close()
        for rank in sorted(others):
            self._send(rank, _MAGIC)

    def _listen(self) -> socket.socket:
        try:
            family = socket.getaddrinfo(self._seat.address, self._seat.port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((self._seat.address, self._seat.port), family=family)
        except OSError as error:
            raise GangBroken(f"rank 0 cannot listen at {self._where}: {error.strerror}") from error

    def _rank_of(self, connection: socket.socket, deadline: float) -> int | None:
        """Whom a new connection introduces itself as; None when it is no rank of this job."""
        try:
            hello = self._exactly(
                connection, _HELLO.size, min(deadline, time.monotonic() + _HELLO_S), "a caller"
            )
        except GangBroken:
            return None
        magic, rank, world_size = _HELLO.unpack(hello)
        return rank if (magic, world_size) == (_MAGIC, self._seat.world_size) else None

    def _reach_rank_0(self, deadline: float) -> socket.socket:
        while time.monotonic() < deadline:
            self._check()
            try:
                connection = socket.create_connection((self._seat.address, self._seat.port), timeout=_HELLO_S)
            except OSError:  # rank 0 is not up yet, or its name not known yet
                time.sleep(_RETRY_S)
                continue
            # On loopback a caller may get, as its own port, the very port it calls, and so reach itself.
            if connection.getsockname() == connection.getpeername():
                connection.close()
                continue
            return self._introduced(self._tuned(connection))
        raise GangBroken(f"rank 0 did not answer at {self._where} within {self._timeout_s:g} s")

    def _introduced(self, connection: socket.socket) -> socket.socket:
        self._peers[0] = connection
        try:
            connection.sendall(_HELLO.pack(_MAGIC, self._seat.rank, self._seat.world_size))
        except OSError:
            raise self._ended("rank 0") from None
        if self._receive(0) != _MAGIC:
            raise GangBroken(f"whoever answers at {self._where} is not rank 0 of this job")
        return connection

    def _tuned(self, connection: socket.socket) -> socket.socket:
        connection.settimeout(self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(self, rank: int, payload: bytes) -> None:
        self._check()
        try:
            self._peers[rank].sendall(_LENGTH.pack(len(payload)) + payload)
        except TimeoutError:
            raise GangBroken(f"rank {rank} took nothing for {self._timeout_s:g} s") from None
        except OSError:
            raise self._ended(f"rank {rank}") from None

    def _receive(self, rank: int) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        peer, name = self._peers[rank], f"rank {rank}"
        (length,) = _LENGTH.unpack(self._exactly(peer, _LENGTH.size, deadline, name))
        if length > FRAME_BYTES_MAX:
            raise GangBroken(f"{name} announces a message of {length} bytes; it speaks something else")
        return self._exactly(peer, length, deadline, name)

    def _exactly(self, peer: socket.socket, size: int, deadline: float, name: str) -> bytes:
        received = bytearray()
        while len(received) < size:
            if not self._readable(peer, deadline):
                raise GangBroken(f"{name} said nothing for {self._timeout_s:g} s")
            try:
                piece = peer.recv(size - len(received))
            except OSError:
                piece = b""
            if not piece:
                raise self._ended(name)
            received += piece
        return bytes(received)

    def _readable(self, waiting: socket.socket, deadline: float) -> bool:
        while (left := deadline - time.monotonic()) > 0:
            self._check()
            if select.select([waiting], [], [], min(left, _RETRY_S))[0]:
                return True
        return False

    def _ended(self, name: str) -> GangBroken:
        self._check()  # whoever was asked to stop need not wonder that the others stop too
        return GangBroken(f"{name} ended or hung up before the others were done")

    @property
    def _where(self) -> str:
        return f"{self._seat.address}:{self._seat.port}"

    def _close(self) -> None:
        for peer in self._peers.values():
            peer.close()


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not (text.isascii() and text.isdigit()):
        raise GangBroken(f"{name} is {text!r}, not a whole number")
    return int(text)
