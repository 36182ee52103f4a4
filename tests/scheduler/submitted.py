"""Jobs as an enterprise submits them, without the API."""

from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from scheduler.jobs import JobRequest, new_job, queue_jobs
from scheduler.tables import JobRow


def submit_job(session: Session, job_id: UUID, request: JobRequest, **about: Any) -> JobRow:  # noqa: ANN401 - as `new_job`
    """Check a job and queue it; whose money pays for it is nobody's question."""
    job = new_job(session, job_id, request, **about)
    queue_jobs(session, [job])
    return job
