"""One run from its first preparation to its last record: a task per run, on the supervisor's one thread.

    starting ──► running ──► (stopping) ──► ended
        └──────────────────────────────────► ended (start_failed, node_failed, or stopped before it began)

Invariants: nothing is started before its `started` line is on disk; a run is `ended` only when its whole
process tree is gone and its final usage record and end are on disk; it has exactly one final record.
"""

import asyncio
import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import structlog

from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.errors import HubError
from kernel.traces import request_id
from scheduler.node.becoming import NOT_EXECUTABLE, NOT_FOUND
from scheduler.node.config import NodeConfig
from scheduler.node.errors import DeviceHeld, MissingHere
from scheduler.node.fitness import Fitness, is_nodes_own
from scheduler.node.inventory import Inventory
from scheduler.node.launched import Launched
from scheduler.node.launching import Launcher
from scheduler.node.meter import DeviceTotals, Meter, start_meter
from scheduler.node.processes import unkillable
from scheduler.node.protocol import EndReason, RunSpec, RunState, RunStatus
from scheduler.node.sensing import share_totals
from scheduler.node.spool import JournalFailed, Line, Spool, ended_line, started_line, usage_line
from scheduler.node.turnstile import Turnstile
from scheduler.node.workspace import leave_notice

if TYPE_CHECKING:
    from scheduler.node.recovery import Leftover

