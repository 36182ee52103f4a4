"""A folder that one process at a time may work in."""

import fcntl
import os
from pathlib import Path

from kernel.errors import Conflict


class AlreadyRuns(Conflict):
    """Two processes want to be the same part of the hub."""

    sentence = (
        "{what} already runs here; its folder {folder} is in use. Stop it, or give this one another name."
    )


def claim(folder: Path, what: str) -> int:
    """A lock that is this process's as long as it lives: a second one would end the first's Ray and take its socket.

    Raises:
        AlreadyRuns: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AlreadyRuns(what=what, folder=folder) from None
    return lock
