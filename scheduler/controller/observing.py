"""From what nodes report to what the database says, under the guard of the epoch.

A run only moves forward. A job runs when all its ranks run, fails as soon as one rank fails (the others are then
stopped), and is over when all its ranks are known to be dead; its devices are free from that moment and no sooner.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import Session

from kernel.clock import from_unix_ms
from scheduler.controller.ports import Accounting
from scheduler.leadership import Leadership, fence
from scheduler.node.protocol import EndReason, Refusal, Report, RunState, RunStatus
from scheduler.tables import AllocationRow, JobRow, RunRow

_INFRASTRUCTURE: Final = frozenset({"lease_lost", "supervisor_lost", "node_lost"})
"""Ends that are the centre's fault: the job is tried again if it has retries left."""

_ORDER: Final = {"placed": 0, "starting": 1, "running": 2, "stopping": 3, "ended": 4}


def observe(
    session: Session,
    leadership: Leadership,
    reports: Mapping[str, Report],
    accounting: Accounting,
    at: datetime,
) -> bool:
    """Apply reports; true when something changed that makes another cycle or sync worth while.

    Raises:
        LeadershipLost: nothing was written.
    """
    fence(session, leadership)
    touched: set[UUID] = set()
    for node, report in sorted(reports.items()):
        accounting.record_usage(session, node, report.usage, at)
        touched |= _apply(session, node, report.runs, report.refused, at)
    return settle(session, touched, accounting, at)


def settle(session: Session, job_ids: set[UUID], accounting: Accounting, at: datetime) -> bool:
    """Bring the state of jobs in line with their runs; true when one of them moved."""
    moved = False
    for job_id in sorted(job_ids):
        job = session.scalars(select(JobRow).where(JobRow.id == job_id).with_for_update()).one()
        moved |= _settle(session, job, accounting, at)
    session.flush()
    return moved


def end_waiting(session: Session, leadership: Leadership, accounting: Accounting, at: datetime) -> bool:
    """End jobs that were cancelled before they were placed; true when there were any. Raises LeadershipLost."""
    fence(session, leadership)
    jobs = session.scalars(
        select(JobRow)
        .where(JobRow.state == "queued", JobRow.stop_reason.is_not(None))
        .order_by(JobRow.id)
        .with_for_update()
    ).all()
    for job in jobs:
        _end(session, job, "cancelled", "cancelled while it waited", accounting, at)
    return bool(jobs)


def _apply(
    session: Session, node: str, statuses: Sequence[RunStatus], refused: Sequence[Refusal], at: datetime
) -> set[UUID]:
    by_id = {UUID(status.run_id): status for status in statuses}
    refusals = {UUID(refusal.run_id): refusal for refusal in refused}
    touched = set()
    runs = session.scalars(
        select(RunRow)
        .where(RunRow.id.in_((*by_id, *refusals)), RunRow.node == node, RunRow.state != "ended")
        .order_by(RunRow.id)
        .with_for_update()
    )
    for run in runs:
        if run.id in refusals:
            _end_run(session, run, "start_failed", refusals[run.id].reason, None, at, at)
            touched.add(run.job_id)
        elif _advance(session, run, by_id[run.id], at):
            touched.add(run.job_id)
    session.flush()
    return touched


def _advance(session: Session, run: RunRow, status: RunStatus, at: datetime) -> bool:
    if _ORDER[status.state] <= _ORDER[run.state]:
        return False
    run.state = status.state.value
    if status.started_unix_ms is not None:
        run.started_at = from_unix_ms(status.started_unix_ms)
    if status.state is RunState.ENDED:
        ended = from_unix_ms(status.ended_unix_ms) if status.ended_unix_ms is not None else at
        reason = (status.end_reason or EndReason.SUPERVISOR_LOST).value
        code = status.exit_code if status.exit_code is not None else -(status.signal or 0) or None
        _end_run(session, run, reason, status.reason, code, ended, at)
    return True


def _end_run(
    session: Session, run: RunRow, reason: str, detail: str, code: int | None, ended: datetime, at: datetime
) -> None:
    run.state, run.end_reason, run.end_detail, run.exit_code, run.ended_at = (
        "ended",
        reason,
        detail,
        code,
        ended,
    )
    for allocation in session.scalars(select(AllocationRow).where(AllocationRow.run_id == run.id)):
        # The slices are free from when we know, which is never before the process was dead.
        allocation.span = Range(allocation.span.lower, max(at, ended))


