"""Jobs that wait for other jobs to succeed: what may depend on what, and what becomes of those that wait in vain.

A dependency is satisfied when its job has succeeded. One that ends otherwise never will be, so whoever waits for it
ends too, and says for whom it waited. Invariant: the dependencies of jobs that have not ended form no cycle; whoever
changes a tenant's holds the tenant's lock.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import and_, bindparam, func, literal, or_, select, true
from sqlalchemy.orm import Session, aliased

from kernel.bulk import among
from kernel.prepared import Prepared
from scheduler.refusals import (
    DependencyCycle,
    DependencyNotFound,
    DependencyWillNotSucceed,
    TooManyDependencies,
)
from scheduler.tables import JobRow

DEPENDENCIES_MAX: Final = 1000
_LOST: Final = ("failed", "cancelled")
_SUCCEEDED: Final = Prepared(
    select(JobRow.id).where(among(JobRow.id, bindparam("jobs")), JobRow.state == "succeeded")
)
_lost = aliased(JobRow)
_named = func.unnest(JobRow.depends_on).table_valued("id").render_derived()
_IN_VAIN: Final = Prepared(
    select(JobRow.id, _lost.id, _lost.state)
    .select_from(JobRow)
    .join(_named, true())
    .join(_lost, and_(_lost.id == _named.c.id, or_(*(_lost.state == state for state in _LOST))))
    .where(JobRow.state == "queued", func.cardinality(JobRow.depends_on) > 0)
    .order_by(JobRow.id, _lost.id)
    .with_for_update(of=JobRow)
)


def checked_dependencies(
    session: Session, job_id: UUID | None, depends_on: Sequence[UUID], *, tenant_id: UUID
) -> list[UUID]:
    """The jobs to wait for, each once and by id; an array's id stands for all its jobs.

    Args:
        session: of the transaction that writes them.
        job_id: of the waiting job; None when it is new, so that nobody can depend on it yet.
        depends_on: ids of jobs or arrays.
        tenant_id: whose jobs all of them must be.

    Raises:
        DependencyNotFound, DependencyWillNotSucceed, DependencyCycle, TooManyDependencies.
    """
    if not depends_on:
        return []
    session.execute(
        select(func.pg_advisory_xact_lock(func.hashtextextended(literal(f"dependencies {tenant_id}"), 0)))
    )
    asked = sorted(set(depends_on))
    rows = session.execute(
        select(JobRow.id, JobRow.array_id, JobRow.state)
        .where(JobRow.tenant_id == tenant_id, JobRow.id.in_(asked) | JobRow.array_id.in_(asked))
        .order_by(JobRow.id)
    ).all()
    known = {row.id for row in rows} | {row.array_id for row in rows}
    for needed in asked:
        if needed not in known:
            raise DependencyNotFound(field="depends_on", job_id=needed)
    for row in rows:
        if row.state in _LOST:
            raise DependencyWillNotSucceed(field="depends_on", job_id=row.id, state=row.state)
    if len(rows) > DEPENDENCIES_MAX:
        raise TooManyDependencies(field="depends_on", count=len(rows), most=DEPENDENCIES_MAX)
    found = [row.id for row in rows]
    if job_id is not None:
        _refuse_cycle(session, job_id, found)
    return found


def _refuse_cycle(session: Session, job_id: UUID, depends_on: Sequence[UUID]) -> None:
    """Follow dependencies from the new ones; refuse when they lead back to the job."""
    before: dict[UUID, UUID] = dict.fromkeys(depends_on, job_id)
    front = list(depends_on)
    while front:
        if job_id in before:
            way, at = [job_id], before[job_id]
            while at != job_id:
                way.append(at)
                at = before[at]
            cycle = " -> ".join(str(one) for one in (job_id, *reversed(way)))
            raise DependencyCycle(field="depends_on", job_id=job_id, cycle=cycle)
        rows = session.execute(
            select(JobRow.id, JobRow.depends_on)
            .where(JobRow.id.in_(front), JobRow.ended_at.is_(None))
            .order_by(JobRow.id)
        ).all()
        front = []
        for waiting, needs in rows:
            for needed in needs:
                if needed not in before:
                    before[needed] = waiting
                    front.append(needed)


def waiting_in_vain(session: Session) -> dict[UUID, tuple[UUID, str]]:
    """Queued jobs that wait for one that ended without success, locked; by job, for which, and how that ended.

    Beginning with the few jobs that wait for any, so that thousands of cancelled and waiting ones are not compared.
    """
    first: dict[UUID, tuple[UUID, str]] = {}
    for job_id, needed, state in _IN_VAIN(session):
        first.setdefault(job_id, (needed, state))
    return first


def succeeded_among(session: Session, job_ids: Sequence[UUID]) -> frozenset[UUID]:
    """Those of the jobs that have succeeded."""
    if not job_ids:
        return frozenset()
    return frozenset(job_id for (job_id,) in _SUCCEEDED(session, jobs=list(job_ids)))
