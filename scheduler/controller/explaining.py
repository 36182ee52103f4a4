"""Writes down why each waiting job waits, where that changed. Jobs alike to the policy share one explanation."""

from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.bulk import array, array_of_text, run
from kernel.clock import unix_ms
from scheduler.controller.live_state import LiveState
from scheduler.policy.pending import QueuedJob
from scheduler.policy.reasons import explain
from scheduler.tables import JobRow

_WAITS: Final = (JobRow.state == "queued") & JobRow.stop_reason.is_(None) & ~JobRow.held

_WRITE: Final = b"""
WITH free AS MATERIALIZED (
    SELECT jobs.id, u.sentence
      FROM unnest(%s::uuid[], %s::text[]) AS u(job_id, sentence) JOIN jobs ON jobs.id = u.job_id
     WHERE jobs.state = 'queued' AND jobs.stop_reason IS NULL AND NOT jobs.held
     ORDER BY jobs.id FOR NO KEY UPDATE OF jobs SKIP LOCKED)
UPDATE jobs SET reason = free.sentence FROM free WHERE jobs.id = free.id
"""
"""Only where it still waits: somebody may have held it since it was read, and its reason is another then. What
somebody is changing just now is left to the next time: the leader waits for nobody here, so no circle can form."""


def explain_waiting(session: Session, live: LiveState, now_ms: int) -> None:
    """One query for what is written, one statement for what changed; the rest is memory."""
    sentences: dict[tuple[object, ...], str] = {}
    sentence: str | None
    changes: dict[UUID, str] = {}
    rows = session.execute(
        select(JobRow.id, JobRow.reason, JobRow.not_before, JobRow.retry_at).where(_WAITS).order_by(JobRow.id)
    )
    for job_id, written, not_before, retry_at in rows:
        if retry_at is not None and unix_ms(retry_at) > now_ms:
            continue  # it says what became of the attempt before
        if not_before is not None and unix_ms(not_before) > now_ms:
            sentence = f"asked not to start before {not_before:%Y-%m-%d %H:%M:%S} UTC"
        else:
            sentence = _sentence(live, job_id, now_ms, sentences)
        if sentence is not None and sentence != written:
            changes[job_id] = sentence
    if changes:
        run(session, _WRITE, (array(changes), array_of_text(changes.values())))


def _sentence(
    live: LiveState, job_id: UUID, now_ms: int, sentences: dict[tuple[object, ...], str]
) -> str | None:
    aside = live.set_aside.get(job_id)
    if aside is not None:
        return aside
    queued = live.policy.queued.get(str(job_id))
    if queued is None or live.is_shelved(job_id, now_ms):
        return None  # what shelved it has said why
    alike = _alike(queued)
    if alike is None:
        return explain(live.policy, str(job_id), now_ms).sentence
    if alike not in sentences:
        sentences[alike] = explain(live.policy, str(job_id), now_ms).sentence
    return sentences[alike]


def _alike(queued: QueuedJob) -> tuple[object, ...] | None:
    """What decides about the reason of a job that waits for nothing but room, quota and its turn."""
    if not queued.ready:
        return None
    job = queued.job
    return (queued.leaf.name, queued.shape.number, job.user, job.array_id)
