"""Network namespaces with nothing but a loopback device, each for one run at a time that talks to nobody.

To make one and take it down is a fifth of a sandbox's work, so a run gets one that an earlier run of its tenant has
left, if nothing of that is in it any more: no socket, none that still closes (its port would be taken for a minute), no
part of a packet, no label of IPv6 (which outlives its socket by up to two and a half minutes). Nobody inside may change
anything else of it; what is left are the counters in /proc/net and what the kernel has learnt of the loopback's
connections, which are the tenant's own. No other tenant ever gets it.
"""

import ctypes
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_LOOPBACK_UP: Final = b"lo".ljust(16, b"\0") + (0x41).to_bytes(2, "little") + bytes(22)
"""An `ifreq` with IFF_UP and IFF_RUNNING."""

_HERE: Final = "/proc/thread-self/ns/net"
_COUNTS: Final = "/proc/thread-self/net/sockstat"
_COUNTS_6: Final = f"{_COUNTS}6"
_LABELS: Final = "/proc/thread-self/net/ip6_flowlabel"
"""A heading, and a line for each."""

_THINGS: Final = frozenset({b"used", b"inuse", b"tw"})
"""What is counted for each namespace by itself; the rest of these files is the machine's. Who is closed and still sends
is in use."""

_COUNTS_BYTES: Final = 4096
_KEPT_MAX: Final = 16
_ASTRAY: Final = 70

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Network:
    """One of them, and the kernel's own files that say what is in it; None for those that this kernel does not have.

    They are opened where they belong, once, and go on saying it: whoever looks need not go there again.
    """

    handle: int
    counts: int | None
    counts_6: int | None
    labels: int | None

    def is_empty(self) -> bool:
        """Whether nothing is in it that somebody left; where that cannot be seen it counts as not empty."""
        if self.counts is None:
            return False
        try:
            counts = _read(self.counts) + _read(self.counts_6)
            labels = _read(self.labels)
        except OSError:
            return False
        return not _things(counts) and len(labels.splitlines()) <= 1

    def close(self) -> None:
        """Give it up; it goes when nobody is in it."""
        for file in (self.handle, self.counts, self.counts_6, self.labels):
            if file is not None:
                os.close(file)


class LoneNetworks:
    """Those of one supervisor.

    Args:
        kept_max: how many are kept for a next run at most; the one that waited longest goes first.
    """

    def __init__(self, kept_max: int = _KEPT_MAX) -> None:
        self._kept_max = kept_max
        self._kept: list[tuple[str, _Network]] = []

    @contextmanager
    def lend(self, tenant_id: str) -> Iterator[int]:
        """A descriptor of one that nobody is in; when the block ends nobody may be in it any more. Raises OSError."""
        network = self._take(tenant_id)
        try:
            yield network.handle
        finally:
            self._give_back(tenant_id, network)

    def close(self) -> None:
        """Give all up that are kept."""
        for _, network in self._kept:
            network.close()
        self._kept.clear()

    def _take(self, tenant_id: str) -> _Network:
        for at in reversed(range(len(self._kept))):
            if self._kept[at][0] == tenant_id:
                return self._kept.pop(at)[1]
        return _make()

    def _give_back(self, tenant_id: str, network: _Network) -> None:
        if not network.is_empty():
            network.close()
            return
        self._kept.append((tenant_id, network))
        if len(self._kept) > self._kept_max:
            self._kept.pop(0)[1].close()


def lone_network() -> int:
    """A descriptor, closed on exec, of a new one. Raises OSError."""
    with _elsewhere(lambda: _LIBC.unshare(_CLONE_NEWNET)):
        return _furnish()


def _make() -> _Network:
    with ExitStack() as opened, _elsewhere(lambda: _LIBC.unshare(_CLONE_NEWNET)):

        def keep(path: str) -> int | None:
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            opened.callback(os.close, file)
            return file

        handle = _furnish()
        opened.callback(os.close, handle)
        network = _Network(handle, keep(_COUNTS), keep(_COUNTS_6), keep(_LABELS))
        opened.pop_all()
        return network


def _furnish() -> int:
    """In a new one: have its loopback device work; a descriptor of where we are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as interfaces:
        fcntl.ioctl(interfaces, _SIOCSIFFLAGS, _LOOPBACK_UP)
    return os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)


def _things(counts: bytes) -> int:
    """How many sockets and parts of packets there are.

    Each line is like `TCP: inuse 0 orphan 0 tw 0 alloc 1 mem 0`.
    """
    words = [word for line in counts.splitlines() for word in line.split()[1:]]
    return sum(int(count) for name, count in zip(words[::2], words[1::2], strict=True) if name in _THINGS)


def _read(file: int | None) -> bytes:
    return b"" if file is None else os.pread(file, _COUNTS_BYTES, 0)


@contextmanager
def _elsewhere(leave: Callable[[], int]) -> Iterator[None]:
    """This thread leaves its network by a system call and comes back to it when the block ends. Raises OSError."""
    home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if leave() != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            yield
        finally:
            if _LIBC.setns(home, _CLONE_NEWNET) != 0:
                os._exit(_ASTRAY)  # nobody may go on as root in a tenant's network; jobs end with us
    finally:
        os.close(home)
