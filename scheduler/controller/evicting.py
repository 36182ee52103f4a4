"""From planned evictions to intent: whom to stop for whom is committed before anybody is told to stop.

A victim is stopped like any other job, with its own grace; it is queued again when its death is known (`settling.py`).
Nobody is stopped for a job that could not be paid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from scheduler.controller.live_state import LiveState
from scheduler.controller.ports import Accounting, Admission
from scheduler.controller.settling import PREEMPTED
from scheduler.controller.watching import Step
from scheduler.policy.model import Eviction
from scheduler.tables import JobRow, RunRow

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Ordered:
    """The machines that must be synced so that victims stop, and for whom they stop."""

    nodes: frozenset[str]
    claims: tuple[Step, ...] = ()


def order_evictions(
    session: Session,
    evictions: Sequence[Eviction],
    live: LiveState,
    accounting: Accounting,
    at: datetime,
    *,
    unfunded_ms: int,
) -> Ordered:
    """Write down who is to stop for whom; the policy hears of it with the next look at the tables.

    Args:
        session: of the cycle's transaction, fenced.
        evictions: what the cycle planned.
        live: to shelve claimants whose funds are missing.
        accounting: who knows about funds.
        at: now.
        unfunded_ms: for how long such a claimant is shelved.

    """
    victims_of: dict[UUID, list[Eviction]] = {}
    for eviction in evictions:
        victims_of.setdefault(UUID(eviction.for_job_id), []).append(eviction)
    stopping: list[UUID] = []
    claims: list[Step] = []
    for claimant_id, ordered in sorted(victims_of.items()):
        model = live.policy.running[ordered[0].job_id].pool
        if not _could_pay(session, claimant_id, model, live, accounting, at):
            live.shelve(claimant_id, unix_ms(at), unfunded_ms)
            continue
        victims = [UUID(eviction.job_id) for eviction in ordered if _order(session, eviction)]
        if victims:
            stopping += victims
            claims.append(_claim(session, claimant_id, at))
    if not stopping:
        return Ordered(frozenset())
    session.flush()
    nodes = session.scalars(select(RunRow.node).where(RunRow.job_id.in_(stopping), RunRow.state != "ended"))
    return Ordered(frozenset(nodes), tuple(claims))


def _claim(session: Session, claimant_id: UUID, at: datetime) -> Step:
    job = session.get_one(JobRow, claimant_id)
    return Step("claimed", job.id, job.attempt + 1, job.traceparent, job.queued_at, at)


def _order(session: Session, eviction: Eviction) -> bool:
    job = session.scalars(select(JobRow).where(JobRow.id == UUID(eviction.job_id)).with_for_update()).one()
    if job.state not in {"starting", "running"} or job.stop_reason is not None:
        return False  # it ended or was stopped since the picture was taken
    job.state, job.stop_reason, job.evicted_for = "stopping", PREEMPTED, UUID(eviction.for_job_id)
    job.reason = f"being stopped for another job, which {eviction.reason}; it will be tried again"
    _log.info("eviction_ordered", job=eviction.job_id, claimant=eviction.for_job_id, reason=eviction.reason)
    return True


def _could_pay(
    session: Session, job_id: UUID, model: str, live: LiveState, accounting: Accounting, at: datetime
) -> bool:
    """Whether the claimant still waits and its funds would be found; what is set aside to see that is given back."""
    job = session.scalars(select(JobRow).where(JobRow.id == job_id).with_for_update()).one()
    if job.state != "queued" or job.stop_reason is not None or not live.is_as_seen(job):
        return False
    trial = session.begin_nested()
    job.attempt += 1
    slots = job.node_count * job.devices_per_node * job.slots_milli
    refused = accounting.admit(session, [Admission(job, {model: slots})], at).get(job_id)
    trial.rollback()
    session.refresh(job)
    if refused is not None:
        job.reason = refused
    return refused is None
