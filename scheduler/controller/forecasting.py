"""Why a job waits and when it will probably start, worked out on a picture of one's own, beside the controller."""

import threading
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
"""With more jobs waiting and running nothing is played forward: no estimate of the start, and no what-if."""

STEPS_MAX: Final = 500


@dataclass(frozen=True)
class Explanation:
    """Why a job is where it is. `code` is one of `scheduler.policy.reasons`, or None when no rule of it applies."""

    code: str | None
    sentence: str
    start_estimate: datetime | None


class Forecaster:
    """Keeps a picture of the centre from one question to the next, so that a question costs what has changed since.

    For many threads; one question is answered at a time. Reads only.
    """

    def __init__(self, queues: Sequence[Queue] = (), policy: PolicySettings | None = None) -> None:
        self._queues = tuple(queues)
        self._policy = policy or policy_named("default")
        self._live = LiveState(self._policy, self._queues)
        self._now_ms = 0
        self._turn = threading.Lock()

    def explain(self, session: Session, job: JobRow, at: datetime) -> Explanation:
        """Why a job of the database is where it is; when it will start, unless too many jobs are live to play."""
        if job.state != "queued" or job.stop_reason is not None:
            return Explanation(None, job.reason, None)
        with self._turn:
            self._now_ms = max(self._now_ms, unix_ms(at))
            try:
                return _explained(session, self._live, job, self._now_ms)
            except BaseException:
                self._live = LiveState(self._policy, self._queues)  # half a picture is worse than none
                raise


def explain_job(
    session: Session,
    job: JobRow,
    at: datetime,
    *,
    policy: PolicySettings | None = None,
    queues: Sequence[Queue] = (),
) -> Explanation:
    """The same of a job that only this transaction has, on a picture of its own, which is then thrown away."""
    if job.state != "queued" or job.stop_reason is not None or _live_jobs(session) > LIVE_JOBS_MAX:
        return Explanation(None, job.reason, None)
    return _explained(session, LiveState(policy or policy_named("default"), queues), job, unix_ms(at))


def _explained(session: Session, live: LiveState, job: JobRow, now_ms: int) -> Explanation:
    """Play the policy forward from the tables as they are.

    The estimate knows of no job that has not been submitted yet, evicts nobody, and rests on predicted durations.
    """
    name = str(job.id)
    _refresh(session, live, now_ms)
    if name not in live.policy.queued:
        return Explanation(None, job.reason, None)
    live.plan(now_ms)
    estimate = None
    if len(live.policy.queued) + len(live.policy.running) <= LIVE_JOBS_MAX:
        starts = estimate_starts(live.policy, frozenset({name}), now_ms, STEPS_MAX)
        estimate = from_unix_ms(starts[name]) if name in starts else None
    why = explain(live.policy, name, now_ms)
    # What only the controller knows, such as missing funds, stands in the reason it wrote.
    sentence = job.reason if why.code == "order" else why.sentence
    return Explanation(why.code, sentence, estimate)


def estimate_waiting(
    session: Session, job_ids: Sequence[UUID], at: datetime, *, queues: Sequence[Queue] = ()
) -> dict[UUID, datetime]:
    """As `explain_job`, for several waiting jobs on one picture: those whose start comes into sight. Reads only."""
    if not job_ids or _live_jobs(session) > LIVE_JOBS_MAX:
        return {}
    live, now_ms = LiveState(policy_named("default"), queues), unix_ms(at)
    _refresh(session, live, now_ms)
    names = frozenset(name for name in map(str, job_ids) if name in live.policy.queued)
    if not names:
        return {}
    live.plan(now_ms)
    starts = estimate_starts(live.policy, names, now_ms, STEPS_MAX)
    return {UUID(name): from_unix_ms(start_ms) for name, start_ms in starts.items()}


def _refresh(session: Session, live: LiveState, now_ms: int) -> None:
    live.refresh(session, now_ms, frozenset(session.scalars(select(NodeRow.name).where(NodeRow.state == "up"))))


def _live_jobs(session: Session) -> int:
    count = session.scalar(select(func.count()).select_from(JobRow).where(JobRow.ended_at.is_(None)))
    return 0 if count is None else count
