"""From the runs of a job to the job.

It runs when all its ranks run, fails as soon as one rank fails, and is over when all its ranks are known to be dead.
The first rank that failed of itself says why.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

import structlog
from sqlalchemy import bindparam, select, text
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.changes import Loose, write_changes
from kernel.prepared import Prepared
from scheduler.controller.ports import Accounting
from scheduler.controller.watching import Step
from scheduler.dependencies import waiting_in_vain
from scheduler.leadership import Leadership, fence
from scheduler.node.protocol import EndReason
from scheduler.tables import JobRow, RunRow

NOT_BEGUN: Final = frozenset({EndReason.DEVICE_HELD.value, EndReason.NODE_FAILED.value})
"""A run that never started, because a process nobody can end held its device, which is drained, or because its node
can start nothing and says so: tried elsewhere, without a retry for it, however few the job has."""

INFRASTRUCTURE: Final = NOT_BEGUN | {
    "lease_lost",
    "supervisor_lost",
    "node_lost",
    "node_stopped",
    "journal_full",
}
"""Ends that are the centre's fault: the job is tried again if it has retries left."""

_RETRIED: Final = frozenset({"exited", "oom", "disk_full", "start_failed"})
"""Ends that are the program's own fault: tried again only where the job says so."""

RETRY_MS: Final = 1000
"""The pause before the first retry; doubled for each further one."""

RETRY_MS_MAX: Final = 300_000


def retry_pause_ms(retries: int) -> int:
    """The pause before this retry, the first being 1."""
    return min(RETRY_MS << min(max(0, retries - 1), 16), RETRY_MS_MAX)


WITHDRAWN_MAX: Final = 1000
"""Cancelled jobs ended in one transaction."""

NOTICED_MS: Final = 30_000
"""A loss may have happened so long before it is noticed: a lease, its margins, and clocks of nodes that differ. What
the other ranks of a gang do meanwhile, they may do because one is gone."""

PREEMPTED: Final = "preempted"
"""Why a job is stopped for another one, and how its runs end then."""

NODE_DRAINED: Final = "node_drained"
"""Why a job is stopped that still runs on a node when its drain or maintenance begins in earnest."""

DEVICE_FAILED: Final = "device_failed"
"""Why a job is stopped whose device can no longer work."""

CENTRES_STOPS: Final = frozenset({PREEMPTED, NODE_DRAINED, DEVICE_FAILED})
"""Stops the centre orders for its own purposes: the job is tried again, and the attempt's time is the centre's."""

_WHY: Final = {
    PREEMPTED: "was stopped for another job",
    NODE_DRAINED: "was stopped because its node is taken out of service",
    DEVICE_FAILED: "was stopped because its device failed",
}

_JOB: Final = Loose(
    JobRow,
    *("id", "tenant_id", "state", "reason", "attempt", "node_count", "max_retries", "retry_on", "traceparent"),
    *("queued_at", "placed_at", "started_at", "ended_at", "retry_at", "attained_ms", "exit_code", "end_reason"),
    *("stop_reason", "evictions", "evicted_for", "lost_attempts", "notice"),
)
_RUN: Final = Loose(
    RunRow,
    *("id", "job_id", "attempt", "rank", "state", "started_at", "ended_at"),
    *("exit_code", "end_reason", "end_detail"),
)
_JOBS: Final = Prepared(
    select(*_JOB.columns).where(among(JobRow.id, bindparam("jobs"))).order_by(JobRow.id).with_for_update()
)
_LATEST_RUNS: Final = Prepared(
    select(*_RUN.columns)
    .join(JobRow, (RunRow.job_id == JobRow.id) & (RunRow.attempt == JobRow.attempt))
    .where(among(JobRow.id, bindparam("jobs")))
    .order_by(RunRow.rank)
)
_PLACED: Final = text("jobs.state IN ('starting', 'running', 'stopping')")
_LIVING: Final = select(RunRow.id).where(
    RunRow.job_id == JobRow.id, RunRow.attempt == JobRow.attempt, RunRow.state != "ended"
)
_UNSETTLED: Final = Prepared(
    select(JobRow.id).where(_PLACED, JobRow.stop_reason.is_not(None) | ~_LIVING.exists())
)
_WITHDRAWN: Final = Prepared(
    select(*_JOB.columns)
    .where(JobRow.state == "queued", JobRow.stop_reason.is_not(None))
    .order_by(JobRow.id)
    .limit(WITHDRAWN_MAX)
    .with_for_update()
)

