"""Whose run goes when a disk that several nodes share is nearly full: the largest of all, one at a time.

Every supervisor keeps a file in a folder of the workspace root, locked as long as it lives, with the size of its
largest run. Who must stop a run takes the turn's lock, reads all files and stops its own only if none is larger and
nobody has had the turn since it counted. Files have a fixed length and are written in place, so that a full disk takes
them, too.

Invariant: whoever lost the turn waits and looks again; a larger one that does nothing is waited for only so long.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

FOLDER: Final = ".disk"
_TURN: Final = "turn"
_DIGITS: Final = 20
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
PATIENCE: Final = 3
"""So often in a row another may have had the larger run and not stopped it."""

_log = structlog.get_logger(__name__)


class DiskTurns:
    """One node's part in it. Where the folder cannot be used, each node decides for itself, as on a disk of its own.

    Args:
        root: of the workspaces, which all nodes on the same store share.
        node: by which it is known there.
    """

    def __init__(self, root: Path, node: str) -> None:
        self._node = node
        self._seen = self._published = -1
        self._waited = 0
        self._folder = self._turn = self._own = -1
        try:
            with suppress(FileExistsError):
                (root / FOLDER).mkdir(mode=0o700)
            self._folder = os.open(root / FOLDER, _DIRECTORY)
            self._turn = os.open(_TURN, _FILE, 0o600, dir_fd=self._folder)
            self._own = os.open(f"node-{node}", _FILE, 0o600, dir_fd=self._folder)
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            _log.warning("disk_not_shared_in_turns", reason=str(error))
            self.close()

    def passed(self) -> bool:
        """Whether somebody has had the turn since this was asked last; the first time it may have been."""
        number = _read(self._turn)
        passed, self._seen = number != self._seen, number
        return passed

    def publish(self, largest_bytes: int) -> None:
        """Let the others know how much the largest run of this node takes."""
        if self._own >= 0 and largest_bytes != self._published:
            with suppress(OSError):
                _write(self._own, largest_bytes)
                self._published = largest_bytes

    def take(self, largest_bytes: int) -> bool:
        """Whether this node's largest run is the one to go now; then nobody else's is until all have looked again."""
        self.publish(largest_bytes)
        if self._own < 0:
            return True
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            if self.passed():
                self._waited = 0
                return False
            if self._waited < PATIENCE and (largest_bytes, self._node) < self._largest_other():
                self._waited += 1
                return False
            self._waited = 0
            with suppress(OSError):
                _write(self._turn, self._seen + 1)
                self._seen += 1
            return True
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave it."""
        for handle in (self._folder, self._turn, self._own):
            if handle >= 0:
                os.close(handle)
        self._folder = self._turn = self._own = -1

    def _largest_other(self) -> tuple[int, str]:
        largest = (-1, "")
        with os.scandir(self._folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith("node-"))
        for name in names:
            if name != f"node-{self._node}":
                with suppress(OSError):
                    largest = max(largest, (self._published_by(name), name.removeprefix("node-")))
        return largest

    def _published_by(self, name: str) -> int:
        """What a living node has published; of a dead one nothing."""
        handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(handle)
        else:
            return -1
        finally:
            os.close(handle)


def _read(handle: int) -> int:
    """A number; 0 where none was ever written."""
    if handle < 0:
        return 0
    with suppress(OSError, ValueError):
        return int(os.pread(handle, _DIGITS, 0) or b"0")
    return 0


def _write(handle: int, number: int) -> None:
    os.pwrite(handle, b"%0*d" % (_DIGITS, number), 0)
