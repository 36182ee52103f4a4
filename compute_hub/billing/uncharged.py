"""Usage that waits to be charged: which jobs have some, what of it is due, and whether a job's last record is there.

A record is due when all records of its run before it are; behind a gap it waits, and is forgone when the job has been
over for `LATE`.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, Select, cast, extract, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import Span, month_of
from compute_hub.billing.domain.rating import Usage
from compute_hub.billing.tables import JobFundingRow
from compute_hub.metering.tables import UnchargedUsageRow, UsageRecordRow
from kernel.bulk import among
from kernel.ids import derived_id
from scheduler.tables import JobRow, RunRow

LATE: Final = timedelta(minutes=10)
"""How long after a job's end its last records are waited for, before what is held for it is given back."""

RECORDS_MAX: Final = 5_000
"""Of one job charged at once, lowest numbers first; what is left is charged with the next batch."""


@dataclass(frozen=True, slots=True)
class Record:
    """What of a usage record decides about its charge."""

    id: UUID
    job_id: UUID
    attempt: int
    rank: int
    k: int
    model: str
    span: Span
    slot_ms: int

    @property
    def month(self) -> str:
        """The month its last millisecond lies in."""
        return month_of(max(self.span.start_ms, self.span.end_ms - 1))

    def continued_by(self, other: "Record") -> bool:
        """Whether another record is of the same run, begins where this one ends and has the same width."""
        return (
            (self.job_id, self.attempt, self.rank, self.span.end_ms)
            == (other.job_id, other.attempt, other.rank, other.span.start_ms)
            and self.span.duration_ms > 0
            and other.span.duration_ms > 0
            and self.slot_ms * other.span.duration_ms == other.slot_ms * self.span.duration_ms
        )


@dataclass
class Waiting:
    """A job's records that wait: those that are due, those behind a gap, and whether there may be more."""

    due: list[Record] = field(default_factory=list)
    behind: list[Record] = field(default_factory=list)
    more: bool = False


