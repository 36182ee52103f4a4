"""When a job would probably start, and how long it would run, asked by a process that is not the controller.

The picture is read from the database as a controller that has just become leader would, so nobody's memory is shared
and nothing is changed; then the same policy is played forward on it. An estimate, not a promise.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from scheduler.controller.live_state import LiveState
from scheduler.controller.picture import job_of
from scheduler.policy.forecast import estimate_starts
from scheduler.policy.prediction import Predictor
from scheduler.policy.settings import PolicySettings
from scheduler.tables import JobRow, NodeRow

LIVE_JOBS_MAX: Final = 2000
"""Jobs waiting or running beyond which a forecast would cost more than a request may."""

_STEPS_MAX: Final = 500
_LESSONS: Final = 500
"""A tenant's latest ended jobs that the prediction of a duration is learned from."""


@dataclass(frozen=True)
class Forecast:
    """A likely start in Unix milliseconds, if one comes into sight, and a likely duration; a sentence explains both."""

    starts_ms: int | None
    predicted_ms: int
    sentence: str


def forecast_job(session: Session, job: JobRow, settings: PolicySettings, now_ms: int) -> Forecast:
    """Forecast a job that is queued in this transaction, which may be rolled back afterwards."""
    predicted_ms = _predicted_ms(session, job)
    waiting = session.scalars(select(func.count()).where(JobRow.ended_at.is_(None))).one()
    if waiting > LIVE_JOBS_MAX:
        return Forecast(
            None, predicted_ms, f"{waiting} jobs wait or run, too many to say when this one would start"
        )
    live = LiveState(settings)
    nodes = session.scalars(select(NodeRow.name).where(NodeRow.state == "up").order_by(NodeRow.name)).all()
    live.refresh(session, now_ms, frozenset(nodes))
    if job.id in live.set_aside:
        return Forecast(None, predicted_ms, live.set_aside[job.id])
    found = estimate_starts(live.policy, frozenset({str(job.id)}), now_ms, _STEPS_MAX).get(str(job.id))
    if found is None:
        return Forecast(
            None, predicted_ms, "no start comes into sight with the jobs and devices that are there now"
        )
    if found <= now_ms:
        return Forecast(found, predicted_ms, "it would start at once")
    return Forecast(found, predicted_ms, "it would start when jobs that run now have probably ended")


def _predicted_ms(session: Session, job: JobRow) -> int:
    """What the job will probably run, learned from its tenant's jobs that ended by themselves."""
    ended = session.scalars(
        select(JobRow)
        .where(
            JobRow.tenant_id == job.tenant_id,
            JobRow.state == "succeeded",
            JobRow.started_at.is_not(None),
        )
        .order_by(JobRow.id.desc())
        .limit(_LESSONS)
    ).all()
    predictor = Predictor()
    for row in reversed(ended):
        if row.started_at is not None and row.ended_at is not None:
            predictor.learn(job_of(row), unix_ms(row.ended_at) - unix_ms(row.started_at))
    return predictor.predict_ms(job_of(job))