_SIGNAL_BASE: Final = 128
NEVER_MS: Final = 2**62
_LOOK_S: Final = 0.5

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every run of this supervisor shares."""

    config: NodeConfig
    boot_id: str
    spool: Spool
    launcher: Launcher
    changed: Callable[[], None]
    spool_failed: Callable[[OSError], None]
    inventory: Inventory
    fitness: Fitness
    turnstile: Turnstile = field(default_factory=Turnstile)


class Run:
    """One run. `live` is its task; `stop` and `tick` may be called at any time.

    Args:
        blockers: runs that still hold what this one needs; it starts when they have ended.
    """

    def __init__(
        self, spec: RunSpec, around: Surroundings, blockers: "tuple[Run | Leftover, ...]" = ()
    ) -> None:
        self.spec = spec
        self.ended = asyncio.Event()
        self.lease_until_ms = 0
        self.meter: Meter | None = None
        self._around = around
        self._blockers = blockers
        self._status = RunStatus(spec.run_id, spec.job_id, spec.attempt, spec.rank, RunState.STARTING)
        self._last_words: tuple[Line, RunStatus] | None = None
        self._settling = False
        self._launched: Launched | None = None
        self._stop_reason: EndReason | None = None
        self._stop_sentence = ""
        self._notice = ""
        self._kill_at_ms = NEVER_MS
        self._killed_at_ms: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._log = _log.bind(
            run=spec.run_id, job=spec.job_id, attempt=spec.attempt, rank=spec.rank,
            request_id=request_id(spec.traceparent),
        )  # fmt: skip

    @property
    def status(self) -> RunStatus:
        """As it is now."""
        if self._launched is None:
            return self._status
        log = self._launched.log
        if (log.bytes, log.truncated) == (self._status.log_bytes, self._status.log_truncated):
            return self._status
        return replace(self._status, log_bytes=log.bytes, log_truncated=log.truncated)

    @property
    def stopping(self) -> bool:
        """Whether it has been told to end."""
        return self._stop_reason is not None

    def begin(self) -> None:
        """Start the run's task."""
        self._task = asyncio.get_running_loop().create_task(self._live())
        self._task.add_done_callback(self._account_for)

    def stop(self, reason: EndReason, sentence: str, grace_ms: int) -> None:
        """SIGTERM now, SIGKILL of the whole tree after the grace; the first reason given stays."""
        if self._status.state is RunState.ENDED or self._stop_reason is not None:
            return
        self._stop_reason, self._stop_sentence = reason, sentence
        self._kill_at_ms = boottime_ms() + grace_ms
        if self._launched is None:
            if self._task is not None:
                self._task.cancel()
            return
        self._move(RunState.STOPPING)
        if grace_ms <= 0:
            self._kill()
        else:
            self._launched.send(signal.SIGTERM)

    def tick(self, now_ms: int) -> int:
        """Enforce what is due; the boot time at which to come again."""
        self._settle()
        if self._launched is None:
            return NEVER_MS
        self._look_for_excess(now_ms)
        limit_at_ms = self._limit_at_ms()
        if now_ms >= limit_at_ms:
            sentence = f"It ran longer than its limit of {self.spec.time_limit_ms} ms."
            self.stop(EndReason.TIMED_OUT, sentence, self.spec.grace_ms)
        if now_ms >= self._kill_at_ms:
            self._kill()
        watch_at_ms = self._launched.watch.due_ms(now_ms)
        if self._stop_reason is not None:
            return min(self._kill_at_ms, watch_at_ms)
        return min(limit_at_ms, watch_at_ms)

    @property
    def disk_bytes(self) -> int:
        """What its workspace is known to hold."""
        return self._launched.watch.bytes if self._launched is not None else 0

    def count_again(self) -> None:
        """Count its workspace at once, because the disk is nearly full."""
        if self._launched is not None:
            self._launched.watch.hurry()

    def notify(self, text: str) -> None:
        """Tell the job a sentence, once; a workspace that cannot take it goes without."""
        if self._launched is None or text == self._notice:
            return
        self._notice = text
        with suppress(OSError):
            leave_notice(self._launched.watch.directory, text)
        if self.spec.notice_signal and not self.stopping:
            self._launched.notify(signal.Signals(self.spec.notice_signal))

    @property
    def gone_by_ms(self) -> int:
        """The boot time by which it has been killed, unless it is renewed or we are no longer awake.

        A grace that ends before the lease is not counted: nobody relies on that end until he is told of it, and whoever
        was late for it by a second, because the disk was, would take all runs of the node along.
        """
        if self._killed_at_ms is not None:
            return NEVER_MS
        return self.lease_until_ms + self._around.config.limits.lease_grace_ms

    def lapse(self, now_ms: int) -> int:
        """Stop the run if nobody renewed its lease, and cut short the grace of one that is on its way out.

        Returns:
            The boot time at which to come again for it.
        """
        if now_ms < self.lease_until_ms:
            return self.lease_until_ms
        lease_grace_ms = self._around.config.limits.lease_grace_ms
        self.cut_short(self.lease_until_ms + lease_grace_ms)
        self.stop(
            EndReason.LEASE_LOST, "Its lease was not renewed in time.", min(self.spec.grace_ms, lease_grace_ms)
        )
        return NEVER_MS

    def cut_short(self, until_ms: int) -> None:
        """Let the grace of a run that is on its way out end then, if it would not end sooner."""
        if self.stopping and self._killed_at_ms is None:
            self._kill_at_ms = min(self._kill_at_ms, until_ms)

    def read_meter(self, now_ms: int) -> Meter | None:
        """Take a reading of time and CPU."""
        if self.meter is not None and self._launched is not None:
            launched = self._launched
            self.meter = self.meter.read(
                now_ms, launched.cpu_ms(), launched.memory_bytes(), self._totals(now_ms)
            )
        return self.meter

    def held(self, now_ms: int) -> str:
        """Why its devices cannot be used though it was killed long enough ago; empty while it may still end."""
        pid = self._status.pid
        if self._killed_at_ms is None or self._launched is None or pid is None or self.ended.is_set():
            return ""
        if now_ms - self._killed_at_ms < self._around.config.limits.unkillable_ms:
            return ""
        return f"Process {unkillable(pid)} cannot be ended"

    async def leaves(self) -> None:
        """Wait until it has ended. Raises DeviceHeld when it was killed and does not."""
        while not self.ended.is_set():
            if why := self.held(boottime_ms()):
                seconds = (boottime_ms() - (self._killed_at_ms or 0)) // 1000
                raise DeviceHeld(
                    why=why, run=f"run {self.spec.run_id} of job {self.spec.job_id}", seconds=seconds
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self.ended.wait()

    async def _live(self) -> None:
        try:
            for blocker in self._blockers:
                await blocker.leaves()
            await self._around.turnstile.passed()
            launched = await self._around.launcher.prepare(self.spec, self._log_full)
        except asyncio.CancelledError:
            self._end(self._stop_reason or EndReason.STOPPED, self._stop_sentence, None)
            return
        except DeviceHeld as held:
            self._end(EndReason.DEVICE_HELD, str(held), None)
            return
        except (HubError, OSError, MemoryError) as error:
            self._not_started(error)
            return
        try:
            await self._start(launched)
            await launched.gone()
        except asyncio.CancelledError:  # by `stop`, which does so only while nothing runs
            launched.discard()
            self._end(self._stop_reason or EndReason.STOPPED, self._stop_sentence, None)
            return
        except (HubError, OSError, MemoryError) as error:
            self._launched = None
            launched.discard()
            self._not_started(error)
            return
        await self._finish(launched)

    def _not_started(self, error: Exception) -> None:
        """It cannot be started, which is the job's fault or the node's."""
        if isinstance(error, JournalFailed):
            self._end(EndReason.JOURNAL_FULL, f"The node cannot write its journal: {error.strerror}.", None)
        elif is_nodes_own(error):
            why = str(error) or "No memory is left."
            if not isinstance(error, MissingHere):
                self._around.fitness.failed(why)
            self._end(EndReason.NODE_FAILED, why, None)
        else:
            self._end(EndReason.START_FAILED, str(error), None)

    def _account_for(self, task: asyncio.Task[None]) -> None:
        # A mistake of ours ends this run, loudly, and no other.
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        if error is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "a run failed", "exception": error})
        if self._launched is not None:
            self._launched.kill()
            self._launched.discard()
        if self._last_words is None and self._status.state is not RunState.ENDED:
            reason = self._stop_reason or EndReason.SUPERVISOR_LOST
            self._end(reason, self._stop_sentence or f"The supervisor failed: {error!r}", None)

    async def _start(self, launched: Launched) -> None:
        if not self._around.spool.replenish():
            raise JournalFailed(errno.ENOSPC, os.strerror(errno.ENOSPC))
        now_ms, wall_ms = boottime_ms(), unix_ms(utc_now())
        meter = self._new_meter(now_ms, wall_ms)
        await self._around.spool.soon(started_line(self._started(wall_ms, now_ms), meter))
        self.meter = meter
        await self._around.turnstile.passed()
        self._status = self._started(wall_ms, now_ms)
        try:
            launched.start(self._running)
        except BaseException:
            self._status = self._started(None, None)  # what never ran has no time that could be missing
            raise
        self._launched = launched

    def _started(self, wall_ms: int | None, boot_ms: int | None) -> RunStatus:
        return replace(self._status, started_unix_ms=wall_ms, started_boot_ms=boot_ms)

    def _running(self, pid: int) -> None:
        self._status = replace(self._status, pid=pid)
        self._around.fitness.started()
        self._log.info("run_started")
        if self._status.state is RunState.STARTING:
            self._move(RunState.RUNNING)

    async def _finish(self, launched: Launched) -> None:
        outcome = launched.collect()
        if self.meter is not None:
            now_ms = boottime_ms()
            self.meter = self.meter.read(now_ms, outcome.cpu_ms, outcome.memory_bytes, self._totals(now_ms))
        if self._stop_reason is not None:
            self._end(self._stop_reason, self._stop_sentence, outcome.exit_code)
        elif outcome.oom_kills:  # of the sandbox's first process, too, whose memory it is
            sentence = f"It needed more than its {self.spec.memory_mib} MiB of memory."
            self._end(EndReason.OOM, sentence, outcome.exit_code)
        elif outcome.trouble is not None:
            self._not_started(outcome.trouble)
        elif outcome.failed:
            self._launched = None  # from here on `stop` ends this task
            nodes_own = await self._around.fitness.examine() or self._device_problem()
            reason = EndReason.NODE_FAILED if nodes_own else EndReason.START_FAILED
            self._end(reason, f"The sandbox could not be built: {outcome.failed}", None)
        else:
            self._end(EndReason.EXITED, _describe(outcome.exit_code, self.spec.argv[0]), outcome.exit_code)

    def _end(self, reason: EndReason, sentence: str, exit_code: int | None) -> None:
        number = None
        if exit_code is not None and exit_code > _SIGNAL_BASE:
            number = exit_code - _SIGNAL_BASE
        ended = replace(
            self.status,
            state=RunState.ENDED,
            ended_unix_ms=unix_ms(utc_now()),
            ended_boot_ms=boottime_ms(),
            exit_code=exit_code,
            signal=number,
            end_reason=reason,
            reason=sentence,
        )
        meter = self.meter or self._new_meter(ended.ended_boot_ms or 0, ended.ended_unix_ms or 0)
        _, record = meter.cut(final=True)
        self.meter, self._launched = None, None
        self._last_words = (usage_line(record), ended)
        self._settle()

    def _settle(self) -> None:
        # The end exists for others only once it is on disk; a full disk is tried again with every tick.
        if self._last_words is None or self._settling:
            return
        usage, ended = self._last_words
        self._settling = True
        self._around.spool.soon(usage, ended_line(ended)).add_done_callback(self._settled)

    def _settled(self, written: asyncio.Future[None]) -> None:
        self._settling = False
        error = written.exception()
        if isinstance(error, OSError):
            self._around.spool_failed(error)
            return
        assert self._last_words is not None  # noqa: S101 - it stays until it is written
        _, ended = self._last_words
        self._last_words = None
        self._log.info("run_ended", end_reason=str(ended.end_reason), exit_code=ended.exit_code)
        self._status = ended
        self.ended.set()
        self._around.changed()

    def _device_problem(self) -> str:
        """Why one of its devices cannot be shown to it, else empty."""
        mine = {share.index for share in self.spec.devices}
        devices = self._around.inventory.health(boottime_ms())
        return next((device.reason for device in devices if device.index in mine and not device.healthy), "")

    def _new_meter(self, boot_ms: int, wall_ms: int) -> Meter:
        totals = self._totals(boot_ms)
        return start_meter(
            self.spec, boot_id=self._around.boot_id, boot_ms=boot_ms, unix_ms=wall_ms, totals=totals
        )

    def _totals(self, now_ms: int) -> DeviceTotals | None:
        return share_totals(self._around.inventory.sensed(now_ms), self.spec.devices)

    def _look_for_excess(self, now_ms: int) -> None:
        if self._launched is None or self._stop_reason is not None:
            return
        if excess := self._launched.excess(now_ms):
            reason, sentence = excess
            self.stop(reason, sentence, min(self.spec.grace_ms, self._around.config.limits.lease_grace_ms))

    def _limit_at_ms(self) -> int:
        if not self.spec.time_limit_ms or self._status.started_boot_ms is None:
            return NEVER_MS
        return self._status.started_boot_ms + self.spec.time_limit_ms

    def _kill(self) -> None:
        self._kill_at_ms = NEVER_MS
        if self._killed_at_ms is None:
            self._killed_at_ms = boottime_ms()
        if self._launched is not None:
            self._launched.kill()

    def _log_full(self, error: OSError) -> None:
        sentence = f"Its log could not be written: {error.strerror}."
        self.stop(EndReason.DISK_FULL, sentence, self.spec.grace_ms)

    def _move(self, state: RunState) -> None:
        self._status = replace(self._status, state=state)
        self._around.changed()


def _describe(exit_code: int | None, program: str) -> str:
    if exit_code == NOT_FOUND:
        return f"Status 127: most likely {program} is not in the sandbox."
    if exit_code == NOT_EXECUTABLE:
        return f"Status 126: most likely {program} is not executable."
    return ""
