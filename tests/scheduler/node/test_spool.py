import asyncio
import errno
import json
import os
import resource
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.node.meter import start_meter
from scheduler.node.protocol import EndReason, RunSpec, RunState, RunStatus
from scheduler.node.recovery import bury
from scheduler.node.spool import (
    JournalFailed,
    Spool,
    acknowledged_line,
    ended_line,
    epoch_line,
    meter_line,
    started_line,
    usage_line,
)

SPEC = RunSpec("r", "j", "t", 1, ("true",), "/w/a", "/w/l")
STATUS = RunStatus("r", "j", 1, 0, RunState.STARTING)
METER = start_meter(SPEC, boot_id="b", boot_ms=100, unix_ms=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def started(path: Path) -> Spool:
    spool = Spool(path)
    spool.append(epoch_line(7), started_line(STATUS, METER))
    return spool


def test_what_was_written_is_remembered_by_the_next_supervisor(path: Path) -> None:
    started(path).close()
    memory = Spool(path).memory
    assert memory.epoch == 7
    assert memory.open["r"].meter == METER
    assert "r" in memory.known


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_torn_by_a_crash_is_cut_off_and_nothing_before_it_is_lost(path: Path, cut: int) -> None:
    spool = started(path)
    spool.append(meter_line({"r": METER.read(500, 3)}))
    spool.close()
    os.truncate(path, path.stat().st_size - cut)
    again = Spool(path)
    assert again.memory.open["r"].meter == METER
    again.append(meter_line({"r": METER.read(600, 3)}))
    again.close()
    assert Spool(path).memory.open["r"].meter.until_boot_ms == 600


def test_whatever_append_returns_from_is_on_the_disk_and_what_replaces_a_journal_before_it_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, int] = {}
    really, rename = os.fdatasync, os.rename

    def sync(file: int) -> None:
        really(file)
        synced[os.fstat(file).st_ino] = os.fstat(file).st_size

    def replace_by(fresh: Path, target: Path) -> Path:
        facts = fresh.stat()
        assert synced[facts.st_ino] == facts.st_size
        rename(fresh, target)
        return target

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(Path, "replace", replace_by)
    spool = started(path)
    for line in (meter_line({"r": METER.read(500, 3)}), ended_line(replace(STATUS, state=RunState.ENDED))):
        spool.append(line)
        assert synced[path.stat().st_ino] == path.stat().st_size