_STOPPED: Final = frozenset({EndReason.STOPPED.value, "never_started", *CENTRES_STOPS})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Settled:
    """What moved: whether a job gave its devices back, whether one is to be stopped everywhere, and who went where."""

    freed: bool = False
    stopping: bool = False
    steps: tuple[Step, ...] = ()


def settle(session: Session, job_ids: AbstractSet[UUID], accounting: Accounting, at: datetime) -> Settled:
    """Bring the state of jobs in line with their runs.

    A job that cannot be settled is left as it is, loudly; its runs are settled with again at the next tick.
    """
    if not job_ids:
        return Settled()
    try:
        with session.begin_nested():
            return settle_together(session, job_ids, accounting, at)
    except Exception:  # noqa: BLE001 - one row must not stop all others
        if len(job_ids) == 1:
            _log.exception("job_not_settled", job=str(*job_ids))
            return Settled()
    alone = [settle(session, {job_id}, accounting, at) for job_id in sorted(job_ids)]
    steps = tuple([step for one in alone for step in one.steps])
    return Settled(any(one.freed for one in alone), any(one.stopping for one in alone), steps)


def settle_together(
    session: Session,
    job_ids: AbstractSet[UUID],
    accounting: Accounting,
    at: datetime,
    known: Sequence[RunRow] = (),
) -> Settled:
    """The same without leaving any out: raises what cannot be settled, and then nothing may be committed.

    Args:
        session: of the transaction.
        job_ids: of the jobs.
        accounting: who hears of ends.
        at: now.
        known: runs of theirs as this transaction has written them; those of a job whose others are not among them
            are read.
    """
    if not job_ids:
        return Settled()
    jobs = _JOB.rows(_JOBS(session, jobs=list(job_ids)))
    runs = _latest_runs(session, jobs, known)
    moved: list[JobRow] = []
    steps: list[Step] = []
    for job in jobs:
        before = job.state, job.placed_at, job.started_at
        if _settle(job, runs[job.id], at):
            moved.append(job)
            steps += _steps(job, runs[job.id], *before, at)
    write_changes(session, moved)
    _tell_ended(session, [job for job in moved if job.ended_at is not None], accounting, at)
    requeued = [job for job in moved if job.state == "queued"]
    if requeued:
        accounting.requeued(session, requeued, at)
    return Settled(
        freed=any(job.state == "queued" or job.ended_at is not None for job in moved),
        stopping=any(job.stop_reason is not None for job in moved),
        steps=tuple(steps),
    )


def _latest_runs(
    session: Session, jobs: Sequence[JobRow], known: Sequence[RunRow]
) -> Mapping[UUID, Sequence[RunRow]]:
    """By job the runs of its latest attempt, in order of their ranks."""
    runs: dict[UUID, list[RunRow]] = {job.id: [] for job in jobs}
    attempts = {job.id: job.attempt for job in jobs}
    for run in sorted(known, key=lambda one: one.rank):
        if run.attempt == attempts[run.job_id]:
            runs[run.job_id].append(run)
    for job_id in (more := [job.id for job in jobs if len(runs[job.id]) != job.node_count]):
        runs[job_id] = []
    for run in _RUN.rows(_LATEST_RUNS(session, jobs=more) if more else ()):
        runs[run.job_id].append(run)
    return runs


