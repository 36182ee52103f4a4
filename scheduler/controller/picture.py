"""The tables' rows in the policy's words.

A node of the policy is all devices of one model in one machine: a machine with two models is two nodes of the policy,
named `machine/model`.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.changes import Loose
from kernel.clock import from_unix_ms, unix_ms
from kernel.prepared import Prepared
from scheduler.controller.settling import retry_pause_ms
from scheduler.fitting import network_of, stated_pflops_milli
from scheduler.node.protocol import UNAVAILABLE, Network
from scheduler.policy.model import DeviceSlice, DeviceState, Job, Node, Placement, Reservation, Topology
from scheduler.reservations import kept_devices
from scheduler.tables import DeviceRow, JobRow, NodeRow, RunRow

_DEVICES: Final = Prepared(
    select(
        DeviceRow.node,
        DeviceRow.index,
        DeviceRow.number,
        DeviceRow.model,
        DeviceRow.freed_at,
        DeviceRow.healthy,
        DeviceRow.cordoned,
    ).order_by(DeviceRow.node, DeviceRow.index)
)
_NODE: Final = Loose(
    NodeRow,
    *("name", "host_id", "state", "admits", "labels", "own_labels"),
    *("cpu_milli", "memory_mib", "isolation", "spanning"),
)
_NODES: Final = Prepared(select(*_NODE.columns))
_PLACEMENTS: Final = Prepared(
    select(RunRow.job_id, RunRow.node, RunRow.devices)
    .join(JobRow, (JobRow.id == RunRow.job_id) & (JobRow.attempt == RunRow.attempt))
    .where(among(JobRow.id, bindparam("jobs")))
    .order_by(RunRow.job_id, RunRow.rank)
)


@dataclass(frozen=True)
class Device:
    """What admission needs of a device: its centre-wide number, its model, and when it was last given back."""

    number: int
    model: str
    freed_at: datetime | None


def node_name(machine: str, model: str) -> str:
    """The policy's node of a machine's devices of one model."""
    return f"{machine}/{model}"


def machine_of(name: str) -> str:
    """The machine of one of the policy's nodes."""
    return name.rpartition("/")[0]


def job_of(row: JobRow) -> Job:
    """A job in the policy's words but for how long it waits; every tenant has a queue of its own: they share fairly."""
    return Job(
        id=str(row.id),
        queue=str(row.tenant_id),
        tenant=str(row.tenant_id),
        user=str(row.submitted_by),
        name=row.name,
        submitted_ms=unix_ms(row.queued_at),
        time_limit_ms=row.time_limit_ms,
        models=tuple(row.models),
        min_pflops_milli=row.min_pflops_milli,
        nodes=row.node_count,
        devices_per_node=row.devices_per_node,
        slots_milli=row.slots_milli,
        cpu_milli=row.cpu_milli,
        memory_mib=row.memory_mib,
        priority=row.priority,
        preemptible=row.preemptible,
        topology=Topology(row.topology),
        talks=row.node_count > 1 and row.network == Network.JOB,
        depends_on=tuple(str(needed) for needed in row.depends_on),
        array_id="" if row.array_id is None else str(row.array_id),
        array_running_max=row.array_running_max,
        attempt=row.attempt + 1,
        attained_ms=row.attained_ms,
    )


def seen_now(row: JobRow, now_ms: int) -> Job:
    """The same with its times, which a clock that was set back may have left in the future: it came now at the latest.

    A retry waits for its pause from now at the most.
    """
    not_before_ms = 0 if row.not_before is None else unix_ms(row.not_before)
    if row.retry_at is not None:
        retry_ms = min(unix_ms(row.retry_at), now_ms + retry_pause_ms(row.attempt))
        not_before_ms = max(not_before_ms, retry_ms)
    job = job_of(row)
    return replace(job, submitted_ms=min(job.submitted_ms, now_ms), not_before_ms=not_before_ms)


@dataclass(frozen=True)
class Centre:
    """What there is: devices by machine and index, the policy's nodes, and what of them is kept for whom."""

    devices: dict[tuple[str, int], Device]
    nodes: tuple[Node, ...]
    reservations: tuple[Reservation, ...]


def centre_of(session: Session, answering: AbstractSet[str], now_ms: int) -> Centre:
    """The centre as the tables have it. Only nodes that answer and that their operator left open take new jobs."""
    rows = _DEVICES(session)
    devices = {(node, index): Device(number, model, freed) for node, index, number, model, freed, _, _ in rows}
    kept = kept_devices(
        session, from_unix_ms(now_ms), {at: node_name(at[0], device.model) for at, device in devices.items()}
    )
    grouped: dict[tuple[str, str], list[DeviceState]] = {}
    for node, index, _, model, _, healthy, cordoned in rows:
        usable = healthy and not cordoned and (node, index) not in kept.withheld
        grouped.setdefault((node, model), []).append(DeviceState(index, usable))
    machines = {row.name: row for row in _NODE.rows(_NODES(session))}
    nodes = tuple(
        Node(
            name=node_name(machine, model),
            model=model,
            devices=tuple(of_model),
            cpu_milli=machines[machine].cpu_milli,
            memory_mib=machines[machine].memory_mib,
            pflops_milli=stated_pflops_milli(machines[machine].known_labels),
            topology=_topology(machines[machine].known_labels),
            network=network_of(machines[machine].host_id, machines[machine].spanning),
            schedulable=_takes_jobs(machines[machine]) and machine in answering,
        )
        for (machine, model), of_model in sorted(grouped.items())
    )
    return Centre(devices, nodes, kept.reservations)


def _topology(labels: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(labels[key]) for key in ("zone", "switch") if key in labels)


def _takes_jobs(node: NodeRow) -> bool:
    """A node on which no sandbox can be built would fail job after job, and always be free for the next."""
    works = node.isolation.get("level") != UNAVAILABLE
    return works and node.state == "up" and node.admits == "open"


def placements_of(
    session: Session, job_ids: Sequence[UUID], devices: Mapping[tuple[str, int], Device]
) -> dict[UUID, tuple[Placement, ...]]:
    """What the latest attempts of these jobs hold."""
    found: dict[UUID, list[Placement]] = {job_id: [] for job_id in job_ids}
    if not job_ids:
        return {}
    for job_id, machine, pieces in _PLACEMENTS(session, jobs=list(job_ids)):
        slices = tuple(DeviceSlice(*piece) for piece in pieces)
        name = node_name(machine, devices[machine, slices[0].device].model)
        found[job_id].append(Placement(name, slices))
    return {job_id: tuple(placements) for job_id, placements in found.items()}
