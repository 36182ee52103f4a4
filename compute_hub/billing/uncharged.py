"""Usage that waits to be charged: which jobs have some, what of it is due, and whether a job's last record is there.

A record is due when all records of its run before it are; behind a gap it waits, and is forgone when the job has been
over for `LATE`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Select, bindparam, or_, select, tuple_
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import DAY_BEGINS_MS, Span, month_of
from compute_hub.billing.pages import AFTER, Pages
from compute_hub.billing.tables import JobFundingRow
from compute_hub.metering.tables import UnchargedUsageRow, UsageRecordRow
from kernel.bulk import among, array, run
from scheduler.tables import JobRow, RunRow

LATE: Final = timedelta(minutes=10)
"""How long after a job's end its last records are waited for, before what is held for it is given back."""

RECORDS_MAX: Final = 5_000
"""Of one job charged at once, or some more of equal number, lowest numbers first; the rest is charged afterwards."""

_STREAKS: Final = b"""
    WITH waiting AS (
        SELECT u.job_id, u.attempt, u.rank, u.k, r.model, r.slot_ms, x.start_ms, x.start_ms + r.duration_ms AS end_ms,
               CASE WHEN r.duration_ms > 0 AND mod(r.slot_ms, r.duration_ms) = 0 THEN r.slot_ms / r.duration_ms END
                 AS slots,
               (greatest(x.start_ms, x.start_ms + r.duration_ms - 1) + %s) / 86400000 AS day,
               CASE WHEN h.ends_ms IS NULL THEN 0 ELSE width_bucket(x.start_ms + r.duration_ms - 1, h.ends_ms) END
                 AS ends_before
          FROM unnest(%s::uuid[], %s::bigint[]) AS j(job_id, last_k)
         CROSS JOIN LATERAL (
               SELECT array_agg(e.ends_ms ORDER BY e.ends_ms) AS ends_ms
                 FROM (SELECT DISTINCT (date_part('epoch', s.serves_until) * 1000000)::bigint / 1000 AS ends_ms
                         FROM hold_segments s
                        WHERE s.job_id = j.job_id AND s.serves_until IS NOT NULL
                          AND s.captured_micros < s.cost_micros) e) h
          JOIN uncharged_usage u ON u.job_id = j.job_id AND u.k <= j.last_k
          JOIN usage_records r ON r.job_id = u.job_id AND r.attempt = u.attempt AND r.rank = u.rank AND r.k = u.k,
               LATERAL (SELECT (date_part('epoch', r.started_at) * 1000000)::bigint / 1000 + r.offset_ms) x(start_ms)),
    cut AS (
        SELECT *, (k, start_ms, slots, day, ends_before) IS DISTINCT FROM
                  (lag(k) OVER run + 1, lag(end_ms) OVER run, lag(slots) OVER run, lag(day) OVER run,
                   lag(ends_before) OVER run)
                  OR slots IS NULL AS begins
          FROM waiting WINDOW run AS (PARTITION BY job_id, attempt, rank ORDER BY k)),
    numbered AS (
        SELECT *, count(*) FILTER (WHERE begins) OVER (PARTITION BY job_id, attempt, rank ORDER BY k) AS streak
          FROM cut),
    joined AS (
        SELECT job_id, attempt, rank, min(k) AS first_k, max(k) + 1 AS until_k, min(model) AS model,
               min(start_ms) AS start_ms, max(end_ms) AS end_ms, sum(slot_ms)::bigint AS slot_ms,
               min(ends_before) AS ends_before
          FROM numbered GROUP BY job_id, attempt, rank, streak)
    SELECT j.*, first_k = 0 OR EXISTS (
               SELECT FROM usage_records p
                WHERE p.job_id = j.job_id AND p.attempt = j.attempt AND p.rank = j.rank AND p.k = j.first_k - 1)
      FROM joined j ORDER BY job_id, attempt, rank, first_k
"""
_LAST_OF_MANY: Final = b"""
    SELECT many.job_id, (
        SELECT k FROM uncharged_usage u WHERE u.job_id = many.job_id ORDER BY k OFFSET %s LIMIT 1)
      FROM (SELECT job_id FROM uncharged_usage WHERE job_id = ANY (%s::uuid[])
             GROUP BY job_id HAVING count(*) > %s) many
"""
_K_MAX: Final = 2**62


@dataclass(frozen=True, slots=True)
class Streak:
    """Records of one run that follow each other without a gap, at the same width, within one local day.

    So one price list, one month and one charge hold for all of them; they are the numbers from `first_k` up to
    `until_k`. Records whose width is no whole number stand alone. `ends_before` is how many ends of what is set aside
    for the job they come after.
    """

    job_id: UUID
    attempt: int
    rank: int
    first_k: int
    until_k: int
    model: str
    span: Span
    slot_ms: int
    ends_before: int
    preceded: bool

    @property
    def month(self) -> str:
        """The month its last millisecond lies in, and that of each of its records."""
        return month_of(max(self.span.start_ms, self.span.end_ms - 1))


