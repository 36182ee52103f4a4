"""Watches what no kernel limit covers: how much disk a run's directories take and, without cgroups, its memory.

A census walks them in small steps, as often as its own cost allows, and counts what was deleted but is
still held open. Between two censuses a run may overshoot. What that can do to others is bounded by looking at the
file system itself, ten times a second, which costs next to nothing: whoever writes fast is counted at once, and when
the reserve kept free is touched, the run that takes most is stopped, and the next one only if the disk goes on filling.
"""

import enum
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from scheduler.node.config import Limits
from scheduler.node.processes import descendants, resident_bytes
from scheduler.node.workspace import Census

LOOK_MS: Final = 100
"""Between two looks at the file system while anything runs."""

_COUNTED_MS: Final = 2 * LOOK_MS
"""From the touched reserve to the stop of the largest: everybody is counted and says so to who shares the disk."""

_SPARED_MS: Final = 1000
"""After one was stopped, before the next is: what it held must have time to be given back."""

_PAUSE_MS: Final = 1000
_PAUSE_PER_COST: Final = 20
_PAUSE_MS_MAX: Final = 30_000
_STEPS: Final = 4
_STEPS_TOGETHER: Final = 32
"""Of all runs in one tick: about twenty milliseconds."""

_STEP_PAUSE_MS: Final = 10
_OPEN_FILES_MAX: Final = 20_000
_OPEN_FILES_AT_ONCE: Final = 64


class Allowance:
    """How much all watches together may count at one time, so that many large workspaces keep nobody from leases."""

    def __init__(self, steps: int = _STEPS_TOGETHER) -> None:
        self._steps = self._left = steps
        self._at_ms = 0

    def take(self, now_ms: int) -> bool:
        """Whether one more step may be made now."""
        if now_ms != self._at_ms:
            self._at_ms, self._left = now_ms, self._steps
        self._left -= 1
        return self._left >= 0


class Watch:
    """The disk and memory of one run.

    Args:
        allowance: shared with the other watches of this node.
        directories: descriptors of what it may write, its workspace first, open as long as the watch is used.
        memory_bytes: what it may keep resident; zero leaves memory to its cgroup.
    """

    def __init__(
        self, directories: Sequence[int], limits: Limits, allowance: Allowance, *, memory_bytes: int
    ) -> None:
        self.bytes = 0
        self._allowance = allowance
        self.directory = directories[0]
        self._directories = directories
        self._limits = limits
        self._memory_bytes = memory_bytes
        self._census: Census | None = None
        self._began_ms = 0
        self._next_ms: int | None = None

    def hurry(self) -> None:
        """Count anew at once."""
        self._next_ms = 0

    def disk(self, now_ms: int, pid: int) -> str:
        """Count on; a sentence when the workspace holds too much, else empty. Who ends at once is never counted."""
        if self._next_ms is None:
            self._next_ms = now_ms + LOOK_MS
        if self._census is None:
            if now_ms < self._next_ms:
                return ""
            self._census, self._began_ms = Census(self._directories, _held_open(pid)), now_ms
        census = self._census
        try:
            for _ in range(_STEPS):
                if not self._allowance.take(now_ms):
                    break
                census.step()
                if census.complete:
                    break
        except OSError:  # no descriptor is left: that must cost no lease, so it is counted later
            census.close()
            self._census, self._next_ms = None, now_ms + _PAUSE_MS
            return ""
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
        step_ms = now_ms + _STEP_PAUSE_MS
        return step_ms if self._census is not None else max(self._next_ms or 0, step_ms)

    def _complaint(self, found_bytes: int, entries: int) -> str:
        if found_bytes > self._limits.workspace_bytes:
            return f"Its workspace holds more than {self._limits.workspace_bytes} bytes."
        if entries > self._limits.workspace_entries:
            return f"Its workspace holds more than {self._limits.workspace_entries} files."
        return ""


class Order(enum.Enum):
    """What a look at the file system calls for."""

    NOTHING = enum.auto()
    COUNT = enum.auto()
    """Count all workspaces at once."""
    STOP_LARGEST = enum.auto()
    """And stop the run that takes most: everybody has been counted since the reserve was touched."""


class DiskAlarm:
    """Decides on what is free of the file system that all workspaces of a node share; reads nothing itself.

    Args:
        reserve_bytes: to be kept free.
        step_bytes: so much less than at the last count, and everybody is counted again.
    """

    def __init__(self, reserve_bytes: int, step_bytes: int) -> None:
        self._reserve_bytes = reserve_bytes
        self._step_bytes = step_bytes
        self._counted_at_bytes: int | None = None
        self._stop_at_ms: int | None = None
        self._stopped_at_bytes: int | None = None
        self._passed = False

    def spare(self, now_ms: int) -> None:
        """Somebody else on this disk has just been stopped or is about to be: that must have time to show."""
        self._stop_at_ms, self._passed = now_ms + _SPARED_MS, True

    def look(self, now_ms: int, free: int) -> Order:
        """What so much free space calls for at this time."""
        if free < self._reserve_bytes:
            self._counted_at_bytes = free
            if self._passed:
                self._stopped_at_bytes, self._passed = free, False
            if self._stop_at_ms is None or now_ms < self._stop_at_ms:
                self._stop_at_ms = self._stop_at_ms or now_ms + _COUNTED_MS
                return Order.COUNT
            if self._stopped_at_bytes is not None and free >= self._stopped_at_bytes:
                return Order.COUNT  # what was stopped has left its files, but nobody goes on filling the disk
            self._stop_at_ms, self._stopped_at_bytes = now_ms + _SPARED_MS, free
            return Order.STOP_LARGEST
        self._stop_at_ms = self._stopped_at_bytes = None
        self._passed = False
        if self._counted_at_bytes is None or free > self._counted_at_bytes:
            self._counted_at_bytes = free
        if self._counted_at_bytes - free < self._step_bytes:
            return Order.NOTHING
        self._counted_at_bytes = free
        return Order.COUNT


def free_bytes(path: Path) -> int:
    """What is left on the file system for ordinary users."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _held_open(pid: int) -> Iterator[int | None]:
    """Sizes of files that were deleted but that a tree of processes still has open; None between two looks.

    Not of what is only mapped: whoever reads a process's mappings waits for its memory's lock, so perhaps for a disk.
    """
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
