"""Submitting, finding, holding and cancelling jobs and arrays of jobs.

A job is accepted only if the centre, when empty, could run it. Everything that happens to it afterwards is the
controller's doing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, func, select, text, tuple_
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.ids import derived_id
from kernel.prepared import Prepared, add_rows, new_row
from scheduler.dependencies import checked_dependencies
from scheduler.fitting import Demand, acceptable_models
from scheduler.node.protocol import Network
from scheduler.refusals import (
    ArrayNotFound,
    ArrayOfLargeJobs,
    ArrayTooLarge,
    JobAlreadyEnded,
    JobNotFound,
    JobNotWaiting,
    TooManyLiveJobs,
    UnknownEnvironment,
)
from scheduler.secrets import checked_secrets
from scheduler.tables import JobRow, RunRow

WAKE_CHANNEL: Final = "hub_scheduler"
"""PostgreSQL notification channel that wakes the controller."""

SUBMITTED: Final = "submitted"
"""What is said there of a new job; whatever else happens to jobs is said without a word."""

ENDED_STATES: Final = ("succeeded", "failed", "cancelled")

ARRAY_DEPENDENCIES_MAX: Final = 20_000
"""Size of an array times the jobs each of it waits for, all of which are stored."""

ARRAY_BYTES_MAX: Final = 16 * 1024 * 1024
"""Size of an array times the arguments and variables of each, all of which are stored."""

LIVE_JOBS_MAX: Final = 20_000
"""Jobs of one tenant that have not ended: the controller looks at all of them with every step."""

_LIVE: Final = Prepared(
    select(func.count()).select_from(
        select(JobRow.id)
        .where(JobRow.tenant_id == bindparam("tenant"), JobRow.ended_at.is_(None))
        .limit(bindparam("most"))
        .subquery()
    )
)

_COUNTED: Final[dict[UUID, tuple[datetime, int]]] = {}
"""By tenant, when its live jobs were counted last, and how many it has had since at most, as far as we know here."""

_COUNTED_MAX: Final = 10_000
_COUNT_HOLDS: Final = timedelta(seconds=1)

_JOB: Final = select(JobRow).where(JobRow.id == bindparam("job"))
_JOB_OF_TENANT: Final = _JOB.where(JobRow.tenant_id == bindparam("tenant"))
_RUNS: Final = (
    select(RunRow)
    .where(among(RunRow.job_id, bindparam("jobs")))
    .order_by(RunRow.job_id, RunRow.attempt, RunRow.rank)
)
"""Asked whenever a job is shown; statements that are made once need not be made and recognised each time."""

_TELL: Final = text(f"NOTIFY {WAKE_CHANNEL}")
_TELL_SUBMITTED: Final = (WAKE_CHANNEL, SUBMITTED)

_NEW: Final = "waiting for the next scheduling cycle"
HELD: Final = "held; it starts after it is released"


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What an enterprise asks for. Counts are whole devices unless `slots_milli` is below 1000.

    Attributes:
        models: acceptable models in order of preference; none accepts every one of at least `min_pflops_milli`.
        priority: among the tenant's own jobs, higher first.
        preemptible: may be stopped for another job and tried again.
        topology: "pack", "same-switch" or "spread".
        depends_on: jobs or arrays that must succeed first.
        secrets: names of the tenant's secrets, which become files.
        held: does not start before it is released.
        traceparent: what the submission belongs to (W3C Trace Context), handed on to whoever works on the job.
        notice_signal: accompanies what its program is told while it runs, such as that funds will not last; 0: none.
        kind: "ray" brings a private Ray cluster, whose ranks need network "job"; by itself it follows from the nodes.
        max_retries, retry_on: attempts after the first; "lost": only where the centre lost one, "failure": also
            where the program failed.
    """

    name: str
    argv: Sequence[str]
    models: Sequence[str]
    environment: str
    min_pflops_milli: int = 0
    node_count: int = 1
    devices_per_node: int = 1
    slots_milli: int = 1000
    cpu_milli: int = 1000
    memory_mib: int = 1024
    time_limit_ms: int
    grace_ms: int = 10_000
    priority: int = 0
    preemptible: bool = False
    topology: str = "pack"
    not_before: datetime | None = None
    depends_on: Sequence[UUID] = ()
    held: bool = False
    max_retries: int = 0
    retry_on: str = "lost"
    network: str = "none"
    upload_sha256: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    kind: str = ""
    notice_signal: int = 0
    traceparent: str = ""


