"""The processes of one run: started, watched, signalled, killed, and counted out one by one.

A run is gone when its launching process, the first process of its sandbox (whose death the kernel completes
only after all others of the sandbox are dead) and the sandbox's status pipe have all ended, in whatever order. The
first two are one process where root makes the sandbox.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from scheduler.node.cgroups import RunCgroup
from scheduler.node.config import SandboxMode
from scheduler.node.errors import NodeFailed
from scheduler.node.logs import LogSink
from scheduler.node.nursery import Nursery, abandon, await_child
from scheduler.node.processes import cpu_ms, kill_pidfd, resident_bytes, signal_first, signal_members
from scheduler.node.protocol import EndReason
from scheduler.node.sandbox import compose, unconfined
from scheduler.node.view import View
from scheduler.node.watching import Watch

_STATUS_BYTES: Final = 4096
_REMOVE_AGAIN_S: Final = 0.05
_SIGNAL_BASE: Final = 128
_KILLED_BEFORE: Final = "The first process of its sandbox was killed before the job began."


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the processes of a run ended; `failed` says why there never were any.

    `oom_kills` is only looked for where the program did not end well.
    `trouble` is the node's own, for which they were killed before they could do anything.
    """

    exit_code: int | None
    cpu_ms: int
    memory_bytes: int
    oom_kills: int
    failed: str
    trouble: OSError | NodeFailed | None = None


