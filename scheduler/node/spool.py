"""What the supervisor must not forget: an append-only journal, flushed to the disk before anything is reported.

One JSON object per line, preceded by its CRC-32. What follows the first damaged line is a write that never
finished and is cut off when the journal is opened. It is rewritten without what has been acknowledged when it
has grown, into a new file that replaces the old one at once.

Invariant: a run whose `started` line is on disk never starts again, and a record that was reported stays until
it is acknowledged, whatever is killed in between.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scheduler.node.codec import MalformedMessage, decode, encode
from scheduler.node.meter import Meter
from scheduler.node.protocol import RunStatus, UsageRecord

REMEMBERED_RUNS: Final = 50_000
"""So many ended and acknowledged runs are remembered, so that none of them starts twice."""

_COMPACT_BYTES: Final = 8 * 1024 * 1024
_RESERVE_BYTES: Final = 4 * 1024 * 1024


class JournalFailed(OSError):
    """A line is not on disk; most often the disk is full."""


@dataclass(slots=True)
class OpenRun:
    """A run that was started and whose end is not in the journal, with its meter as last confirmed."""

    status: RunStatus
    meter: Meter


@dataclass(slots=True)
class Memory:
    """Everything the journal says, folded."""

    epoch: int = 0
    open: dict[str, OpenRun] = field(default_factory=dict)
    ended: dict[str, RunStatus] = field(default_factory=dict)
    usage: dict[str, UsageRecord] = field(default_factory=dict)
    known: dict[str, None] = field(default_factory=dict)

    def apply(self, line: dict[str, Any]) -> None:
        """Fold one journal line in. Raises KeyError, TypeError, MalformedMessage when it is not one of ours."""
        _FOLDS[line["kind"]](self, line)

    def fold_epoch(self, line: dict[str, Any]) -> None:
        """The highest epoch obeyed."""
        self.epoch = max(self.epoch, line["epoch"])

    def fold_started(self, line: dict[str, Any]) -> None:
        """A run that was about to be started."""
        status = decode(RunStatus, line["status"])
        self.open[status.run_id] = OpenRun(status, decode(Meter, line["meter"]))
        self._remember(status.run_id)

    def fold_meter(self, line: dict[str, Any]) -> None:
        """Readings of runs that were alive."""
        for run_id, meter in line["meters"].items():
            if run_id in self.open:
                self.open[run_id].meter = decode(Meter, meter)

    def fold_usage(self, line: dict[str, Any]) -> None:
        """A record that was cut."""
        record = decode(UsageRecord, line["record"])
        self.usage[record.id] = record

    def fold_ended(self, line: dict[str, Any]) -> None:
        """The end of a run."""
        status = decode(RunStatus, line["status"])
        self.open.pop(status.run_id, None)
        self.ended[status.run_id] = status
        self._remember(status.run_id)

    def fold_acknowledged(self, line: dict[str, Any]) -> None:
        """What the controller has."""
        for run_id in line["exits"]:
            self.ended.pop(run_id, None)
        for record_id in line["usage"]:
            self.usage.pop(record_id, None)

    def fold_known(self, line: dict[str, Any]) -> None:
        """Runs that ended and were acknowledged long ago."""
        for run_id in line["runs"]:
            self._remember(run_id)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The shortest journal that folds to this memory."""
        yield {"kind": "epoch", "epoch": self.epoch}
        known = list(self.known)
        for at in range(0, len(known), 1000):
            yield {"kind": "known", "runs": known[at : at + 1000]}
        for run in self.open.values():
            yield started_line(run.status, run.meter)
        for record in self.usage.values():
            yield usage_line(record)
        for status in self.ended.values():
            yield ended_line(status)

    def _remember(self, run_id: str) -> None:
        self.known[run_id] = None
        while len(self.known) > REMEMBERED_RUNS:
            oldest = next(iter(self.known))
            if oldest in self.open or oldest in self.ended:
                break
            del self.known[oldest]


