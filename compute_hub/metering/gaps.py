"""Gap cases: runs whose records do not reach their end. What lies behind a gap is not billed; the case says why.

A run's records are numbered from 0 without a gap up to one marked final, so what is missing is known exactly.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from compute_hub.metering.tables import GapCaseRow, UsageRecordRow
from scheduler.tables import RunRow


@dataclass(frozen=True)
class GapCase:
    """A case and whether the record it waits for has arrived since."""

    case: GapCaseRow
    node: str
    filled: bool


_GAPS: Final = text("""
    WITH seen AS (
        SELECT runs.attempt, runs.rank, count(k) AS records, coalesce(max(k), -1) AS last,
               coalesce(bool_or(final), false) AS ended
        FROM runs LEFT JOIN usage_records ON usage_records.job_id = runs.job_id
             AND usage_records.attempt = runs.attempt AND usage_records.rank = runs.rank
        WHERE runs.job_id = :job AND runs.end_reason IS DISTINCT FROM 'never_started'
        GROUP BY runs.attempt, runs.rank)
    INSERT INTO gap_cases (job_id, attempt, rank, first_missing_k, kind, opened_at)
    SELECT :job, attempt, rank, last + 1, 'no_final_record', :at FROM seen WHERE records = last + 1 AND NOT ended
    UNION ALL
    SELECT :job, attempt, rank, (
        SELECT coalesce(min(k), -1) + 1 FROM usage_records AS here
        WHERE job_id = :job AND here.attempt = seen.attempt AND here.rank = seen.rank
          AND EXISTS (SELECT FROM usage_records AS first WHERE first.job_id = :job AND first.attempt = seen.attempt
                      AND first.rank = seen.rank AND first.k = 0)
          AND NOT EXISTS (SELECT FROM usage_records AS next WHERE next.job_id = :job
                          AND next.attempt = seen.attempt AND next.rank = seen.rank AND next.k = here.k + 1)
        ), 'missing_record', :at FROM seen WHERE records < last + 1
    ON CONFLICT DO NOTHING
""")


def open_gap_cases(session: Session, job_id: UUID, at: datetime) -> None:
    """Open a case for every run of a job whose records stop before their end. Opening it again does nothing.

    A run that never started has no records and no case. The database does the looking: a job may have millions.
    """
    session.execute(_GAPS, {"job": job_id, "at": at})


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
