"""How long a job will probably run, learned from its tenant's jobs that ended by themselves."""

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.clock import unix_ms
from scheduler.controller.picture import job_of
from scheduler.policy.prediction import Predictor
from scheduler.tables import JobRow

_LESSONS: Final = 500
"""So many of the latest ended jobs are learned from."""


def predicted_ms(session: Session, job: JobRow) -> int:
    """A likely duration, never above the job's limit. Reads only."""
    ended = session.scalars(
        select(JobRow)
        .where(JobRow.tenant_id == job.tenant_id, JobRow.state == "succeeded", JobRow.started_at.is_not(None))
        .order_by(JobRow.id.desc())
        .limit(_LESSONS)
    ).all()
    predictor = Predictor()
    for row in reversed(ended):
        if row.started_at is not None and row.ended_at is not None:
            predictor.learn(job_of(row), unix_ms(row.ended_at) - unix_ms(row.started_at))
    return predictor.predict_ms(job_of(job))
