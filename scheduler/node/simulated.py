"""A node whose programs are only counted: it obeys syncs, keeps leases and time and meters like a supervisor.

For replaying months in minutes: a run's whole program is `replay MILLISECONDS`, and it ends exactly so long after it
began. There is no sandbox, no process and no journal on disk, so a node that is lost has forgotten everything.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from scheduler.node.errors import StaleEpoch
from scheduler.node.meter import Meter, start_meter
from scheduler.node.protocol import (
    DeviceStatus,
    EndReason,
    Isolation,
    Report,
    RunSpec,
    RunState,
    RunStatus,
    SyncRequest,
    UsageRecord,
)
from scheduler.node.reconcile import Alive, plan_sync

PROGRAM: Final = "replay"
"""The one program a simulated node knows; its argument says how many milliseconds it takes."""

_RUNS_MAX: Final = 512
_SIGTERM_STATUS: Final = 143
_ISOLATION: Final = Isolation("none", ("Programs are only counted here; none is started.",))


@dataclass(frozen=True, slots=True)
class SimulatedMachine:
    """What a simulated node says of itself."""

    node: str
    host_id: str
    model: str
    vendor: str
    devices: int
    cpu_milli: int
    memory_mib: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that is over, with the span in which it had its devices."""

    spec: RunSpec
    started_boot_ms: int
    ended_boot_ms: int
    reason: EndReason


@dataclass(slots=True)
class _Counted:
    spec: RunSpec
    started_unix_ms: int
    meter: Meter
    ends_boot_ms: int
    reason: EndReason
    lease_until_ms: int

    @property
    def started_boot_ms(self) -> int:
        return self.meter.started_boot_ms

    def next_ms(self) -> int:
        """When something will happen to it by itself."""
        return min(self.ends_boot_ms, self.lease_until_ms)


