"""Job uids: one host uid per live run, unique among all supervisors of the host.

A uid is held by a lock on its own byte of one file, so that it is free again the moment its holder dies, however it
dies. (A file for each would be made and removed for every run, which costs a file system far more than a lock.)
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scheduler.node.errors import NodeFailed

_SET: Final = 37
"""F_OFD_SETLK: a lock of the open file, not of the process; Python has no name for it."""

_FLOCK: Final = struct.Struct("hhqqi4x")


class UidLease:
    """A uid that nobody else on this host has until `release`."""

    def __init__(self, uid: int, pool: "UidPool") -> None:
        self.uid = uid
        self._pool: UidPool | None = pool

    def release(self) -> None:
        """Let others have it; may be called twice."""
        if self._pool is not None:
            self._pool.give_back(self.uid)
            self._pool = None


class UidPool:
    """The uids `base … base + count - 1`; handed out in turn, so that one is not reused at once."""

    def __init__(self, directory: Path, base: int, count: int) -> None:
        self._base = base
        self._count = count
        self._next = 0
        self._ours: set[int] = set()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(directory / "locks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def lease(self) -> UidLease:
        """A free uid. Raises NodeFailed when all are taken."""
        for uid in self._candidates():
            if uid not in self._ours and self._lock(uid, fcntl.F_WRLCK):
                self._ours.add(uid)
                self._next = (uid - self._base + 1) % self._count
                return UidLease(uid, self)
        raise NodeFailed(why=f"All {self._count} job uids of this host are in use.")

    def give_back(self, uid: int) -> None:
        """Nobody runs as this one any more."""
        self._lock(uid, fcntl.F_UNLCK)
        self._ours.discard(uid)

    def close(self) -> None:
        """Give all of them back."""
        os.close(self._file)

    def _lock(self, uid: int, kind: int) -> bool:
        try:
            fcntl.fcntl(self._file, _SET, _FLOCK.pack(kind, os.SEEK_SET, uid, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _candidates(self) -> Iterator[int]:
        for step in range(self._count):
            yield self._base + (self._next + step) % self._count