def _steps(
    job: JobRow,
    runs: Sequence[RunRow],
    state: str,
    placed_at: datetime | None,
    started_at: datetime | None,
    at: datetime,
) -> list[Step]:
    """What happened to a job that was in this state: it started, was queued again, ended, or the first and another."""
    steps = []
    placed_at = placed_at or at
    begun = started_at or _started_at(runs)
    if state == "starting" and begun is not None:
        steps.append(Step("started", job.id, job.attempt, job.traceparent, min(placed_at, begun), begun))
    if job.state == "queued" or job.ended_at is not None:
        name: Literal["requeued", "ended"] = "requeued" if job.state == "queued" else "ended"
        ended = max((run.ended_at for run in runs if run.ended_at is not None), default=at)
        since = min(begun or placed_at, ended)
        outcome = job.state if job.ended_at is not None else job.reason
        steps.append(Step(name, job.id, job.attempt, job.traceparent, since, ended, outcome=outcome))
    return steps


def unsettled(session: Session) -> set[UUID]:
    """Jobs that are placed and either to be stopped or with no run left, whatever brought them there."""
    return {job_id for (job_id,) in _UNSETTLED(session)}


def end_waiting(session: Session, leadership: Leadership, accounting: Accounting, at: datetime) -> list[Step]:
    """End jobs that were cancelled before they were placed, or wait for one that will not succeed.

    Returns:
        The steps they took; at least `WITHDRAWN_MAX` of them when there may be more to end.

    Raises:
        LeadershipLost: nothing was written.
    """
    fence(session, leadership)
    jobs = _JOB.rows(_WITHDRAWN(session))
    for job in jobs:
        _end(job, "cancelled", "cancelled while it waited", at)
    write_changes(session, jobs)
    _tell_ended(session, jobs, accounting, at)
    return [*map(_never_started, jobs), *_end_in_vain(session, accounting, at)]


def _end_in_vain(session: Session, accounting: Accounting, at: datetime) -> list[Step]:
    """End what waits for a job that will not succeed, and what waits for that in turn."""
    steps: list[Step] = []
    while vain := waiting_in_vain(session):
        jobs = _JOB.rows(_JOBS(session, jobs=list(vain)))
        for job in jobs:
            needed, state = vain[job.id]
            job.stop_reason = "dependency_failed"
            why = f"never started, because job {needed}, which it depends on, ended without success ({state})"
            _end(job, "failed", why, at)
        write_changes(session, jobs)
        _tell_ended(session, jobs, accounting, at)
        steps += map(_never_started, jobs)
    return steps


def _never_started(job: JobRow) -> Step:
    ended = job.ended_at or job.queued_at
    since = min(job.queued_at, ended)
    return Step("ended", job.id, job.attempt, job.traceparent, since, ended, outcome=job.state)


def _tell_ended(session: Session, jobs: Sequence[JobRow], accounting: Accounting, at: datetime) -> None:
    if jobs:
        accounting.ended(session, jobs, at)


def _settle(job: JobRow, runs: Sequence[RunRow], at: datetime) -> bool:
    if job.ended_at is not None or job.state == "queued":
        return False
    failed = next((run for run in runs if run.state == "ended" and not _succeeded(run)), None)
    if all(run.state == "ended" for run in runs):
        _conclude(job, runs, failed, at)
        return True
    news = False
    if failed is not None and job.stop_reason is None:
        job.stop_reason = "rank_failed"
        job.reason = f"rank {failed.rank} ended ({failed.end_reason}); the other ranks are being stopped"
        news = True
    if job.state == "starting" and all(run.state in {"running", "stopping", "ended"} for run in runs):
        job.state = "running"
        job.reason = "all its processes run" if failed is None else job.reason
        job.started_at = _started_at(runs) or at
        news = True
    if job.stop_reason is not None and job.state != "stopping":
        job.state = "stopping"
        news = True
    return news