class Launched:
    """The processes of one run and everything lent to them, which `lent` gives back."""

    def __init__(
        self,
        view: View,
        log: LogSink,
        cgroup: RunCgroup | None,
        watch: Watch,
        lent: ExitStack,
        mode: SandboxMode,
        nursery: Nursery,
    ) -> None:
        self.log = log
        self.watch = watch
        self._view = view
        self._cgroup = cgroup
        self._lent = lent
        self._mode = mode
        self._nursery = nursery
        self._pid: int | None = None
        self._handles: list[int] = []
        self._first_pid: int | None = None
        self._running: Callable[[int], None] = lambda _: None
        self._said = b""
        self._cpu_ms = 0
        self._ended = asyncio.Event()
        self._outstanding = 0
        self._killed = False
        self._trouble: OSError | NodeFailed | None = None

    def start(self, running: Callable[[int], None]) -> None:
        """Start them; `running` is told the host pid of the first process of the sandbox. Raises OSError."""
        status, status_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._pid = pid = self._spawn(status_end)
            self._watch(os.pidfd_open(pid))
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(status_end)
        self.log.started()
        self._running = running
        if self._mode is SandboxMode.PROCESS:
            os.close(status)
            self._found(pid)
        else:
            self._outstanding += 1
            asyncio.get_running_loop().add_reader(status, self._status_readable, status)

    async def gone(self) -> None:
        """Wait until the launching process and the sandbox's first one, and so all others, are gone."""
        await self._ended.wait()

    def excess(self, now_ms: int) -> tuple[EndReason, str] | None:
        """Why the run must stop: what it takes of disk or memory. None while it may go on."""
        if self._first_pid is None:
            return None
        if sentence := self.watch.disk(now_ms, self._first_pid):
            return EndReason.DISK_FULL, sentence
        if sentence := self.watch.memory(self._first_pid):
            return EndReason.OOM, sentence
        return None

    def send(self, number: signal.Signals) -> None:
        """Signal every process of the job."""
        if self._first_pid is None:
            self.kill()
            return
        signal_members(self._first_pid, number)
        if self._mode is SandboxMode.PROCESS:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handles[0], number)

    def notify(self, number: signal.Signals) -> None:
        """Signal the job's own program; one that is not prepared for the signal ends by it."""
        if self._mode is SandboxMode.PROCESS:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handles[0], number)
        elif self._first_pid is not None:
            signal_first(self._first_pid, number)

    def kill(self) -> None:
        """SIGKILL everything. The sandbox's first process takes all others with it."""
        self._killed = True
        if self._mode is SandboxMode.PROCESS and self._first_pid is not None:
            signal_members(self._first_pid, signal.SIGKILL)
        for handle in self._handles[1:] or self._handles:
            kill_pidfd(handle)

    def cpu_ms(self) -> int:
        """CPU time used so far."""
        used = self._cgroup.cpu_ms() if self._cgroup is not None else None
        if used is None and self._first_pid is not None:
            used = cpu_ms(self._first_pid)
        self._cpu_ms = max(self._cpu_ms, used or 0)
        return self._cpu_ms

    def memory_bytes(self) -> int:
        """The most its processes have kept of memory, or what they keep now where nobody counts that."""
        kept = self._cgroup.memory_bytes() if self._cgroup is not None else None
        if kept is None and self._first_pid is not None:
            kept = resident_bytes(self._first_pid)
        return kept or 0

    def collect(self) -> Outcome:
        """After `gone`: how it went; gives everything back."""
        assert self._pid is not None  # noqa: S101 - gone() returned, so start() has set it
        pid, self._pid = self._pid, None
        status = await_child(pid)
        used_ms, memory_bytes = self.cpu_ms(), self.memory_bytes()
        exit_code = self._exit_code(status, pid)
        oom_kills = self._cgroup.oom_kills() if self._cgroup is not None and exit_code != 0 else 0
        failed = ""
        if exit_code is None and not self._killed:
            failed = self.log.tail() or f"its first process left with status {status}"
            if (
                status == -signal.SIGKILL
            ):  # by the kernel that had no memory, or by somebody; it was not a job's yet
                self._trouble = NodeFailed(why=_KILLED_BEFORE)
        self.discard()
        return Outcome(exit_code, used_ms, memory_bytes, oom_kills, failed, self._trouble)

    def discard(self) -> None:
        """Give everything back; what was never counted out is killed."""
        if self._pid is not None:
            abandon(self._pid)
            self._pid = None
        self.log.close()
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()
        self._lent.close()

    def _spawn(self, status_end: int) -> int:
        if self._mode is SandboxMode.PROCESS:
            return self._nursery.start(unconfined(self._view), self.log.write_end)
        with compose(self._view, status_end) as launch:
            return self._nursery.start(launch, self.log.write_end)

    def _exit_code(self, status: int, pid: int) -> int | None:
        if self._mode is SandboxMode.PROCESS:
            return status if status >= 0 else _SIGNAL_BASE - status
        for line in self._said.splitlines():
            with suppress(ValueError):
                code = json.loads(line).get("exit-code")
                if code is not None:
                    return int(code)
        if pid == self._first_pid and status < 0:  # somebody else has killed it, and all others with it
            return _SIGNAL_BASE - status
        return _SIGNAL_BASE + signal.SIGKILL if self._killed else None

    def _status_readable(self, status: int) -> None:
        try:
            data = os.read(status, _STATUS_BYTES)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(status)
            os.close(status)
            self._one_less()
            return
        self._said += data
        if self._first_pid is None and b"\n" in self._said:
            self._found(int(json.loads(self._said.splitlines()[0])["child-pid"]))

    def _found(self, pid: int) -> None:
        self._first_pid = pid
        try:
            if pid != self._pid:
                with suppress(ProcessLookupError):
                    self._watch(os.pidfd_open(pid))
        except OSError as error:
            # What cannot be watched cannot be counted out.
            self._trouble = error
            self.kill()
        else:
            self._running(pid)

    def _watch(self, handle: int) -> None:
        self._handles.append(handle)
        self._outstanding += 1
        asyncio.get_running_loop().add_reader(handle, self._process_ended, handle)

    def _process_ended(self, handle: int) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        self._one_less()

    def _one_less(self) -> None:
        self._outstanding -= 1
        if not self._outstanding:
            self._ended.set()


def remove_cgroup(cgroup: RunCgroup) -> None:
    """Remove a run's groups, again a little later as long as a dying process holds them."""
    if cgroup.remove():
        return
    cgroup.kill()
    if not cgroup.remove():
        asyncio.get_running_loop().call_later(_REMOVE_AGAIN_S, remove_cgroup, cgroup)
