"""What the supervisor must not forget: an append-only journal, flushed to the disk before anything is reported.

One JSON object per line, preceded by its CRC-32. A damaged line at the end is a write that never finished; one before
others is a disk's mistake, which costs that line only: the journal is put aside as `spool.damaged`, and it is said. It
is rewritten without what has been acknowledged when it is opened and when it has grown, into a new file that replaces
the old one at once; where that fails, the old one goes on.

Waiting for the disk is what a journal costs. So a thread waits for whoever uses `soon`, who goes on when the disk has
his lines, and the supervisor starts and ends others meanwhile; what is given until then, and in the 4 ms before, is
written together.

Invariant: a run whose `started` line is on disk never starts again, and a record that was reported stays until
it is acknowledged, whatever is killed in between. Lines are on disk in the order in which they were given.
"""

import asyncio
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from kernel.files import sync_directory
from scheduler.node.codec import MalformedMessage, decode, to_json
from scheduler.node.meter import Meter
from scheduler.node.protocol import RunStatus, UsageRecord

REMEMBERED_RUNS: Final = 50_000
"""So many ended and acknowledged runs are remembered, so that none of them starts twice."""

_COMPACT_BYTES: Final = 8 * 1024 * 1024
_RESERVE_BYTES: Final = 4 * 1024 * 1024
_GATHERED_S: Final = 0.004
"""Runs that start or end together do so within milliseconds; a flush for each costs more than it waits for the disk:
another thread, which takes the interpreter from this one twice."""

_log = structlog.get_logger(__name__)


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
    held: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Devices of runs that are over and whose processes nobody could end."""

    def apply(self, line: dict[str, Any]) -> None:
        """Fold one line of a journal in. Raises KeyError, TypeError, MalformedMessage when it is not one of ours."""
        _FOLDS[line["kind"]](self, line)

    def obeyed(self, epoch: int) -> None:
        """The highest epoch obeyed."""
        self.epoch = max(self.epoch, epoch)

    def started(self, status: RunStatus, meter: Meter) -> None:
        """A run that was about to be started."""
        self.open[status.run_id] = OpenRun(status, meter)
        self._remember(status.run_id)

    def metered(self, meters: dict[str, Meter]) -> None:
        """Readings of runs that were alive."""
        for run_id, meter in meters.items():
            if run_id in self.open:
                self.open[run_id].meter = meter

    def used(self, record: UsageRecord) -> None:
        """A record that was cut."""
        self.usage[record.id] = record

    def finished(self, status: RunStatus) -> None:
        """The end of a run."""
        self.open.pop(status.run_id, None)
        self.ended[status.run_id] = status
        self._remember(status.run_id)

    def acknowledged(self, usage: Iterable[str], exits: Iterable[str]) -> None:
        """What the controller has."""
        for run_id in exits:
            self.ended.pop(run_id, None)
        for record_id in usage:
            self.usage.pop(record_id, None)

    def forgotten(self, runs: Iterable[str]) -> None:
        """Runs that ended and were acknowledged long ago."""
        for run_id in runs:
            self._remember(run_id)

    def holding(self, held: Mapping[str, Sequence[int]]) -> None:
        """All that earlier runs still hold."""
        self.held = {run_id: tuple(devices) for run_id, devices in held.items()}

    def lines(self) -> "Iterator[Line]":
        """The shortest journal that folds to this memory."""
        yield epoch_line(self.epoch)
        if self.held:
            yield held_line(self.held)
        known = list(self.known)
        for at in range(0, len(known), 1000):
            yield known_line(known[at : at + 1000])
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


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the journal as it is written, and what it does to a memory without being read again."""

    data: dict[str, Any]
    fold: Callable[[Memory], None]


_FOLDS: Final[dict[str, Callable[[Memory, dict[str, Any]], None]]] = {
    "epoch": lambda memory, line: memory.obeyed(line["epoch"]),
    "started": lambda memory, line: memory.started(
        decode(RunStatus, line["status"]), decode(Meter, line["meter"])
    ),
    "meter": lambda memory, line: memory.metered(
        {run_id: decode(Meter, meter) for run_id, meter in line["meters"].items()}
    ),
    "usage": lambda memory, line: memory.used(decode(UsageRecord, line["record"])),
    "ended": lambda memory, line: memory.finished(decode(RunStatus, line["status"])),
    "acknowledged": lambda memory, line: memory.acknowledged(line["usage"], line["exits"]),
    "known": lambda memory, line: memory.forgotten(line["runs"]),
    "held": lambda memory, line: memory.holding(line["devices"]),
}