class SimulatedNode:
    """The supervisor's contract (`sync`) without programs; every method is told the time.

    Args:
        machine: what it is.
        boot_id: of the host, whose clock the times are of.
        instance: a name of this start.
        began_ms: now.
        meter_interval_ms: how often a running program's usage is cut into a record.
    """

    def __init__(
        self, machine: SimulatedMachine, boot_id: str, instance: str, began_ms: int, meter_interval_ms: int
    ) -> None:
        self._machine = machine
        self._boot_id = boot_id
        self._instance = instance
        self._began_ms = began_ms
        self._interval_ms = meter_interval_ms
        self._cut_at_ms = began_ms + meter_interval_ms
        self._runs: dict[str, _Counted] = {}
        self._ended: dict[str, RunStatus] = {}
        self._usage: dict[str, UsageRecord] = {}
        self._known: set[str] = set()
        self._epoch = 0
        self._number = 0
        self._seq = 0

    def sync(self, request: SyncRequest, now_ms: int, unix_ms: int) -> tuple[Report, list[Ended]]:
        """Obey and report; also what ended by it. Raises StaleEpoch."""
        if request.epoch < self._epoch:
            raise StaleEpoch(epoch=request.epoch, seen=self._epoch)
        if request.epoch > self._epoch:
            self._epoch, self._number = request.epoch, 0
        for record_id in request.acknowledged_usage:
            self._usage.pop(record_id, None)
        for run_id in request.acknowledged_exits:
            self._ended.pop(run_id, None)
        if not request.is_for(self._instance, self._began_ms, now_ms) or request.number < self._number:
            return self._report(now_ms), []
        as_of_ms = now_ms if request.as_of_boot_ms is None else request.as_of_boot_ms
        lease_until_ms = as_of_ms + request.lease_ms
        self._number = request.number
        alive = {run_id: Alive(run.spec, stopping=False) for run_id, run in self._runs.items()}
        ended = self._ended.keys()
        plan = plan_sync(request.desired, alive, self._known, ended, _RUNS_MAX, request.going_on)
        stopped = [self._end(run_id, now_ms, unix_ms, EndReason.STOPPED) for run_id in plan.stop]
        for run_id in plan.renew:
            self._runs[run_id].lease_until_ms = lease_until_ms
        for start in plan.start:
            self._start(start.spec, now_ms, unix_ms, lease_until_ms)
        return replace(self._report(now_ms), refused=plan.refuse), stopped

    def advance(self, now_ms: int, unix_ms: int) -> list[Ended]:
        """End what has come to its end and cut what is due; returns what ended, in order."""
        due = sorted((run.next_ms(), run_id) for run_id, run in self._runs.items() if run.next_ms() <= now_ms)
        ended = []
        for at_ms, run_id in due:
            run = self._runs[run_id]
            reason = run.reason if run.ends_boot_ms <= run.lease_until_ms else EndReason.LEASE_LOST
            ended.append(self._end(run_id, at_ms, unix_ms - (now_ms - at_ms), reason))
        if now_ms >= self._cut_at_ms:
            for run in self._runs.values():
                run.meter, record = _read(run, now_ms).cut(final=False)
                self._usage[record.id] = record
            self._cut_at_ms = now_ms + self._interval_ms
            self._seq += bool(self._runs)
        return ended

    def next_ms(self) -> int | None:
        """When `advance` has something to do; None while nothing runs."""
        return min((run.next_ms() for run in self._runs.values()), default=None)

    @property
    def seq(self) -> int:
        """Grows with every change that the controller should hear of."""
        return self._seq

    def _start(self, spec: RunSpec, now_ms: int, unix_ms: int, lease_until_ms: int) -> None:
        meter = start_meter(spec, boot_id=self._boot_id, boot_ms=now_ms, unix_ms=unix_ms)
        takes_ms = _takes_ms(spec)
        self._known.add(spec.run_id)
        if takes_ms is None:
            _, record = meter.cut(final=True)
            self._usage[record.id] = record
            told = f"A simulated node runs only `{PROGRAM} MILLISECONDS`."
            self._ended[spec.run_id] = replace(
                _status(spec), state=RunState.ENDED, end_reason=EndReason.START_FAILED, reason=told
            )
            return
        timed_out = 0 < spec.time_limit_ms < takes_ms
        self._runs[spec.run_id] = _Counted(
            spec=spec,
            started_unix_ms=unix_ms,
            meter=meter,
            ends_boot_ms=now_ms + (spec.time_limit_ms if timed_out else takes_ms),
            reason=EndReason.TIMED_OUT if timed_out else EndReason.EXITED,
            lease_until_ms=lease_until_ms,
        )

    def _end(self, run_id: str, at_ms: int, unix_ms: int, reason: EndReason) -> Ended:
        run = self._runs.pop(run_id)
        _, record = _read(run, at_ms).cut(final=True)
        self._usage[record.id] = record
        self._ended[run_id] = replace(
            _status(run.spec),
            state=RunState.ENDED,
            started_unix_ms=run.started_unix_ms,
            started_boot_ms=run.started_boot_ms,
            ended_unix_ms=unix_ms,
            ended_boot_ms=at_ms,
            exit_code=0 if reason is EndReason.EXITED else _SIGTERM_STATUS,
            end_reason=reason,
        )
        self._seq += 1
        return Ended(run.spec, run.started_boot_ms, at_ms, reason)

    def _report(self, now_ms: int) -> Report:
        machine = self._machine
        running = (
            replace(_status(run.spec), started_unix_ms=run.started_unix_ms, started_boot_ms=run.started_boot_ms)
            for run in self._runs.values()
        )
        return Report(
            node=machine.node,
            host_id=machine.host_id,
            boot_id=self._boot_id,
            boot_ms=now_ms,
            epoch_seen=self._epoch,
            instance=self._instance,
            seq=self._seq,
            runs=(*running, *self._ended.values()),
            usage=tuple(self._usage.values()),
            usage_pending=0,
            refused=(),
            devices=tuple(
                DeviceStatus(index, machine.model, machine.vendor, healthy=True)
                for index in range(machine.devices)
            ),
            isolation=_ISOLATION,
            labels=dict(machine.labels),
            cpu_milli=machine.cpu_milli,
            memory_mib=machine.memory_mib,
        )


def _status(spec: RunSpec) -> RunStatus:
    return RunStatus(spec.run_id, spec.job_id, spec.attempt, spec.rank, RunState.RUNNING)


def _takes_ms(spec: RunSpec) -> int | None:
    match spec.argv:
        case (program, number) if program == PROGRAM and number.isdecimal():
            return int(number)
        case _:
            return None


def _read(run: _Counted, at_ms: int) -> Meter:
    """A program that is only counted keeps all its cards busy."""
    cards_ms = (at_ms - run.started_boot_ms) * sum(share.slot_hi - share.slot_lo for share in run.spec.devices)
    return run.meter.read(at_ms, cards_ms // 1000)
