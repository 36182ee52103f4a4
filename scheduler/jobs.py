"""Submitting, finding and cancelling jobs.

A job is accepted only if the centre, when empty, could run it. Everything that happens to it afterwards is the
controller's doing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from scheduler.policy.model import WHOLE_MILLI
from scheduler.refusals import (
    FractionOfGang,
    JobAlreadyEnded,
    JobNotFound,
    TooManyDevicesPerNode,
    TooManyNodes,
    UnknownAccelerator,
    UnknownEnvironment,
)
from scheduler.tables import DeviceRow, JobRow, NodeRow, RunRow

WAKE_CHANNEL: Final = "hub_scheduler"
"""PostgreSQL notification channel that wakes the controller."""

ENDED_STATES: Final = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What an enterprise asks for. Counts are whole devices unless `slots_milli` is below 1000."""

    name: str
    argv: Sequence[str]
    models: Sequence[str]
    environment: str
    node_count: int = 1
    devices_per_node: int = 1
    slots_milli: int = 1000
    cpu_milli: int = 1000
    memory_mib: int = 1024
    time_limit_ms: int
    grace_ms: int = 10_000
    priority: int = 0
    max_retries: int = 0
    network: str = "none"
    upload_sha256: str | None = None
    env: dict[str, str] = field(default_factory=dict)


def submit_job(
    session: Session,
    job_id: UUID,
    request: JobRequest,
    *,
    tenant_id: UUID,
    submitted_by: UUID,
    environments: Sequence[str],
    at: datetime,
) -> JobRow:
    """Queue a job and wake the controller when the transaction commits.

    Raises:
        UnknownAccelerator, TooManyDevicesPerNode, TooManyNodes, FractionOfGang, UnknownEnvironment.
    """
    if request.environment not in environments:
        raise UnknownEnvironment(
            field="environment",
            environment=request.environment,
            known=", ".join(sorted(environments)) or "none",
        )
    _refuse_what_never_fits(session, request)
    job = JobRow(
        id=job_id,
        tenant_id=tenant_id,
        submitted_by=submitted_by,
        name=request.name,
        state="queued",
        reason="waiting for the next scheduling cycle",
        kind="batch" if request.node_count == 1 else "distributed",
        argv=list(request.argv),
        env=dict(request.env),
        environment=request.environment,
        upload_sha256=request.upload_sha256,
        models=list(request.models),
        node_count=request.node_count,
        devices_per_node=request.devices_per_node,
        slots_milli=request.slots_milli,
        cpu_milli=request.cpu_milli,
        memory_mib=request.memory_mib,
        time_limit_ms=request.time_limit_ms,
        grace_ms=request.grace_ms,
        priority=request.priority,
        max_retries=request.max_retries,
        network=request.network,
        queued_at=at,
        attempt=0,
    )
    session.add(job)
    session.flush()
    wake_controller(session)
    return job


def cancel_job(session: Session, job_id: UUID, *, tenant_id: UUID | None) -> JobRow:
    """Ask for a job's end: a queued one ends at the controller's next look, a running one is stopped.

    Args:
        session: of the caller's transaction.
        job_id: of the job.
        tenant_id: whose job it must be; None for an operator.

    Raises:
        JobNotFound, JobAlreadyEnded.
    """
    job = find_job(session, job_id, tenant_id=tenant_id, for_update=True)
    if job.ended_at is not None:
        raise JobAlreadyEnded(job_id=job_id, state=job.state)
    if job.stop_reason in {None, "rank_failed"}:
        job.stop_reason = "cancelled"  # over a failed rank, so that a lost attempt is not tried again
    wake_controller(session)
    return job


def find_job(session: Session, job_id: UUID, *, tenant_id: UUID | None, for_update: bool = False) -> JobRow:
    """One job; another tenant's is as if it did not exist. Raises JobNotFound."""
    query = select(JobRow).where(JobRow.id == job_id)
    if tenant_id is not None:
        query = query.where(JobRow.tenant_id == tenant_id)
    job = session.scalars(query.with_for_update() if for_update else query).one_or_none()
    if job is None:
        raise JobNotFound(job_id=job_id)
    return job


def list_jobs(session: Session, *, tenant_id: UUID | None, before: UUID | None, limit: int) -> Sequence[JobRow]:
    """Jobs, newest first, at most `limit`, older than the job `before`; of one tenant or of all."""
    query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
    if tenant_id is not None:
        query = query.where(JobRow.tenant_id == tenant_id)
    if before is not None:
        query = query.where(JobRow.id < before)
    return session.scalars(query).all()


def runs_of(session: Session, job_ids: Sequence[UUID]) -> dict[UUID, list[RunRow]]:
    """The runs of jobs, each job's by attempt and rank."""
    found: dict[UUID, list[RunRow]] = {job_id: [] for job_id in job_ids}
    query = (
        select(RunRow).where(RunRow.job_id.in_(job_ids)).order_by(RunRow.job_id, RunRow.attempt, RunRow.rank)
    )
    for run in session.scalars(query):
        found[run.job_id].append(run)
    return found


def wake_controller(session: Session) -> None:
    """Notify the controller when this transaction commits."""
    session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))


def _refuse_what_never_fits(session: Session, request: JobRequest) -> None:
    installed = session.execute(
        select(DeviceRow.node, DeviceRow.model, func.count())
        .join(NodeRow, NodeRow.name == DeviceRow.node)
        .group_by(DeviceRow.node, DeviceRow.model)
    ).all()
    known = sorted({model for _, model, _ in installed})
    for model in request.models:
        if model not in known:
            raise UnknownAccelerator(field="accelerator", model=model, known=", ".join(known) or "none yet")
    if request.slots_milli < WHOLE_MILLI and request.node_count * request.devices_per_node != 1:
        raise FractionOfGang(field="slots_milli", slots_milli=request.slots_milli)
    models = " or ".join(request.models)
    counts = [count for _, model, count in installed if model in request.models]
    if request.devices_per_node > max(counts):
        raise TooManyDevicesPerNode(
            field="devices_per_node", asked=request.devices_per_node, models=models, largest=max(counts)
        )
    fitting = len(
        {
            node
            for node, model, count in installed
            if model in request.models and count >= request.devices_per_node
        }
    )
    if request.node_count > fitting:
        raise TooManyNodes(
            field="nodes",
            asked=request.node_count,
            devices=request.devices_per_node,
            fitting=fitting,
            models=models,
        )