def _conclude(job: JobRow, runs: Sequence[RunRow], failed: RunRow | None, at: datetime) -> None:
    job.started_at = job.started_at or _started_at(runs)
    own = _culprit(runs)
    culprit = own or failed
    wanted = job.stop_reason not in {None, "rank_failed", *CENTRES_STOPS}
    # A rank that is told a little later may fail because another one has stopped already.
    stopped = any(run.end_reason in CENTRES_STOPS for run in runs)
    centres = own is None or own.end_reason in INFRASTRUCTURE or stopped
    if job.stop_reason in CENTRES_STOPS and failed is not None and centres:
        job.evictions += 1
        _requeue(job, f"attempt {job.attempt} {_WHY[job.stop_reason]}; it waits to be tried again", at, 0)
        job.lost_attempts = [*job.lost_attempts, job.attempt]
    elif own is not None and own.end_reason in NOT_BEGUN and not wanted:
        job.evictions += 1
        job.lost_attempts = [*job.lost_attempts, job.attempt]
        detail = (own.end_detail or "").rstrip(".")
        why = f"attempt {job.attempt} did not start ({detail}); it is tried elsewhere"
        _requeue(job, why, at, retry_pause_ms(job.evictions))
    elif culprit is None and not wanted:
        job.exit_code = 0
        _end(job, "succeeded", "finished", at)
    elif wanted:
        state = "cancelled" if job.stop_reason == "cancelled" else "failed"
        job.exit_code = culprit.exit_code if culprit is not None else 0
        _end(job, state, _why_stopped(job), at)
    else:
        assert culprit is not None  # noqa: S101 - the first branch took the other case
        _fail_or_requeue(job, culprit, at)


def _why_stopped(job: JobRow) -> str:
    if job.stop_reason == "cancelled":
        return "cancelled while it ran"
    return f"stopped ({job.stop_reason}): {job.reason}"


def _started_at(runs: Sequence[RunRow]) -> datetime | None:
    return max((run.started_at for run in runs if run.started_at is not None), default=None)


def _culprit(runs: Sequence[RunRow]) -> RunRow | None:
    """The rank whose end brought the others down: the first that ended badly of itself, not by being stopped.

    One that the centre lost counts from when it may have been lost: its peers fail before that is known.
    """
    bad = [run for run in runs if not _succeeded(run) and run.end_reason not in _STOPPED]
    return min(bad, key=lambda run: (_may_have_ended(run), run.rank), default=None)


def _may_have_ended(run: RunRow) -> datetime:
    assert run.ended_at is not None  # noqa: S101 - only ends are compared
    lost = run.end_reason in INFRASTRUCTURE
    return run.ended_at - timedelta(milliseconds=NOTICED_MS) if lost else run.ended_at


def _fail_or_requeue(job: JobRow, culprit: RunRow, at: datetime) -> None:
    rank = f"rank {culprit.rank}: " if job.node_count > 1 else ""
    detail = culprit.end_detail or f"its program ended with exit status {culprit.exit_code}"
    lost = culprit.end_reason in INFRASTRUCTURE
    failed = job.retry_on == "failure" and culprit.end_reason in _RETRIED
    counted = job.attempt - job.evictions
    if lost:
        job.lost_attempts = [*job.lost_attempts, job.attempt]
    if (lost or failed) and counted <= job.max_retries:
        what = f"was lost ({culprit.end_reason})" if lost else f"failed ({detail})"
        why = f"attempt {job.attempt} {what}; it is tried again ({counted} of {job.max_retries} retries)"
        _requeue(job, why, at, retry_pause_ms(counted))
        return
    job.exit_code, job.end_reason = culprit.exit_code, culprit.end_reason
    _end(job, "failed", f"{rank}{detail}", at)


def _requeue(job: JobRow, why: str, at: datetime, pause_ms: int) -> None:
    """Let the job wait for its next attempt, which may start after a pause."""
    if job.started_at is not None:
        job.attained_ms += max(0, (at - job.started_at) // timedelta(milliseconds=1))
    job.state, job.stop_reason, job.reason = "queued", None, why
    job.placed_at, job.started_at, job.evicted_for, job.notice = None, None, None, ""
    job.retry_at = at + timedelta(milliseconds=pause_ms) if pause_ms else None


def _end(job: JobRow, state: str, reason: str, at: datetime) -> None:
    job.state, job.reason, job.ended_at = state, reason, at
    job.end_reason = job.end_reason or (job.stop_reason if state != "succeeded" else "exited")


def _succeeded(run: RunRow) -> bool:
    return run.end_reason == EndReason.EXITED and run.exit_code == 0