def new_job(
    session: Session,
    job_id: UUID,
    request: JobRequest,
    *,
    tenant_id: UUID,
    submitted_by: UUID,
    environments: Sequence[str],
    at: datetime,
    live_max: int = LIVE_JOBS_MAX,
    unwritten: int = 0,
) -> JobRow:
    """A job as `queue_jobs` queues it, checked; nothing is written.

    Args:
        session: of the caller's transaction.
        job_id: of the job.
        request: what is asked for.
        tenant_id: whose job it is.
        submitted_by: the principal.
        environments: those that there are.
        at: now.
        live_max: how many jobs the tenant may have that have not ended.
        unwritten: how many of its jobs were checked in this transaction and are yet to be queued.

    Raises:
        UnknownEnvironment, TooManyLiveJobs, and whatever `acceptable_models` and `checked_dependencies` refuse.
    """
    job = _checked(session, job_id, request, tenant_id, submitted_by, environments, at)
    _refuse_too_many(session, tenant_id, 1, live_max, at, unwritten)
    return job


def queue_jobs(session: Session, jobs: Sequence[JobRow]) -> None:
    """Queue new jobs and wake the controller when the transaction commits."""
    add_rows(session, jobs, tell=_TELL_SUBMITTED)


def submit_array(
    session: Session,
    array_id: UUID,
    request: JobRequest,
    *,
    size: int,
    running_max: int,
    tenant_id: UUID,
    submitted_by: UUID,
    environments: Sequence[str],
    at: datetime,
    live_max: int = LIVE_JOBS_MAX,
) -> list[JobRow]:
    """Queue `size` jobs that differ in their index only, of which at most `running_max` run at once (0: no bound).

    Raises:
        ArrayTooLarge, ArrayOfLargeJobs, and whatever `new_job` refuses.
    """
    first = _checked(session, array_job_id(array_id, 0), request, tenant_id, submitted_by, environments, at)
    if size * len(first.depends_on) > ARRAY_DEPENDENCIES_MAX:
        raise ArrayTooLarge(
            field="depends_on", size=size, count=len(first.depends_on), most=ARRAY_DEPENDENCIES_MAX
        )
    each = sum(len(text.encode()) for text in (*request.argv, *request.env, *request.env.values()))
    if size * each > ARRAY_BYTES_MAX:
        raise ArrayOfLargeJobs(field="size", size=size, each=each, most=ARRAY_BYTES_MAX)
    _refuse_too_many(session, tenant_id, size, live_max, at)
    request = replace(request, models=first.models, depends_on=first.depends_on, secrets=first.secrets)
    ids = [array_job_id(array_id, index) for index in range(size)]
    jobs = [first, *(_row(job_id, request, tenant_id, submitted_by, at) for job_id in ids[1:])]
    for index, job in enumerate(jobs):
        job.array_id, job.array_index = array_id, index
        job.array_size, job.array_running_max = size, running_max
    queue_jobs(session, jobs)
    return jobs


def array_job_id(array_id: UUID, index: int) -> UUID:
    """The id of an array's job by its index."""
    return derived_id("array job", array_id, index)


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
    _ask_for_end(job)
    wake_controller(session)
    return job


def cancel_array(session: Session, array_id: UUID, *, tenant_id: UUID | None) -> list[JobRow]:
    """Ask for the end of all jobs of an array that have not ended. Raises ArrayNotFound."""
    jobs = find_array(session, array_id, tenant_id=tenant_id, for_update=True)
    for job in jobs:
        if job.ended_at is None:
            _ask_for_end(job)
    wake_controller(session)
    return jobs


def hold_job(session: Session, job_id: UUID, *, tenant_id: UUID | None) -> JobRow:
    """Let a waiting job not start before it is released. Raises JobNotFound, JobNotWaiting."""
    job = _waiting(session, job_id, tenant_id)
    if not job.held:
        job.held, job.reason, job.revision = True, HELD, job.revision + 1
    wake_controller(session)
    return job


