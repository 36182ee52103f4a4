"""The meter of one run: pure arithmetic that cuts a stretch of CLOCK_BOOTTIME into usage records.

Invariant: records of a run are numbered k = 0, 1, 2 … without gap up to the one marked final; their stretches
follow each other without gap or overlap, so that their durations add up to the run's metered time exactly.
"""

from dataclasses import dataclass, replace

from kernel.ids import derived_id
from scheduler.node.protocol import DeviceShare, RunSpec, UsageRecord


@dataclass(frozen=True, slots=True)
class DeviceTotals:
    """What sensors have counted of a run's share of its devices: busy card milliseconds, and millijoules or None.

    `memory_bytes` is what its share of their own memory holds just now, or None.
    """

    busy_ms: int
    energy_mj: int | None
    memory_bytes: int | None = None

    def since(self, earlier: "DeviceTotals") -> "DeviceTotals":
        """What was counted after that; never below zero, though a driver that is loaded anew counts from zero."""
        energy_mj = None
        if self.energy_mj is not None and earlier.energy_mj is not None:
            energy_mj = max(0, self.energy_mj - earlier.energy_mj)
        return DeviceTotals(max(0, self.busy_ms - earlier.busy_ms), energy_mj, self.memory_bytes)


@dataclass(frozen=True, slots=True)
class Meter:
    """What has been metered, and what of it has been cut into records.

    `until_boot_ms`, `cpu_ms` and `totals` are the last confirmed reading; `cut_boot_ms`, `cut_cpu_ms` and `cut_totals`
    are where the next record begins, `next_k` its number; `memory_bytes_max` is the most that was seen, and
    `device_memory_bytes_max` that of its devices' own memory.
    """

    run_id: str
    job_id: str
    tenant_id: str
    attempt: int
    rank: int
    devices: tuple[DeviceShare, ...]
    boot_id: str
    started_unix_ms: int
    started_boot_ms: int
    until_boot_ms: int
    cut_boot_ms: int
    cpu_ms: int = 0
    cut_cpu_ms: int = 0
    next_k: int = 0
    memory_bytes_max: int = 0
    device_memory_bytes_max: int | None = None
    totals: DeviceTotals | None = None
    cut_totals: DeviceTotals | None = None

    def read(
        self, boot_ms: int, cpu_ms: int, memory_bytes: int = 0, totals: DeviceTotals | None = None
    ) -> "Meter":
        """A later reading; neither time nor CPU time ever goes back. Devices that fall silent keep what they said."""
        return replace(
            self,
            until_boot_ms=max(self.until_boot_ms, boot_ms),
            cpu_ms=max(self.cpu_ms, cpu_ms),
            memory_bytes_max=max(self.memory_bytes_max, memory_bytes),
            device_memory_bytes_max=_more(
                self.device_memory_bytes_max, None if totals is None else totals.memory_bytes
            ),
            totals=totals or self.totals,
            cut_totals=self.cut_totals or totals,
        )

    def cut(self, *, final: bool) -> "tuple[Meter, UsageRecord]":
        """The record of what was read since the last cut, and the meter that begins after it."""
        duration_ms = self.until_boot_ms - self.cut_boot_ms
        since = None if self.totals is None or self.cut_totals is None else self.totals.since(self.cut_totals)
        record = UsageRecord(
            id=str(derived_id("usage", self.job_id, self.attempt, self.rank, self.next_k)),
            run_id=self.run_id,
            job_id=self.job_id,
            tenant_id=self.tenant_id,
            attempt=self.attempt,
            rank=self.rank,
            k=self.next_k,
            boot_id=self.boot_id,
            offset_ms=self.cut_boot_ms - self.started_boot_ms,
            duration_ms=duration_ms,
            started_unix_ms=self.started_unix_ms,
            devices=self.devices,
            slot_ms=duration_ms * sum(share.slot_hi - share.slot_lo for share in self.devices),
            cpu_ms=self.cpu_ms - self.cut_cpu_ms,
            final=final,
            memory_bytes_max=self.memory_bytes_max,
            device_busy_ms=None if since is None else since.busy_ms,
            energy_mj=None if since is None else since.energy_mj,
            device_memory_bytes_max=self.device_memory_bytes_max,
        )
        after = replace(
            self,
            cut_boot_ms=self.until_boot_ms,
            cut_cpu_ms=self.cpu_ms,
            next_k=self.next_k + 1,
            cut_totals=self.totals,
        )
        return after, record


def _more(one: int | None, other: int | None) -> int | None:
    """The greater of what is known."""
    return max((value for value in (one, other) if value is not None), default=None)


def start_meter(
    spec: RunSpec, *, boot_id: str, boot_ms: int, unix_ms: int, totals: DeviceTotals | None = None
) -> Meter:
    """The meter of a run that starts now; `totals` is what sensors have counted of its devices before."""
    return Meter(
        run_id=spec.run_id,
        job_id=spec.job_id,
        tenant_id=spec.tenant_id,
        attempt=spec.attempt,
        rank=spec.rank,
        devices=spec.devices,
        boot_id=boot_id,
        started_unix_ms=unix_ms,
        started_boot_ms=boot_ms,
        until_boot_ms=boot_ms,
        cut_boot_ms=boot_ms,
        totals=totals,
        cut_totals=totals,
    )