def test_a_damaged_line_costs_that_line_only_and_the_journal_is_put_aside(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = started(path)
    before = path.stat().st_size
    spool.append(meter_line({"r": METER.read(500, 3)}))
    _, record = METER.read(600, 3).cut(final=True)
    spool.append(usage_line(record), ended_line(replace(STATUS, state=RunState.ENDED)))
    spool.close()
    data = bytearray(path.read_bytes())
    data[before + 30] ^= 1
    path.write_bytes(data)
    again = Spool(path)
    assert again.memory.usage == {record.id: record}
    assert again.memory.ended["r"].state is RunState.ENDED
    assert "journal_damaged" in capsys.readouterr().out
    assert path.with_suffix(".damaged").read_bytes() == bytes(data)
    again.close()
    assert Spool(path).memory.usage == {record.id: record}
    assert "journal_damaged" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_journal_that_cannot_be_rewritten_goes_on_and_its_lines_are_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    spool = started(path)
    path.with_suffix(".new").mkdir()
    for number in range(50_000):
        spool.append(meter_line({"r": METER.read(number, 0)}))
    spool.close()
    path.with_suffix(".new").rmdir()
    assert Spool(path).memory.open["r"].meter.until_boot_ms == 49_999


def test_runs_of_a_dead_supervisor_are_metered_to_the_last_reading_on_disk(path: Path) -> None:
    spool = started(path)
    meter, record = METER.read(400, 30).cut(final=False)
    spool.append(usage_line(record), meter_line({"r": meter}))
    spool.append(meter_line({"r": meter.read(900, 50)}))
    spool.close()
    again = Spool(path)
    bury(again, {}, wall_ms=77, boot_ms=5000)
    assert [(r.k, r.offset_ms, r.duration_ms, r.cpu_ms, r.final) for r in again.memory.usage.values()] == [
        (0, 0, 300, 30, False),
        (1, 300, 500, 20, True),
    ]
    assert again.memory.ended["r"].end_reason is EndReason.SUPERVISOR_LOST
    assert not again.memory.open


def test_what_is_due_together_waits_for_the_disk_once_and_keeps_its_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(path)
    flushed = []
    flush = os.fdatasync

    def counted(file: int) -> None:
        flushed.append(file)
        flush(file)

    monkeypatch.setattr(os, "fdatasync", counted)
    _, record = METER.cut(final=True)

    async def write() -> None:
        first = spool.soon(started_line(STATUS, METER))
        last = spool.soon(usage_line(record), ended_line(replace(STATUS, state=RunState.ENDED)))
        assert not spool.memory.known
        await asyncio.gather(first, last)
        assert len(flushed) == 1
        waiting = spool.soon(epoch_line(8))
        spool.append(epoch_line(9))
        assert waiting.done()

    asyncio.run(write())
    spool.close()
    memory = Spool(path).memory
    assert memory.epoch == 9
    assert not memory.open
    assert list(memory.ended) == ["r"]


def test_what_is_given_while_the_disk_is_busy_waits_for_it_once_more_and_nobody_stands_still(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = started(path)
    busy, free, flushes = threading.Event(), threading.Event(), []
    flush = os.fdatasync

    def slow(file: int) -> None:
        flushes.append(file)
        busy.set()
        assert free.wait(60)
        flush(file)

    monkeypatch.setattr(os, "fdatasync", slow)

    async def write() -> None:
        first = spool.soon(epoch_line(8))
        assert await asyncio.to_thread(busy.wait, 60)
        later = [spool.soon(epoch_line(number)) for number in (9, 10)]
        assert not first.done()
        assert spool.memory.epoch == 7
        free.set()
        await asyncio.gather(first, *later)
        assert spool.memory.epoch == 10
        assert len(flushes) == 2

    asyncio.run(write())
    spool.close()
    assert Spool(path).memory.epoch == 10


def test_who_cannot_wait_for_the_thread_waits_for_the_disk_and_keeps_the_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = started(path)
    busy, flush = threading.Event(), os.fdatasync

    def told(file: int) -> None:
        busy.set()
        flush(file)

    monkeypatch.setattr(os, "fdatasync", told)
    _, record = METER.cut(final=True)

    async def write() -> None:
        first = spool.soon(usage_line(record))
        assert await asyncio.to_thread(busy.wait, 60)
        second = spool.soon(ended_line(replace(STATUS, state=RunState.ENDED)))
        spool.append(epoch_line(9))
        assert list(spool.memory.ended) == ["r"]
        await asyncio.gather(first, second)

    asyncio.run(write())
    spool.close()
    kinds = [json.loads(line[9:])["kind"] for line in path.read_bytes().splitlines()]
    assert kinds[-3:] == ["usage", "ended", "epoch"]


def test_a_disk_that_takes_a_line_and_then_fails_leaves_nothing_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = started(path)
    size, flush = path.stat().st_size, os.fdatasync

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def write() -> None:
        monkeypatch.setattr(os, "fdatasync", broken)
        (failed,) = await asyncio.gather(spool.soon(epoch_line(8)), return_exceptions=True)
        assert isinstance(failed, JournalFailed)
        assert os.stat(path).st_size == size  # noqa: PTH116 - nothing else runs here
        monkeypatch.setattr(os, "fdatasync", flush)
        await spool.soon(epoch_line(9))

    asyncio.run(write())
    spool.close()
    assert Spool(path).memory.epoch == 9


def test_all_that_were_written_together_hear_that_there_is_no_room(path: Path) -> None:
    spool = started(path)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def write() -> list[object]:
        both = (spool.soon(epoch_line(8)), spool.soon(epoch_line(9)))
        return list(await asyncio.gather(*both, return_exceptions=True))

    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        failed = asyncio.run(write())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [type(error) for error in failed] == [JournalFailed, JournalFailed]
    assert path.stat().st_size == size
    assert spool.memory.epoch == 7


def test_what_is_acknowledged_is_forgotten_but_the_run_stays_known(path: Path) -> None:
    spool = started(path)
    _, record = METER.cut(final=True)
    spool.append(usage_line(record), ended_line(replace(STATUS, state=RunState.ENDED)))
    spool.whenever(acknowledged_line([record.id], ["r"]))
    assert not spool.memory.ended
    assert b"acknowledged" not in path.read_bytes()
    spool.close()
    memory = Spool(path).memory
    assert not memory.ended
    assert not memory.usage
    assert "r" in memory.known


def test_the_journal_shrinks_when_it_has_grown(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    spool = started(path)
    for number in range(40_000):
        spool.append(meter_line({"r": METER.read(number, 0)}))
    assert path.stat().st_size < 9 * 1024 * 1024
    assert spool.memory.open["r"].meter.until_boot_ms == 39_999