def release_job(session: Session, job_id: UUID, *, tenant_id: UUID | None) -> JobRow:
    """Take back a hold; does nothing where there is none. Raises JobNotFound, JobNotWaiting."""
    job = _waiting(session, job_id, tenant_id)
    if job.held:
        job.held, job.reason, job.revision = False, _NEW, job.revision + 1
    wake_controller(session)
    return job


def change_dependencies(
    session: Session, job_id: UUID, depends_on: Sequence[UUID], *, tenant_id: UUID
) -> JobRow:
    """Let a waiting job wait for these jobs instead of those it named before.

    Raises:
        JobNotFound, JobNotWaiting, and whatever `checked_dependencies` refuses.
    """
    find_job(session, job_id, tenant_id=tenant_id)
    found = checked_dependencies(session, job_id, depends_on, tenant_id=tenant_id)
    job = _waiting(session, job_id, tenant_id)
    job.depends_on, job.reason, job.revision = found, _NEW, job.revision + 1
    wake_controller(session)
    return job


def find_array(
    session: Session, array_id: UUID, *, tenant_id: UUID | None, for_update: bool = False
) -> list[JobRow]:
    """The jobs of an array by index; another tenant's is as if it did not exist. Raises ArrayNotFound."""
    query = select(JobRow).where(JobRow.array_id == array_id).order_by(JobRow.id)
    if tenant_id is not None:
        query = query.where(JobRow.tenant_id == tenant_id)
    # Locked in the order in which the controller locks jobs, or the two could wait for each other.
    jobs = session.scalars(query.with_for_update() if for_update else query).all()
    if not jobs:
        raise ArrayNotFound(array_id=array_id)
    return sorted(jobs, key=lambda job: job.array_index or 0)


def find_job(session: Session, job_id: UUID, *, tenant_id: UUID | None, for_update: bool = False) -> JobRow:
    """One job; another tenant's is as if it did not exist. Raises JobNotFound."""
    query = _JOB if tenant_id is None else _JOB_OF_TENANT
    asked = {"job": job_id, "tenant": tenant_id}
    job = session.scalars(query.with_for_update() if for_update else query, asked).one_or_none()
    if job is None:
        raise JobNotFound(job_id=job_id)
    return job


def list_jobs(
    session: Session,
    *,
    tenant_id: UUID | None,
    before: UUID | None,
    limit: int,
    array_id: UUID | None = None,
    state: str | None = None,
) -> Sequence[JobRow]:
    """Jobs, newest first, at most `limit`, after the job `before` in that order; of one tenant or of all."""
    order = (JobRow.queued_at, JobRow.id)
    query = select(JobRow).order_by(*(column.desc() for column in order)).limit(limit)
    if tenant_id is not None:
        query = query.where(JobRow.tenant_id == tenant_id)
    if array_id is not None:
        query = query.where(JobRow.array_id == array_id)
    if state is not None:
        query = query.where(JobRow.state == state)
    if before is not None:
        place = select(JobRow.queued_at).where(JobRow.id == before)
        if tenant_id is not None:
            place = place.where(JobRow.tenant_id == tenant_id)
        query = query.where(tuple_(*order) < tuple_(place.scalar_subquery(), before))
    return session.scalars(query).all()


def runs_of(session: Session, job_ids: Sequence[UUID]) -> dict[UUID, list[RunRow]]:
    """The runs of jobs, each job's by attempt and rank."""
    found: dict[UUID, list[RunRow]] = {job_id: [] for job_id in job_ids}
    for run in session.scalars(_RUNS, {"jobs": list(job_ids)}):
        found[run.job_id].append(run)
    return found


def needed_uploads(session: Session, *, tenant_id: UUID) -> frozenset[str]:
    """Digests of the uploads that jobs of a tenant need which have not ended."""
    query = select(JobRow.upload_sha256).where(
        JobRow.tenant_id == tenant_id, JobRow.ended_at.is_(None), JobRow.upload_sha256.is_not(None)
    )
    return frozenset(digest for digest in session.scalars(query.distinct()) if digest is not None)


