"""Watches what no kernel limit covers: how much disk a run's directories take and, without cgroups, its memory.

A census walks them in small steps, as often as its own cost allows, and counts what was deleted but is
still held open. Between two censuses a run may overshoot; the reserve kept free on the file system bounds what
that can do to others: when it is touched, the run that takes most is stopped.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from scheduler.node.config import Limits
from scheduler.node.processes import descendants, resident_bytes
from scheduler.node.workspace import Census

_PAUSE_MS: Final = 1000
_PAUSE_PER_COST: Final = 20
_PAUSE_MS_MAX: Final = 30_000
_STEPS: Final = 4
_STEP_PAUSE_MS: Final = 10
_OPEN_FILES_MAX: Final = 20_000
_OPEN_FILES_AT_ONCE: Final = 64


class Watch:
    """The disk and memory of one run.

    Args:
        directories: descriptors of what it may write, its workspace first, open as long as the watch is used.
        memory_bytes: what it may keep resident; zero leaves memory to its cgroup.
    """

    def __init__(self, directories: Sequence[int], limits: Limits, *, memory_bytes: int) -> None:
        self.bytes = 0
        self.directory = directories[0]
        self._directories = directories
        self._limits = limits
        self._memory_bytes = memory_bytes
        self._census: Census | None = None
        self._began_ms = 0
        self._next_ms = 0

    def hurry(self) -> None:
        """Count anew at once."""
        self._next_ms = 0

    def disk(self, now_ms: int, pid: int) -> str:
        """Count on; a sentence when the workspace holds too much, else empty."""
        if self._census is None:
            if now_ms < self._next_ms:
                return ""
            self._census, self._began_ms = Census(self._directories, _held_open(pid)), now_ms
        census = self._census
        for _ in range(_STEPS):
            census.step()
            if census.complete:
                break
        self.bytes = census.bytes if census.complete else max(self.bytes, census.bytes)
        if census.complete:
            census.close()
            self._census = None
            pause_ms = max(_PAUSE_MS, min(_PAUSE_MS_MAX, (now_ms - self._began_ms) * _PAUSE_PER_COST))
            self._next_ms = now_ms + pause_ms
        return census.trouble or self._complaint(census.bytes, census.entries)

    def memory(self, pid: int) -> str:
        """A sentence when the run keeps too much memory resident, else empty."""
        if self._memory_bytes and resident_bytes(pid) > self._memory_bytes:
            return f"It needed more than its {self._memory_bytes >> 20} MiB of memory."
        return ""

    def due_ms(self, now_ms: int) -> int:
        """When to count on."""
        return (
            now_ms + _STEP_PAUSE_MS if self._census is not None else max(self._next_ms, now_ms + _STEP_PAUSE_MS)
        )

    def _complaint(self, found_bytes: int, entries: int) -> str:
        if found_bytes > self._limits.workspace_bytes:
            return f"Its workspace holds more than {self._limits.workspace_bytes} bytes."
        if entries > self._limits.workspace_entries:
            return f"Its workspace holds more than {self._limits.workspace_entries} files."
        return ""


def free_bytes(path: Path) -> int:
    """What is left on the file system for ordinary users."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _held_open(pid: int) -> Iterator[int | None]:
    """Sizes of files that were deleted but that a tree of processes still has open; None between two looks."""
    held: set[tuple[int, int]] = set()
    looked = 0
    for member in descendants(pid):
        yield None
        for path in _open_files(member):
            looked += 1
            if looked > _OPEN_FILES_MAX:
                return
            if looked % _OPEN_FILES_AT_ONCE == 0:
                yield None
            with suppress(OSError):
                info = os.stat(path)  # noqa: PTH116 - a Path would cost more than the look
                if stat.S_ISREG(info.st_mode) and not info.st_nlink and (info.st_dev, info.st_ino) not in held:
                    held.add((info.st_dev, info.st_ino))
                    yield info.st_blocks * 512


def _open_files(pid: int) -> Iterator[str]:
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            yield entry.path