def epoch_line(epoch: int) -> Line:
    """An epoch was obeyed."""
    return Line({"kind": "epoch", "epoch": epoch}, lambda memory: memory.obeyed(epoch))


def held_line(held: Mapping[str, Sequence[int]]) -> Line:
    """These devices, by run, are all that earlier runs still hold."""
    data = {"kind": "held", "devices": {run_id: list(devices) for run_id, devices in held.items()}}
    return Line(data, lambda memory: memory.holding(held))


def known_line(runs: Sequence[str]) -> Line:
    """These runs ended and were acknowledged long ago."""
    return Line({"kind": "known", "runs": list(runs)}, lambda memory: memory.forgotten(runs))


def started_line(status: RunStatus, meter: Meter) -> Line:
    """A run is about to be started."""
    data = {"kind": "started", "status": status, "meter": meter}
    return Line(data, lambda memory: memory.started(status, meter))


def meter_line(meters: dict[str, Meter]) -> Line:
    """These runs are alive and metered so far."""
    data = {"kind": "meter", "meters": dict(meters)}
    return Line(data, lambda memory: memory.metered(meters))


def usage_line(record: UsageRecord) -> Line:
    """A usage record was cut."""
    return Line({"kind": "usage", "record": record}, lambda memory: memory.used(record))


def ended_line(status: RunStatus) -> Line:
    """A run and its whole process tree are gone."""
    return Line({"kind": "ended", "status": status}, lambda memory: memory.finished(status))


def acknowledged_line(usage: Sequence[str], exits: Sequence[str]) -> Line:
    """The controller has these."""
    data = {"kind": "acknowledged", "usage": list(usage), "exits": list(exits)}
    return Line(data, lambda memory: memory.acknowledged(usage, exits))


@dataclass(frozen=True, slots=True)
class _Given:
    lines: tuple[Line, ...]
    written: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Flush:
    """What has been written, how many bytes it is, and the thread's word that the disk has it."""

    given: Sequence[_Given]
    size: int
    done: Future[None]