def wake_controller(session: Session) -> None:
    """Notify the controller when this transaction commits."""
    session.execute(_TELL)


def _checked(
    session: Session,
    job_id: UUID,
    request: JobRequest,
    tenant_id: UUID,
    submitted_by: UUID,
    environments: Sequence[str],
    at: datetime,
) -> JobRow:
    if request.environment and request.environment not in environments:
        raise UnknownEnvironment(
            field="environment",
            environment=request.environment,
            known=", ".join(sorted(environments)) or "none",
        )
    demand = Demand(
        models=request.models,
        min_pflops_milli=request.min_pflops_milli,
        node_count=request.node_count,
        devices_per_node=request.devices_per_node,
        slots_milli=request.slots_milli,
        cpu_milli=request.cpu_milli,
        memory_mib=request.memory_mib,
        talks=request.network == Network.JOB,
    )
    models = acceptable_models(session, demand)
    depends_on = checked_dependencies(session, None, request.depends_on, tenant_id=tenant_id)
    secrets = checked_secrets(session, tenant_id, request.secrets)
    request = replace(request, models=models, depends_on=depends_on, secrets=secrets)
    return _row(job_id, request, tenant_id, submitted_by, at)


def _row(job_id: UUID, request: JobRequest, tenant_id: UUID, submitted_by: UUID, at: datetime) -> JobRow:
    return new_row(
        JobRow,
        id=job_id,
        tenant_id=tenant_id,
        submitted_by=submitted_by,
        name=request.name,
        state="queued",
        reason=HELD if request.held else _NEW,
        kind=request.kind or ("batch" if request.node_count == 1 else "distributed"),
        argv=list(request.argv),
        env=dict(request.env),
        environment=request.environment,
        upload_sha256=request.upload_sha256,
        models=list(request.models),
        min_pflops_milli=request.min_pflops_milli,
        node_count=request.node_count,
        devices_per_node=request.devices_per_node,
        slots_milli=request.slots_milli,
        cpu_milli=request.cpu_milli,
        memory_mib=request.memory_mib,
        time_limit_ms=request.time_limit_ms,
        grace_ms=request.grace_ms,
        priority=request.priority,
        preemptible=request.preemptible,
        topology=request.topology,
        not_before=request.not_before,
        depends_on=list(request.depends_on),
        held=request.held,
        max_retries=request.max_retries,
        retry_on=request.retry_on,
        notice_signal=request.notice_signal,
        secrets=list(request.secrets),
        traceparent=request.traceparent,
        network=request.network,
        queued_at=at,
        attempt=0,
    )


def _refuse_too_many(
    session: Session, tenant_id: UUID, asked: int, most: int, at: datetime, unwritten: int = 0
) -> None:
    """Two submissions at one moment may go a little beyond it.

    Counting takes as long as there are jobs to count, and who submits many submits them one after another. So for a
    single job a count holds for a second, with what has come here since, as long as that stays below three quarters of
    what is allowed: the rest is for what comes elsewhere meanwhile.
    """
    counted_at, count = _COUNTED.get(tenant_id, (at, most))
    holds = timedelta(0) <= at - counted_at < _COUNT_HOLDS and count < most * 3 // 4
    if asked > 1 or not holds:
        ((count,),) = _LIVE(session, tenant=tenant_id, most=most)
        counted_at = at
        count += unwritten
        if count + asked > most:
            raise TooManyLiveJobs(asked=asked, most=most)
    if len(_COUNTED) >= _COUNTED_MAX:
        _COUNTED.clear()
    _COUNTED[tenant_id] = counted_at, count + asked


def _ask_for_end(job: JobRow) -> None:
    # Over a failed rank or a preemption too, so that the attempt is not tried again.
    if job.stop_reason in {None, "rank_failed", "preempted", "node_drained", "device_failed"}:
        job.stop_reason = "cancelled"


def _waiting(session: Session, job_id: UUID, tenant_id: UUID | None) -> JobRow:
    job = find_job(session, job_id, tenant_id=tenant_id, for_update=True)
    if job.state != "queued" or job.stop_reason is not None:
        raise JobNotWaiting(job_id=job_id, state=job.state)
    return job
