"""How good start estimates are: what is told to those who wait, kept for a sample of jobs and held against the truth.

A biller's thread estimates the start of jobs that have just begun to wait, exactly as the explanation of a job does,
and later notes when they did start. It works no more than one part in a hundred of the time, so it never slows the
billing; in a centre with more live jobs than the explanation plays forward it estimates nothing.
Invariant: an estimate is written once, before the job started, and judged once.
"""

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from compute_hub.telemetry.tables import StartEstimateRow
from kernel.clock import boottime_ms, utc_now
from kernel.database import transaction
from scheduler.controller.forecasting import estimate_waiting
from scheduler.policy.model import Queue
from scheduler.tables import JobRow

_LOCK: Final = 0x65737473
"""Advisory lock of the estimates: two at one time would only cost twice."""

_SAMPLE_MAX: Final = 20
"""Jobs estimated in one look: those that have waited for the shortest time."""

_FRESH: Final = timedelta(seconds=30)
"""A job that has waited for longer was not seen when it was submitted: an estimate now would be of something else."""

_REST_S_MIN: Final = 2.0
_REST_PER_WORK: Final = 100
_log = structlog.get_logger(__name__)

_JUDGE: Final = text("""
    UPDATE start_estimates e SET judged_at = :at, started_at = r.placed_at
      FROM (SELECT r.job_id, min(lower(a.span)) AS placed_at
              FROM runs r JOIN allocations a ON a.run_id = r.id
             WHERE r.attempt = 1 AND r.job_id IN (SELECT job_id FROM start_estimates WHERE judged_at IS NULL)
             GROUP BY r.job_id) r
     WHERE e.job_id = r.job_id AND e.judged_at IS NULL""")
_DROP: Final = text("""
    DELETE FROM start_estimates e USING jobs j
     WHERE e.judged_at IS NULL AND j.id = e.job_id AND j.ended_at IS NOT NULL""")


def estimate_once(engine: Engine, queues: Sequence[Queue], at: datetime) -> int:
    """Judge what has started and estimate what has begun to wait; returns how many were estimated."""
    with transaction(engine) as session:
        if not session.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
            return 0
        session.execute(_JUDGE, {"at": at})
        session.execute(_DROP)
        jobs = _fresh(session, at)
        found = estimate_waiting(session, [job.id for job in jobs], at, queues=queues)
        session.add_all(
            StartEstimateRow(job_id=job_id, estimated_at=at, start_estimate_at=start)
            for job_id, start in sorted(found.items())
        )
        return len(found)


def _fresh(session: Session, at: datetime) -> Sequence[JobRow]:
    known = select(StartEstimateRow.job_id).where(StartEstimateRow.job_id == JobRow.id)
    query = (
        select(JobRow)
        .where(
            JobRow.state == "queued",
            JobRow.stop_reason.is_(None),
            JobRow.attempt == 0,
            ~JobRow.held,
            JobRow.queued_at > at - _FRESH,
            ~known.exists(),
        )
        .order_by(JobRow.queued_at.desc(), JobRow.id)
        .limit(_SAMPLE_MAX)
    )
    return session.scalars(query).all()


def keep_estimating(engine: Engine, queues: Sequence[Queue], stopping: threading.Event) -> threading.Thread:
    """Estimate in a thread of its own until told to stop."""

    def run() -> None:
        rest_s = _REST_S_MIN
        while not stopping.wait(rest_s):
            began_ms = boottime_ms()
            try:
                estimate_once(engine, queues, utc_now())
            except DBAPIError as error:
                _log.error("database_failed", reason=str(error.orig))
            except Exception:  # noqa: BLE001 - estimates must not end the thread, nor the biller
                _log.exception("estimate_failed")
            rest_s = max(_REST_S_MIN, _REST_PER_WORK * (boottime_ms() - began_ms) / 1000)

    thread = threading.Thread(target=run, name="start-estimates", daemon=True)
    thread.start()
    return thread
