"""What a child of the supervisor does between fork and exec, to become the first process of a job.

It is one process that becomes another, never a chain of children: the death signal of a parent of another uid
without capabilities would not be delivered. Nothing here allocates much or waits; whatever fails is said on
standard error, which is the job's log, and ends the child.
"""

import ctypes
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_CAPABILITIES: Final = range(64)
_CLONE_NEWNS: Final = 0x20000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000

FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class Becoming:
    """All that the child needs, prepared by its parent.

    Args:
        supervisor_pid: the child goes on only as long as this is its parent.
        cgroup_joins: files to write itself into.
        namespaces: files of namespaces to enter, in this order.
        binds: (host path, place) pairs made in a mount namespace of its own; `stage`, which contains the
            places, then covers `staged`. No mount namespace is made when it is empty.
        limits: (resource, value) pairs, soft and hard.
        uid: whom to become, with a group of the same number and no capability; None to stay.
    """

    supervisor_pid: int
    cgroup_joins: tuple[str, ...]
    namespaces: tuple[str, ...]
    binds: tuple[tuple[str, str], ...]
    stage: str
    staged: str
    limits: tuple[tuple[int, int], ...]
    uid: int | None

    def __call__(self) -> None:
        """Run in the child."""
        for step, act in self._steps():
            try:
                act()
            except OSError as error:
                os.write(2, f"{step}: {error}\n".encode())
                os._exit(FAILED)

    def _steps(self) -> tuple[tuple[str, Callable[[], None]], ...]:
        return (
            ("parent", self._end_with_parent),
            ("memory", _go_first),
            ("cgroup", self._join_cgroups),
            ("namespace", self._enter_namespaces),
            ("mount", self._bind),
            ("limit", self._limit),
            ("uid", self._change_uid),
            ("parent", self._end_with_parent),
        )

    def _end_with_parent(self) -> None:
        _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
        if os.getppid() != self.supervisor_pid:
            os._exit(FAILED)

    def _join_cgroups(self) -> None:
        for path in self.cgroup_joins:
            file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(file, b"0")
            os.close(file)

    def _enter_namespaces(self) -> None:
        for file in [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self.namespaces]:
            _check(_LIBC.setns(file, 0))
            os.close(file)

    def _bind(self) -> None:
        if not self.binds:
            return
        _check(_LIBC.unshare(_CLONE_NEWNS))
        _mount("none", "/", _MS_REC | _MS_PRIVATE)
        for source, place in self.binds:
            _mount(source, place, _MS_BIND | _MS_REC)
        _mount(self.stage, self.staged, _MS_BIND | _MS_REC)

    def _limit(self) -> None:
        for kind, value in self.limits:
            resource.setrlimit(kind, (value, value))

    def _change_uid(self) -> None:
        if self.uid is None:
            return
        for capability in _CAPABILITIES:
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)


def _go_first() -> None:
    # When the host itself runs out of memory, jobs go before the supervisor that bills them.
    file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(file, b"500")
    os.close(file)


def _mount(source: str, target: str, flags: int) -> None:
    _check(_LIBC.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None), source)


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
