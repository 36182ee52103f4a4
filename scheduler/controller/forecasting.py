"""Why a job waits and when it will probably start, worked out on a picture of one's own, beside the controller."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.clock import from_unix_ms, unix_ms
from scheduler.controller.live_state import LiveState
from scheduler.policy.forecast import estimate_starts
from scheduler.policy.model import Queue
from scheduler.policy.reasons import explain
from scheduler.policy.settings import PolicySettings, policy_named
from scheduler.tables import JobRow, NodeRow

LIVE_JOBS_MAX: Final = 1000
"""With more jobs waiting and running no picture is built for one question; what the controller wrote has to do."""

STEPS_MAX: Final = 500


@dataclass(frozen=True)
class Explanation:
    """Why a job is where it is. `code` is one of `scheduler.policy.reasons`, or None when no rule of it applies."""

    code: str | None
    sentence: str
    start_estimate: datetime | None


def explain_job(
    session: Session,
    job: JobRow,
    at: datetime,
    *,
    policy: PolicySettings | None = None,
    queues: Sequence[Queue] = (),
) -> Explanation:
    """Play the policy forward from the tables as they are. Reads only.

    The estimate knows of no job that has not been submitted yet, evicts nobody, and rests on predicted durations.
    """
    written = Explanation(None, job.reason, None)
    if job.state != "queued" or job.stop_reason is not None:
        return written
    now_ms, name = unix_ms(at), str(job.id)
    live = _picture(session, now_ms, policy, queues)
    if live is None or name not in live.policy.queued:
        return written
    live.plan(now_ms)
    starts = estimate_starts(live.policy, frozenset({name}), now_ms, STEPS_MAX)
    why = explain(live.policy, name, now_ms)
    estimate = from_unix_ms(starts[name]) if name in starts else None
    # What only the controller knows, such as missing funds, stands in the reason it wrote.
    sentence = job.reason if why.code == "order" else why.sentence
    return Explanation(why.code, sentence, estimate)


def estimate_waiting(
    session: Session, job_ids: Sequence[UUID], at: datetime, *, queues: Sequence[Queue] = ()
) -> dict[UUID, datetime]:
    """As `explain_job`, for several waiting jobs on one picture: those whose start comes into sight. Reads only."""
    now_ms = unix_ms(at)
    live = _picture(session, now_ms, None, queues) if job_ids else None
    if live is None:
        return {}
    names = frozenset(name for name in map(str, job_ids) if name in live.policy.queued)
    if not names:
        return {}
    live.plan(now_ms)
    starts = estimate_starts(live.policy, names, now_ms, STEPS_MAX)
    return {UUID(name): from_unix_ms(start_ms) for name, start_ms in starts.items()}


def _picture(
    session: Session, now_ms: int, policy: PolicySettings | None, queues: Sequence[Queue]
) -> LiveState | None:
    """The tables as the policy sees them; None when there are too many live jobs."""
    live_jobs = session.scalar(select(func.count()).select_from(JobRow).where(JobRow.ended_at.is_(None)))
    if live_jobs is None or live_jobs > LIVE_JOBS_MAX:
        return None
    up = frozenset(session.scalars(select(NodeRow.name).where(NodeRow.state == "up")))
    live = LiveState(policy or policy_named("default"), queues)
    live.refresh(session, now_ms, up)
    return live
