"""The policy's picture of the live cluster, kept in step with the database.

The database is the truth. Whatever changed since the last look is read in two narrow queries and fed to the policy as
events; a controller that has just become leader starts from an empty picture and so replays everything.
"""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from scheduler.policy.model import DeviceSlice, DeviceState, Job, Node, Placement, Queue, Start
from scheduler.policy.settings import PolicySettings
from scheduler.policy.state import SchedulerState
from scheduler.tables import DeviceRow, JobRow, NodeRow, RunRow


class LiveState:
    """Owns a SchedulerState and the knowledge of what it already contains."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._shape: tuple[object, ...] | None = None
        self._queued: dict[UUID, int] = {}
        self._running: dict[UUID, int] = {}
        self._shelved: dict[UUID, int] = {}
        self.policy = SchedulerState((), settings)

    def shelve(self, job_id: UUID, until_ms: int) -> None:
        """Keep a waiting job out of the picture for a while, so that it blocks nobody."""
        self._shelved[job_id] = until_ms

    def refresh(self, session: Session, now_ms: int) -> None:
        """Bring the picture up to the database. A change of nodes or tenants begins a new picture."""
        live = session.execute(
            select(JobRow.id, JobRow.state, JobRow.attempt, JobRow.tenant_id, JobRow.stop_reason)
            .where(JobRow.ended_at.is_(None))
            .order_by(JobRow.id)
        ).all()
        nodes = _nodes(session)
        # Queues are never taken away within a picture, so a tenant whose last job ended costs no rebuild.
        tenants = {str(row.tenant_id) for row in live}
        known = set(self._shape[1]) if self._shape is not None else set()  # type: ignore[call-overload]
        if self._shape is None or self._shape[0] != nodes or not tenants <= known:
            self._begin(nodes, sorted(tenants | known))
        # A cancelled job that still waits must not be placed, a running one keeps its slices until it is dead.
        self._shelved = {job_id: until for job_id, until in self._shelved.items() if until > now_ms}
        queued = {
            row.id: row.attempt
            for row in live
            if row.state == "queued" and row.stop_reason is None and row.id not in self._shelved
        }
        running = {row.id: row.attempt for row in live if row.state != "queued"}
        self._forget(queued, running, now_ms)
        self._learn(session, queued, running, now_ms)

    def _begin(self, nodes: tuple[Node, ...], tenants: list[str]) -> None:
        self.policy = SchedulerState((Queue(tenant) for tenant in tenants), self._settings)
        for node in nodes:
            self.policy.node_joined(node)
        self._shape = (nodes, tuple(tenants))
        self._queued, self._running = {}, {}

    def _forget(self, queued: dict[UUID, int], running: dict[UUID, int], now_ms: int) -> None:
        for job_id in [known for known, attempt in self._queued.items() if queued.get(known) != attempt]:
            self.policy.job_withdrawn(str(job_id))
            del self._queued[job_id]
        for job_id in [known for known, attempt in self._running.items() if running.get(known) != attempt]:
            self.policy.allocation_ended(str(job_id), now_ms, succeeded=False)
            del self._running[job_id]

    def _learn(self, session: Session, queued: dict[UUID, int], running: dict[UUID, int], now_ms: int) -> None:
        new = [
            job_id
            for job_id in (*queued, *running)
            if job_id not in self._queued and job_id not in self._running
        ]
        if not new:
            return
        rows = session.scalars(select(JobRow).where(JobRow.id.in_(new)).order_by(JobRow.id)).all()
        placements = _placements(session, [row.id for row in rows if row.id in running])
        for row in rows:
            self.policy.job_queued(policy_job(row), now_ms)
            if row.id in queued:
                self._queued[row.id] = row.attempt
            else:
                began = unix_ms(row.placed_at) if row.placed_at is not None else now_ms
                self.policy.allocation_started(Start(str(row.id), placements[row.id]), began)
                self._running[row.id] = row.attempt


def policy_job(row: JobRow) -> Job:
    """A job in the policy's words; every tenant has a queue of its own, so tenants share fairly."""
    return Job(
        id=str(row.id),
        queue=str(row.tenant_id),
        tenant=str(row.tenant_id),
        user=str(row.submitted_by),
        name=row.name,
        submitted_ms=unix_ms(row.queued_at),
        time_limit_ms=row.time_limit_ms,
        models=tuple(row.models),
        nodes=row.node_count,
        devices_per_node=row.devices_per_node,
        slots_milli=row.slots_milli,
        cpu_milli=row.cpu_milli,
        memory_mib=row.memory_mib,
        priority=row.priority,
        attempt=row.attempt + 1,
    )


def _nodes(session: Session) -> tuple[Node, ...]:
    devices: dict[str, list[DeviceRow]] = {}
    for device in session.scalars(select(DeviceRow).order_by(DeviceRow.node, DeviceRow.index)):
        devices.setdefault(device.node, []).append(device)
    return tuple(
        Node(
            name=row.name,
            model=model,
            devices=tuple(DeviceState(device.index, device.healthy) for device in of_model),
            cpu_milli=row.cpu_milli,
            memory_mib=row.memory_mib,
            topology=tuple(str(row.labels[key]) for key in ("zone", "switch") if key in row.labels),
            schedulable=row.state == "up",
        )
        for row in session.scalars(select(NodeRow).order_by(NodeRow.name))
        for model, of_model in _by_model(devices.get(row.name, ()))
    )


def _by_model(devices: Iterable[DeviceRow]) -> list[tuple[str, list[DeviceRow]]]:
    models: dict[str, list[DeviceRow]] = {}
    for device in devices:
        models.setdefault(device.model, []).append(device)
    return sorted(models.items())


def _placements(session: Session, job_ids: list[UUID]) -> dict[UUID, tuple[Placement, ...]]:
    found: dict[UUID, list[Placement]] = {job_id: [] for job_id in job_ids}
    query = select(RunRow).join(JobRow, (JobRow.id == RunRow.job_id) & (JobRow.attempt == RunRow.attempt))
    for run in session.scalars(query.where(JobRow.id.in_(job_ids)).order_by(RunRow.job_id, RunRow.rank)):
        slices = tuple(DeviceSlice(*device) for device in run.devices)
        found[run.job_id].append(Placement(run.node, slices))
    return {job_id: tuple(placements) for job_id, placements in found.items()}