class Spool:
    """The journal of one supervisor and its folded memory.

    Raises OSError from every write (JournalFailed from `append`): the caller decides what a full disk means. A write
    that failed half-way is cut off again, so that the next one does not follow a torn line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reserve = path.with_suffix(".reserve")
        self.memory = Memory()
        self._waiting: list[_Given] = []
        self._whenever: list[Line] = []
        self._flush: _Flush | None = None
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size
        if damaged := self._replay():
            aside = path.with_suffix(".damaged")
            shutil.copyfile(path, aside)
            _log.error("journal_damaged", lines=damaged, kept=str(aside))
        self.compact()
        self.keep_reserve()

    def soon(self, *lines: Line) -> asyncio.Future[None]:
        """Write lines durably, with all that are given until the disk is free; JournalFailed for all of them."""
        loop = asyncio.get_running_loop()
        if not self._waiting and self._flush is None:
            loop.call_later(_GATHERED_S, self._begin_flush, loop)
        self._waiting.append(_Given(lines, loop.create_future()))
        return self._waiting[-1].written

    def whenever(self, line: Line) -> None:
        """Remember a line now, and write it before the next ones; until then a crash takes it back."""
        line.fold(self.memory)
        self._whenever.append(line)

    def append(self, *lines: Line) -> None:
        """Write lines in one piece after all that were given before, wait for the disk, and remember them."""
        self._write_waiting()
        size = self._write(lines)
        self._wait_for_disk(lambda: os.fdatasync(self._file))
        self._keep(lines, size)

    def _begin_flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what is waiting, and have the thread wait for the disk."""
        if self._flush is not None or not self._waiting:
            return  # somebody who could not wait has done it
        given, self._waiting = self._waiting, []
        try:
            size = self._write([line for one in given for line in one.lines])
        except JournalFailed as error:
            _tell(given, error)
            return
        done = self._flusher.submit(os.fdatasync, self._file)
        self._flush = flush = _Flush(given, size, done)

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # nobody is there any more; closing the journal has waited for it
                loop.call_soon_threadsafe(self._flushed, flush, loop)

        done.add_done_callback(ended)

    def _flushed(self, flush: "_Flush", loop: asyncio.AbstractEventLoop) -> None:
        if self._flush is flush:
            self._end_flush()
            self._begin_flush(loop)

    def _end_flush(self) -> None:
        """Remember what is being flushed, once the disk has it."""
        flush, self._flush = self._flush, None
        if flush is None:
            return
        try:
            self._wait_for_disk(flush.done.result)
        except JournalFailed as error:
            _tell(flush.given, error)
            return
        self._keep([line for one in flush.given for line in one.lines], flush.size)
        _tell(flush.given, None)

    def _write_waiting(self) -> None:
        self._end_flush()
        given, self._waiting = self._waiting, []
        if not given:
            return
        try:
            self.append(*[line for one in given for line in one.lines])
        except JournalFailed as error:
            _tell(given, error)
        else:
            _tell(given, None)

    def _write(self, lines: Iterable[Line]) -> int:
        """Hand lines to the kernel; how many bytes."""
        data = b"".join(_frame(line.data) for line in (*self._whenever, *lines))
        self._whenever.clear()  # what of it is lost is said again
        self._wait_for_disk(lambda: _write_all(self._file, data))
        return len(data)

    def _wait_for_disk(self, wait: Callable[[], object]) -> None:
        """Cut off what was written last if that fails."""
        try:
            wait()
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise JournalFailed(error.errno, error.strerror) from error

    def _keep(self, lines: Iterable[Line], size: int) -> None:
        self._size += size
        for line in lines:
            line.fold(self.memory)
        if self._size > _COMPACT_BYTES + self._compacted_size * 2:
            self._shrink()

    def compact(self) -> None:
        """Rewrite the journal to what memory holds. Raises OSError and leaves the old one in place."""
        fresh = self._path.with_suffix(".new")
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            data = b"".join(_frame(line.data) for line in self.memory.lines())
            _write_all(file, data)
            os.fdatasync(file)
            fresh.replace(self._path)
        except OSError:
            os.close(file)
            fresh.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file, self._size, self._compacted_size = file, len(data), len(data)
        sync_directory(self._path.parent)

    def _shrink(self) -> None:
        """Compact; the lines are on disk either way, and whoever wrote them must not hear that they are not."""
        try:
            self.compact()
        except OSError as error:
            _log.warning("journal_not_compacted", bytes=self._size, reason=str(error))
            self._compacted_size = self._size

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

    def replenish(self) -> bool:
        """Set the space aside again once there is plenty; whether there is any for the last words of new runs."""
        if self._reserve.exists():
            return True
        found = os.statvfs(self._path.parent)
        if found.f_bavail * found.f_frsize < 2 * _RESERVE_BYTES:
            return False
        try:
            self.keep_reserve()
        except OSError:
            self.release_reserve()
            return False
        return True

    def close(self) -> None:
        """Give the file back; nothing is lost, everything is on disk then."""
        self._write_waiting()
        if self._whenever:
            self.append()
        self._flusher.shutdown()
        os.close(self._file)

    def _replay(self) -> int:
        """Fold what was written; how many damaged lines stand before whole ones."""
        damaged = doubtful = 0
        with os.fdopen(os.dup(self._file), "rb") as journal:
            journal.seek(0)
            for raw in journal:
                try:
                    line = _unframe(raw)
                    if line is not None:
                        self.memory.apply(line)
                except (MalformedMessage, KeyError, TypeError, AttributeError):
                    line = None
                if line is None:
                    doubtful += 1
                else:
                    damaged, doubtful = damaged + doubtful, 0
        return damaged


def _tell(given: Iterable[_Given], failed: JournalFailed | None) -> None:
    for one in given:
        if one.written.cancelled():
            continue
        if failed is None:
            one.written.set_result(None)
        else:
            one.written.set_exception(failed)


def _frame(line: dict[str, Any]) -> bytes:
    text = to_json(line)
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
