"""Gap cases: runs whose records do not reach their end. What lies behind a gap is not billed; the case says why.

A run's records are numbered from 0 without a gap up to one marked final, so what is missing is known exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from compute_hub.metering.tables import GapCaseRow, UsageRecordRow
from scheduler.tables import RunRow


@dataclass(frozen=True)
class GapCase:
    """A case and whether the record it waits for has arrived since."""

    case: GapCaseRow
    node: str
    filled: bool


def open_gap_cases(session: Session, job_id: UUID, at: datetime) -> None:
    """Open a case for every run of a job whose records stop before their end. Opening it again does nothing.

    A run that never started has no records and no case.
    """
    numbers: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    runs = session.execute(
        select(RunRow.attempt, RunRow.rank).where(
            RunRow.job_id == job_id, RunRow.end_reason.is_distinct_from("never_started")
        )
    )
    for attempt, rank in runs:
        numbers[attempt, rank] = []
    records = session.execute(
        select(UsageRecordRow.attempt, UsageRecordRow.rank, UsageRecordRow.k, UsageRecordRow.final)
        .where(UsageRecordRow.job_id == job_id)
        .order_by(UsageRecordRow.attempt, UsageRecordRow.rank, UsageRecordRow.k)
    )
    for attempt, rank, k, final in records:
        numbers.setdefault((attempt, rank), []).append((k, final))
    cases = [
        {"job_id": job_id, "attempt": attempt, "rank": rank, "opened_at": at} | gap
        for (attempt, rank), seen in sorted(numbers.items())
        if (gap := first_gap(seen)) is not None
    ]
    if cases:
        session.execute(insert(GapCaseRow).values(cases).on_conflict_do_nothing())


def first_gap(seen: Sequence[tuple[int, bool]]) -> dict[str, object] | None:
    """The first number missing among records in order, each with whether it is final; None when all are there."""
    expected = 0
    for k, _ in seen:
        if k != expected:
            return {"first_missing_k": expected, "kind": "missing_record"}
        expected += 1
    if seen and seen[-1][1]:
        return None
    return {"first_missing_k": expected, "kind": "no_final_record"}


def list_gap_cases(
    session: Session, *, limit: int, after: tuple[UUID, int, int, int] | None = None
) -> list[GapCase]:
    """Cases by job, attempt, rank and number, from behind `after` on."""
    place = (GapCaseRow.job_id, GapCaseRow.attempt, GapCaseRow.rank, GapCaseRow.first_missing_k)
    filled = (
        select(UsageRecordRow.id)
        .where(
            UsageRecordRow.job_id == GapCaseRow.job_id,
            UsageRecordRow.attempt == GapCaseRow.attempt,
            UsageRecordRow.rank == GapCaseRow.rank,
            UsageRecordRow.k == GapCaseRow.first_missing_k,
        )
        .exists()
    )
    node = (
        select(RunRow.node)
        .where(
            RunRow.job_id == GapCaseRow.job_id,
            RunRow.attempt == GapCaseRow.attempt,
            RunRow.rank == GapCaseRow.rank,
        )
        .scalar_subquery()
    )
    query = select(GapCaseRow, func.coalesce(node, ""), filled).order_by(*place).limit(limit)
    if after is not None:
        query = query.where(func.row(*place) > func.row(*after))
    return [GapCase(*row) for row in session.execute(query)]