@dataclass
class Waiting:
    """A job's usage that waits: what is due, what is behind a gap, and whether there is more."""

    due: list[Streak] = field(default_factory=list)
    behind: list[Streak] = field(default_factory=list)
    more: bool = False


def jobs_to_charge(session: Session, limit: int, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs with usage to charge, in order of their tenants and ids, from behind `after` on."""
    return _TO_CHARGE(session, limit, after)


def jobs_to_release(session: Session, limit: int, at: datetime, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs that are over and fully charged: every run's final record is there, or was waited for long enough."""
    return _TO_RELEASE(session, limit, after, waited_for=at - LATE)


def jobs_with_all_records(session: Session, job_ids: Collection[UUID]) -> set[UUID]:
    """Those of these jobs of which no run's final record is still awaited."""
    if not job_ids:
        return set()
    return set(job_ids) - set(session.scalars(_awaited_runs().where(among(RunRow.job_id, job_ids))))


def waiting_usage(session: Session, job_ids: Collection[UUID]) -> dict[UUID, Waiting]:
    """What waits of some jobs, in order of attempt, rank and number.

    The database joins the records, so that what a charge costs hardly depends on how many there are.
    """
    last_k = dict(run(session, _LAST_OF_MANY, (RECORDS_MAX - 1, array(job_ids), RECORDS_MAX)))
    bounds = array(last_k.get(job_id, _K_MAX) for job_id in job_ids)
    found = {job_id: Waiting(more=job_id in last_k) for job_id in job_ids}
    before: Streak | None = None
    reached = False
    for row in run(session, _STREAKS, (DAY_BEGINS_MS, array(job_ids), bounds)):
        job_id, attempt, rank, first_k, until_k, model, start_ms, end_ms, slot_ms, ends_before, preceded = row
        span = Span(start_ms, end_ms)
        streak = Streak(
            job_id, attempt, rank, first_k, until_k, model, span, slot_ms, ends_before, preceded=preceded
        )
        # Behind a streak of the same batch, its own fate decides; behind anything else, whether that is there at all.
        if before is None or not follows(before, streak):
            reached = streak.preceded
        waiting = found[streak.job_id]
        (waiting.due if reached else waiting.behind).append(streak)
        before = streak
    return found


def follows(before: Streak, after: Streak) -> bool:
    """Whether the second begins in the same run with the record after the first one's last."""
    return (before.job_id, before.attempt, before.rank, before.until_k) == (
        after.job_id,
        after.attempt,
        after.rank,
        after.first_k,
    )


def by_charge(streaks: Sequence[Streak]) -> list[tuple[tuple[int, str, str], list[Streak]]]:
    """Usage of a job by attempt, model and month: what becomes one charge.

    Where something that is set aside stops paying, what was used until then is charged by itself, however late that is.
    """
    found: dict[tuple[int, str, str, int], list[Streak]] = {}
    for streak in streaks:
        found.setdefault((streak.attempt, streak.model, streak.month, streak.ends_before), []).append(streak)
    return [(key[:3], some) for key, some in sorted(found.items())]


def _awaited_runs() -> Select[UUID]:
    """The jobs of runs that began and whose final record is not there."""
    final = select(UsageRecordRow.id).where(
        UsageRecordRow.job_id == RunRow.job_id,
        UsageRecordRow.attempt == RunRow.attempt,
        UsageRecordRow.rank == RunRow.rank,
        UsageRecordRow.final,
    )
    return select(RunRow.job_id).where(RunRow.end_reason != "never_started", ~final.exists())


def _to_charge() -> Pages:
    waiting = select(UnchargedUsageRow.job_id).distinct().subquery()
    place = (JobFundingRow.tenant_id, JobFundingRow.job_id)
    query = (
        select(JobFundingRow.job_id).join(waiting, waiting.c.job_id == JobFundingRow.job_id).order_by(*place)
    )
    last = select(JobFundingRow.tenant_id).where(JobFundingRow.job_id == AFTER).scalar_subquery()
    return Pages(query, tuple_(*place) > tuple_(last, AFTER))


def _to_release() -> Pages:
    uncharged = select(UnchargedUsageRow.job_id).where(UnchargedUsageRow.job_id == JobFundingRow.job_id)
    awaited = _awaited_runs().where(RunRow.job_id == JobFundingRow.job_id)
    query = (
        select(JobFundingRow.job_id)
        .join(JobRow, JobRow.id == JobFundingRow.job_id)
        .where(
            JobFundingRow.state == "ended",
            ~uncharged.exists(),
            or_(~awaited.exists(), JobRow.ended_at < bindparam("waited_for", type_=JobRow.ended_at.type)),
        )
        .order_by(JobFundingRow.job_id)
    )
    return Pages(query, JobFundingRow.job_id > AFTER)


_TO_CHARGE: Final = _to_charge()
_TO_RELEASE: Final = _to_release()
