"""Waiting for a child that runs a mutant: one that goes on for ever is told from one that the machine starves.

Clocks on the wall decide nothing. A child runs for ever when it and the database have used far more processor time
than its present test ever needs, and stands still when for a while nobody of them had anything to run at any look.
"""

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psutil

LOOK_S: Final = 0.5
STILL_LOOKS: Final = 40
"""A starved process waits to run, and a look sees it; so many looks without any such process mean that all sleep."""
_BUSY: Final = {psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP}


def await_child(child: int, told: int, allowed_s: Callable[[bytes], float]) -> tuple[int | None, bytes]:
    """Exit code of a child and what it wrote into its pipe; the code is None when it had to be ended.

    Args:
        child: its process id.
        told: the end of its pipe to read from; closed afterwards.
        allowed_s: what it and the server may use until it writes again, by what it has written.
    """
    words = b""
    started = _used(child)
    still = 0
    with os.fdopen(told, "rb", buffering=0) as pipe:
        while True:
            if select.select([pipe], [], [], LOOK_S)[0]:
                piece = pipe.read(65536)
                words += piece
                if not piece:
                    return _ended(child), words
                started, still = _used(child), 0
                continue
            still = still + 1 if not _runnable(child) else 0
            if still >= STILL_LOOKS or _used(child) - started > allowed_s(words):
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None, words


def _ended(child: int) -> int | None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else None


def _everybody(child: int) -> list[psutil.Process]:
    """The child's processes and, of ours, those of the database."""
    with suppress(psutil.Error):
        others = psutil.Process().children(recursive=True)
        return [other for other in others if other.pid == child or _serves(other)]
    return []


def _serves(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith("postgres: hub_")
    return False


def _runnable(child: int) -> bool:
    for process in _everybody(child):
        with suppress(psutil.Error):
            if process.status() in _BUSY:
                return True
    return False


def _used(child: int) -> float:
    total = 0.0
    for process in _everybody(child):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
