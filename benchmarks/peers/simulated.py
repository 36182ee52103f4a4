"""Nodes without machines: they obey syncs and report like supervisors, but what they run is only a deadline.

A run lasts `run_ms` from the sync that asked for it and succeeds; its usage is metered by the supervisor's own meter.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kernel.clock import boottime_ms, unix_ms, utc_now
from scheduler.controller.wakeups import Wakeups
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

_BOOT: Final = "simulated"
_CPU_MILLI: Final = 64_000
_MEMORY_MIB: Final = 524_288
_LOOK_S: Final = 0.02


@dataclass
class _Run:
    spec: RunSpec
    status: RunStatus
    meter: Meter


@dataclass
class _Node:
    name: str
    devices: tuple[DeviceStatus, ...]
    epoch: int = 0
    seq: int = 0
    runs: dict[str, _Run] = field(default_factory=dict)
    ended: dict[str, RunStatus] = field(default_factory=dict)
    usage: dict[str, UsageRecord] = field(default_factory=dict)

    def sync(self, request: SyncRequest, run_ms: int) -> Report:
        """Start, stop, forget and report, as `scheduler.node.fleet` does."""
        self.epoch = request.epoch
        for record_id in request.acknowledged_usage:
            self.usage.pop(record_id, None)
        for run_id in request.acknowledged_exits:
            self.ended.pop(run_id, None)
        wanted = {spec.run_id for spec in request.desired}
        self.end_due(run_ms)
        for run_id in self.runs.keys() - wanted:
            self._end(run_id, EndReason.STOPPED, 143)
        for spec in request.desired:
            if spec.run_id not in self.runs and spec.run_id not in self.ended:
                self._begin(spec)
        return self._report()

    def end_due(self, run_ms: int) -> bool:
        """End what has run for its time; whether there was any."""
        now_ms = boottime_ms()
        due = [run_id for run_id, run in self.runs.items() if now_ms >= run.meter.started_boot_ms + run_ms]
        for run_id in due:
            self._end(run_id, EndReason.EXITED, 0)
        return bool(due)

    def _begin(self, spec: RunSpec) -> None:
        wall_ms, boot_ms = unix_ms(utc_now()), boottime_ms()
        status = RunStatus(
            spec.run_id, spec.job_id, spec.attempt, spec.rank, RunState.RUNNING, started_unix_ms=wall_ms
        )
        meter = start_meter(spec, boot_id=_BOOT, boot_ms=boot_ms, unix_ms=wall_ms)
        self.runs[spec.run_id] = _Run(spec, status, meter)
        self.seq += 1

    def _end(self, run_id: str, reason: EndReason, code: int) -> None:
        run = self.runs.pop(run_id)
        _, record = run.meter.read(boottime_ms(), 0).cut(final=True)
        self.usage[record.id] = record
        self.ended[run_id] = RunStatus(
            run_id,
            run.spec.job_id,
            run.spec.attempt,
            run.spec.rank,
            RunState.ENDED,
            started_unix_ms=run.status.started_unix_ms,
            ended_unix_ms=unix_ms(utc_now()),
            exit_code=code,
            end_reason=reason,
        )
        self.seq += 1

    def _report(self) -> Report:
        return Report(
            node=self.name,
            host_id=self.name,
            boot_id=_BOOT,
            boot_ms=boottime_ms(),
            epoch_seen=self.epoch,
            instance=_BOOT,
            seq=self.seq,
            runs=(*(run.status for run in self.runs.values()), *self.ended.values()),
            usage=tuple(self.usage.values()),
            usage_pending=0,
            refused=(),
            devices=self.devices,
            isolation=Isolation("simulated"),
            labels={},
            cpu_milli=_CPU_MILLI,
            memory_mib=_MEMORY_MIB,
        )


class SimulatedNodes:
    """Implements `scheduler.controller.ports.Machines` in memory.

    Args:
        count: of nodes.
        devices: of each node.
        model: of every device.
        run_ms: how long a run lasts.
        wakeups: is told of nodes where runs have ended.
    """

    def __init__(self, count: int, devices: int, model: str, run_ms: int, wakeups: Wakeups) -> None:
        cards = tuple(DeviceStatus(index, model, "simulated", healthy=True) for index in range(devices))
        names = [f"sim-{number:04d}" for number in range(count)]
        self._nodes = {name: _Node(name, cards) for name in names}
        self._run_ms = run_ms
        self._wakeups = wakeups
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="simulated", daemon=True)
        self._watcher.start()

    def reachable(self) -> Sequence[str]:
        """All of them."""
        return sorted(self._nodes)

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """One round trip to each; nobody is ever silent."""
        with self._turn:
            return {name: self._nodes[name].sync(request, self._run_ms) for name, request in requests.items()}

    def close(self) -> None:
        """End the thread that ends runs."""
        self._closing.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._closing.wait(_LOOK_S):
            with self._turn:
                moved = [node.name for node in self._nodes.values() if node.end_due(self._run_ms)]
            for name in moved:
                self._wakeups.put(name)
