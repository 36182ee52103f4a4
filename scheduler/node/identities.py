"""Job uids: one host uid per live run, unique among all supervisors of the host.

A uid is held by an exclusive lock on a file named after it, so that it is free again the moment its holder
dies, however it dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scheduler.node.errors import StartFailed


class UidLease:
    """A uid that nobody else on this host has until `release`."""

    def __init__(self, uid: int, file: Path, lock: int) -> None:
        self.uid = uid
        self._file = file
        self._lock: int | None = lock

    def release(self) -> None:
        """Let others have it; may be called twice."""
        if self._lock is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


class UidPool:
    """The uids `base … base + count - 1`; handed out in turn, so that one is not reused at once."""

    def __init__(self, directory: Path, base: int, count: int) -> None:
        self._directory = directory
        self._base = base
        self._count = count
        self._next = 0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def lease(self) -> UidLease:
        """A free uid. Raises StartFailed when all are taken."""
        for uid in self._candidates():
            file = self._directory / str(uid)
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_nlink:  # else its holder has just removed it; the next uid does as well
                    self._next = (uid - self._base + 1) % self._count
                    return UidLease(uid, file, lock)
            os.close(lock)
        raise StartFailed(why=f"All {self._count} job uids of this host are in use.")

    def _candidates(self) -> Iterator[int]:
        for step in range(self._count):
            yield self._base + (self._next + step) % self._count