def lose_node(
    session: Session, leadership: Leadership, node: str, accounting: Accounting, at: datetime
) -> bool:
    """End every run of a node whose leases have lapsed unseen; true when there were any. Raises LeadershipLost."""
    fence(session, leadership)
    runs = session.scalars(
        select(RunRow).where(RunRow.node == node, RunRow.state != "ended").order_by(RunRow.id).with_for_update()
    ).all()
    for run in runs:
        _end_run(session, run, "node_lost", f"node {node} has not been heard of", None, at, at)
    session.flush()
    return settle(session, {run.job_id for run in runs}, accounting, at)


def _settle(session: Session, job: JobRow, accounting: Accounting, at: datetime) -> bool:
    if job.ended_at is not None:
        return False
    runs = session.scalars(
        select(RunRow).where(RunRow.job_id == job.id, RunRow.attempt == job.attempt).order_by(RunRow.rank)
    ).all()
    failed = next((run for run in runs if run.state == "ended" and not _succeeded(run)), None)
    if all(run.state == "ended" for run in runs):
        _conclude(session, job, runs, failed, accounting, at)
        return True
    if failed is not None and job.stop_reason is None:
        job.stop_reason = "rank_failed"
        job.reason = f"rank {failed.rank} ended ({failed.end_reason}); the other ranks are being stopped"
    if job.state == "starting" and all(run.state in {"running", "stopping", "ended"} for run in runs):
        job.state, job.reason = "running", "all its processes run"
        job.started_at = max(run.started_at for run in runs if run.started_at is not None)
        return True
    if job.stop_reason is not None and job.state != "stopping":
        job.state = "stopping"
        return True
    return failed is not None


def _conclude(
    session: Session,
    job: JobRow,
    runs: Sequence[RunRow],
    failed: RunRow | None,
    accounting: Accounting,
    at: datetime,
) -> None:
    started = [run.started_at for run in runs if run.started_at is not None]
    if started and job.started_at is None:
        job.started_at = max(started)
    culprit = _culprit(runs) or failed
    wanted = job.stop_reason not in {None, "rank_failed"}
    if culprit is None and not wanted:
        job.exit_code = 0
        _end(session, job, "succeeded", "finished", accounting, at)
    elif wanted:
        state = "cancelled" if job.stop_reason == "cancelled" else "failed"
        job.exit_code = culprit.exit_code if culprit is not None else 0
        _end(session, job, state, f"stopped: {job.stop_reason}", accounting, at)
    else:
        assert culprit is not None  # noqa: S101 - the first branch took the other case
        job.exit_code = culprit.exit_code
        _fail_or_requeue(session, job, culprit, accounting, at)


def _culprit(runs: Sequence[RunRow]) -> RunRow | None:
    """The rank whose end brought the others down: the first that ended badly of itself, not by being stopped."""
    bad = [run for run in runs if not _succeeded(run) and run.end_reason != EndReason.STOPPED]
    return min(bad, key=lambda run: (run.ended_at, run.rank), default=None)


def _fail_or_requeue(
    session: Session, job: JobRow, culprit: RunRow, accounting: Accounting, at: datetime
) -> None:
    rank = f"rank {culprit.rank}: " if job.node_count > 1 else ""
    detail = culprit.end_detail or culprit.end_reason or "ended"
    if culprit.end_reason in _INFRASTRUCTURE and job.attempt <= job.max_retries:
        job.state, job.stop_reason, job.placed_at, job.started_at = "queued", None, None, None
        job.reason = f"attempt {job.attempt} was lost ({culprit.end_reason}); it waits to be tried again"
        return
    job.end_reason = culprit.end_reason
    _end(session, job, "failed", f"{rank}{detail}", accounting, at)


def _end(session: Session, job: JobRow, state: str, reason: str, accounting: Accounting, at: datetime) -> None:
    job.state, job.reason, job.ended_at = state, reason, at
    job.end_reason = job.end_reason or (job.stop_reason if state != "succeeded" else "exited")
    session.flush()
    accounting.ended(session, job, at)


def _succeeded(run: RunRow) -> bool:
    return run.end_reason == EndReason.EXITED and run.exit_code == 0