_FOLDS: Final[dict[str, Callable[[Memory, dict[str, Any]], None]]] = {
    "epoch": Memory.fold_epoch,
    "started": Memory.fold_started,
    "meter": Memory.fold_meter,
    "usage": Memory.fold_usage,
    "ended": Memory.fold_ended,
    "acknowledged": Memory.fold_acknowledged,
    "known": Memory.fold_known,
}


def started_line(status: RunStatus, meter: Meter) -> dict[str, Any]:
    """A run is about to be started."""
    return {"kind": "started", "status": encode(status), "meter": encode(meter)}


def meter_line(meters: dict[str, Meter]) -> dict[str, Any]:
    """These runs are alive and metered so far."""
    return {"kind": "meter", "meters": {run_id: encode(meter) for run_id, meter in meters.items()}}


def usage_line(record: UsageRecord) -> dict[str, Any]:
    """A usage record was cut."""
    return {"kind": "usage", "record": encode(record)}


def ended_line(status: RunStatus) -> dict[str, Any]:
    """A run and its whole process tree are gone."""
    return {"kind": "ended", "status": encode(status)}


def acknowledged_line(usage: Iterable[str], exits: Iterable[str]) -> dict[str, Any]:
    """The controller has these."""
    return {"kind": "acknowledged", "usage": list(usage), "exits": list(exits)}


class Spool:
    """The journal of one supervisor and its folded memory.

    Raises OSError from every write (JournalFailed from `append`): the caller decides what a full disk means. A write
    that failed half-way is cut off again, so that the next one does not follow a torn line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reserve = path.with_suffix(".reserve")
        self.memory = Memory()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = self._replay()
        os.ftruncate(self._file, self._size)
        self.compact()
        self.keep_reserve()

    def append(self, *lines: dict[str, Any], durable: bool = True) -> None:
        """Write lines in one piece, remember them, and (unless told not to) wait for the disk."""
        data = b"".join(_frame(line) for line in lines)
        try:
            _write_all(self._file, data)
            if durable:
                os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise JournalFailed(error.errno, error.strerror) from error
        self._size += len(data)
        for line in lines:
            self.memory.apply(line)
        if self._size > _COMPACT_BYTES + self._compacted_size * 2:
            self.compact()

    def compact(self) -> None:
        """Rewrite the journal to what memory holds. Raises OSError and leaves the old one in place."""
        fresh = self._path.with_suffix(".new")
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            data = b"".join(_frame(line) for line in self.memory.lines())
            _write_all(file, data)
            os.fdatasync(file)
            fresh.replace(self._path)
        except OSError:
            os.close(file)
            fresh.unlink(missing_ok=True)
            raise
        _sync_directory(self._path.parent)
        os.close(self._file)
        self._file, self._size, self._compacted_size = file, len(data), len(data)

    def release_reserve(self) -> None:
        """Give back the space kept for last words, so that ends can be written on a full disk."""
        self._reserve.unlink(missing_ok=True)

    def keep_reserve(self) -> None:
        """Set aside space for last words. Raises OSError."""
        file = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, _RESERVE_BYTES)
        finally:
            os.close(file)

    def replenish(self) -> None:
        """Set the space aside again once there is plenty; without it the next full disk would take the last words."""
        found = os.statvfs(self._path.parent)
        if self._reserve.exists() or found.f_bavail * found.f_frsize < 2 * _RESERVE_BYTES:
            return
        try:
            self.keep_reserve()
        except OSError:
            self.release_reserve()

    def close(self) -> None:
        """Give the file back; nothing is lost, everything is on disk already."""
        os.close(self._file)

    def _replay(self) -> int:
        with os.fdopen(os.dup(self._file), "rb") as journal:
            journal.seek(0)
            size = 0
            for raw in journal:
                line = _unframe(raw)
                if line is None:
                    break
                try:
                    self.memory.apply(line)
                except (MalformedMessage, KeyError, TypeError, AttributeError):
                    break
                size += len(raw)
        return size


def _frame(line: dict[str, Any]) -> bytes:
    text = json.dumps(line, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _unframe(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    checksum, _, text = raw[:-1].partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    line = json.loads(text)
    return line if isinstance(line, dict) else None


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