def jobs_to_charge(session: Session, limit: int, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs with usage to charge, in order of their tenants and ids, from behind `after` on."""
    waiting = select(UnchargedUsageRow.job_id).distinct().subquery()
    place = (JobFundingRow.tenant_id, JobFundingRow.job_id)
    query = (
        select(JobFundingRow.job_id)
        .join(waiting, waiting.c.job_id == JobFundingRow.job_id)
        .order_by(*place)
        .limit(limit)
    )
    if after is not None:
        last = select(JobFundingRow.tenant_id).where(JobFundingRow.job_id == after).scalar_subquery()
        query = query.where(tuple_(*place) > tuple_(last, literal(after)))
    return session.scalars(query).all()


def jobs_to_release(session: Session, limit: int, at: datetime, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs that are over and fully charged: every run's final record is there, or was waited for long enough."""
    uncharged = select(UnchargedUsageRow.record_id).where(UnchargedUsageRow.job_id == JobFundingRow.job_id)
    awaited = _awaited_runs().where(RunRow.job_id == JobFundingRow.job_id)
    query = (
        select(JobFundingRow.job_id)
        .join(JobRow, JobRow.id == JobFundingRow.job_id)
        .where(
            JobFundingRow.state == "ended",
            ~uncharged.exists(),
            or_(~awaited.exists(), JobRow.ended_at < at - LATE),
        )
        .order_by(JobFundingRow.job_id)
        .limit(limit)
    )
    return session.scalars(query if after is None else query.where(JobFundingRow.job_id > after)).all()


def jobs_with_all_records(session: Session, job_ids: Collection[UUID]) -> set[UUID]:
    """Those of these jobs of which no run's final record is still awaited."""
    if not job_ids:
        return set()
    return set(job_ids) - set(session.scalars(_awaited_runs().where(among(RunRow.job_id, job_ids))))


def waiting_usage(session: Session, job_ids: Collection[UUID]) -> dict[UUID, Waiting]:
    """What waits of some jobs, in order of attempt, rank and number."""
    records = _records(session, job_ids)
    reached = _reached(session, records)
    found: dict[UUID, Waiting] = {job_id: Waiting() for job_id in job_ids}
    known: dict[tuple[UUID, int, int], int] = {}
    for record in records:  # in order of their numbers, so a predecessor is looked at before its successor
        run = (record.job_id, record.attempt, record.rank)
        waiting = found[record.job_id]
        if record.k == 0 or known.get(run) == record.k - 1 or record.id in reached:
            known[run] = record.k
            waiting.due.append(record)
        else:
            waiting.behind.append(record)
    for waiting in found.values():
        waiting.more = len(waiting.due) + len(waiting.behind) == RECORDS_MAX
    return found


def by_charge(
    records: Sequence[Record], ends_ms: Sequence[int] = ()
) -> list[tuple[tuple[int, str, str], list[Record]]]:
    """Records of a job by attempt, model and month: what becomes one charge.

    At `ends_ms`, which are in order, something that is set aside stops paying, so what was used until then is charged
    by itself, however late that is.
    """
    found: dict[tuple[int, str, str, int], list[Record]] = {}
    for record in records:
        place = bisect_left(ends_ms, record.span.end_ms)
        found.setdefault((record.attempt, record.model, record.month, place), []).append(record)
    return [(key[:3], some) for key, some in sorted(found.items())]


def joined(records: Sequence[Record]) -> list[Usage]:
    """Records as usage to be priced; those of one run that follow each other at the same width are one stretch."""
    found: list[Usage] = []
    last: Record | None = None
    for record in records:
        usage = Usage(record.span, record.slot_ms)
        if last is not None and last.continued_by(record) and found:
            before = found.pop()
            span = Span(before.span.start_ms, record.span.end_ms)
            usage = Usage(span, before.slot_ms + record.slot_ms)
        found.append(usage)
        last = record
    return found


def _awaited_runs() -> Select[UUID]:
    """The jobs of runs that began and whose final record is not there."""
    final = select(UsageRecordRow.id).where(
        UsageRecordRow.job_id == RunRow.job_id,
        UsageRecordRow.attempt == RunRow.attempt,
        UsageRecordRow.rank == RunRow.rank,
        UsageRecordRow.final,
    )
    return select(RunRow.job_id).where(RunRow.end_reason != "never_started", ~final.exists())


def _records(session: Session, job_ids: Collection[UUID]) -> list[Record]:
    """At most `RECORDS_MAX` of each job."""
    started_ms = cast(func.floor(extract("epoch", UsageRecordRow.started_at) * 1000), BigInteger)
    place = func.row_number().over(
        partition_by=UsageRecordRow.job_id,
        order_by=(UsageRecordRow.k, UsageRecordRow.attempt, UsageRecordRow.rank),
    )
    waiting = (
        select(
            UsageRecordRow.id,
            UsageRecordRow.job_id,
            UsageRecordRow.attempt,
            UsageRecordRow.rank,
            UsageRecordRow.k,
            UsageRecordRow.model,
            (started_ms + UsageRecordRow.offset_ms).label("start_ms"),
            UsageRecordRow.duration_ms,
            UsageRecordRow.slot_ms,
            place.label("place"),
        )
        .join(UnchargedUsageRow, UnchargedUsageRow.record_id == UsageRecordRow.id)
        .where(among(UnchargedUsageRow.job_id, job_ids))
        .subquery()
    )
    rows = session.execute(
        select(waiting)
        .where(waiting.c.place <= RECORDS_MAX)
        .order_by(waiting.c.job_id, waiting.c.attempt, waiting.c.rank, waiting.c.k)
    )
    return [
        Record(id_, job_id, attempt, rank, k, model, Span(start_ms, start_ms + duration_ms), slot_ms)
        for id_, job_id, attempt, rank, k, model, start_ms, duration_ms, slot_ms, _ in rows
    ]


def _reached(session: Session, records: Sequence[Record]) -> set[UUID]:
    """The records whose predecessor was charged before: only of those that do not follow one of the same batch."""
    before: dict[UUID, UUID] = {}
    last: Record | None = None
    for record in records:
        follows = last is not None and (last.job_id, last.attempt, last.rank, last.k) == (
            record.job_id,
            record.attempt,
            record.rank,
            record.k - 1,
        )
        if record.k > 0 and not follows:
            cause = (record.job_id, record.attempt, record.rank, record.k - 1)
            before[derived_id("usage", *cause)] = record.id
        last = record
    if not before:
        return set()
    waiting = select(UnchargedUsageRow.record_id).where(UnchargedUsageRow.record_id == UsageRecordRow.id)
    known = session.scalars(
        select(UsageRecordRow.id).where(among(UsageRecordRow.id, before), ~waiting.exists())
    )
    return {before[record_id] for record_id in known}
