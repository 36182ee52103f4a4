"""A dead man's timer: a supervisor that can no longer watch leases dies, and its jobs with it.

A stopped process (SIGSTOP, a debugger, a thawed virtual machine) stops nobody. The kernel's timers go on, and
SIGKILL reaches a stopped process: so the supervisor keeps a CLOCK_BOOTTIME timer that would kill it a little
after the first lease lapses, and moves it on as long as it is awake. The controller may therefore count on a
run being gone when its lease, grace and `MARGIN_MS` are over, whatever happened to this process.
"""

import ctypes
import os
import signal
import time
from typing import Final

MARGIN_MS: Final = 1000

_SIGEV_SIGNAL: Final = 0
_TIMER_ABSTIME: Final = 1
_SIGEVENT_BYTES: Final = 64


class _SignalEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * (_SIGEVENT_BYTES - 16)),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class DeadMansTimer:
    """Kills this process at a boot time unless it is moved on. Raises OSError where the kernel has none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _SignalEvent(None, signal.SIGKILL, _SIGEV_SIGNAL)
        self._at_ms = 0
        made = self._libc.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer))
        if made != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def set(self, boot_ms: int | None) -> None:
        """Kill at this boot time; None disarms."""
        at_ms = 0 if boot_ms is None else max(boot_ms, 1)
        if at_ms == self._at_ms:
            return
        spec = _TimerSpec(_Timespec(0, 0), _Timespec(at_ms // 1000, at_ms % 1000 * 1_000_000))
        if self._libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._at_ms = at_ms
