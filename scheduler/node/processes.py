"""Process trees: who is in one, how much CPU time it took, how to signal it without hitting a stranger.

A pid is only ever signalled through a pidfd that was opened before the check that it is the right process, so a
number that was reused in between is never hit.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TREE_MAX: Final = 100_000


def descendants(pid: int) -> Iterator[int]:
    """Every process below `pid`, parents before children, without `pid` itself."""
    waiting, seen = [pid], 0
    while waiting and seen < _TREE_MAX:
        for child in _children(waiting.pop()):
            seen += 1
            waiting.append(child)
            yield child


async def await_end(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Wait for a child without a thread; it is killed when nobody waits any more.

    Raises:
        TimeoutError: it took longer than `limit_s` seconds, and is killed.
    """
    ended = asyncio.Event()
    handle = os.pidfd_open(process.pid)
    asyncio.get_running_loop().add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(limit_s):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)
        process.kill()
        process.wait()


def cpu_ms(pid: int) -> int:
    """CPU time of a tree, including that of children its members have waited for."""
    ticks = 0
    for member in (pid, *descendants(pid)):
        fields = _stat_fields(member)
        ticks += sum(int(fields[at]) for at in (11, 12, 13, 14)) if fields else 0
    return ticks * 1000 // _TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Resident memory of a tree, pages shared among its members counted for each."""
    pages = 0
    for member in (pid, *descendants(pid)):
        fields = _stat_fields(member)
        pages += int(fields[21]) if fields else 0
    return pages * _PAGE_BYTES


def unkillable(root: int) -> int:
    """Which process of a tree is waiting in the kernel, where no signal reaches it; the first one if none says so."""
    for member in (root, *descendants(root)):
        fields = _stat_fields(member)
        if fields and fields[0] == b"D":
            return member
    return root


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; with the pid it names a process for ever."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def signal_members(root: int, number: signal.Signals) -> None:
    """Signal every process of the pid namespace whose first process is `root`, except that one."""
    _signal_those(root, list(descendants(root)), number)


def signal_first(root: int, number: signal.Signals) -> None:
    """Signal only the oldest child of `root`, which is the program that the job is."""
    _signal_those(root, _children(root)[:1], number)


def _signal_those(root: int, members: list[int], number: signal.Signals) -> None:
    namespace = _pid_namespace(root)
    if namespace is None:
        return
    for member in members:
        with suppress(ProcessLookupError, PermissionError):
            handle = os.pidfd_open(member)
            try:
                if _pid_namespace(member) == namespace:
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


def kill_pidfd(handle: int) -> None:
    """SIGKILL the process behind a pidfd, if it is still there."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    # A thread's children are listed under the thread.
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for task in tasks:
        with suppress(OSError):
            found += map(int, (task / "children").read_bytes().split())
    return found


def _stat_fields(pid: int) -> list[bytes] | None:
    # Field 3 (state) is the first after the name, which may itself contain blanks and brackets.
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return text[text.rindex(b")") + 2 :].split()


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None
