"""The money of jobs that wait to run again: what their last attempt did not use goes back until the next admission.

A hold is given back when every record of the attempts that are paid for is there and charged, so what was used stays
covered; until then, and if the job is admitted before, it is kept and the next stretch extends it. The number of
statements does not depend on the number of jobs.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.billing.pages import AFTER, Pages
from compute_hub.billing.tables import JobFundingRow
from compute_hub.metering.tables import UnchargedUsageRow, UsageRecordRow
from kernel.bulk import among, array, run
from scheduler.tables import JobRow, RunRow
from vouchers.enterprises import lock_payers
from vouchers.redemption import give_back_holds

_COVERED: Final = b"""
    WITH waiting AS (
        SELECT * FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[]) AS u(job_id, slot_ms, micros)),
    timed AS (
        UPDATE job_funded_time t
           SET slot_ms = (SELECT coalesce(sum(x.slot_ms), 0) FROM usage_totals x
                           WHERE x.job_id = t.job_id AND x.model = t.model)
          FROM waiting WHERE t.job_id = waiting.job_id)
    UPDATE job_funding f SET state = 'pending', held_slot_ms = waiting.slot_ms, held_micros = waiting.micros
      FROM waiting WHERE f.job_id = waiting.job_id
"""
"""A job is covered for what was metered of it, and what is set aside for it is what that cost."""


def jobs_to_give_back(session: Session, limit: int, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs that wait to run again and of whose paid attempts nothing is missing and nothing uncharged."""
    return _TO_GIVE_BACK(session, limit, after)


def give_back_waiting(session: Session, job_ids: Collection[UUID], at: datetime) -> list[UUID]:
    """Give back what is set aside for these jobs if they still wait; the jobs.

    Tenants whose money is being moved just now are left for later, and so are jobs that somebody else has.
    """
    funding = (JobFundingRow.tenant_id, JobFundingRow.job_id)
    tenants = session.scalars(
        select(JobFundingRow.tenant_id).where(among(JobFundingRow.job_id, job_ids)).distinct()
    ).all()
    mine = lock_payers(session, tenants, wait=False)
    waiting = session.scalars(
        select(JobFundingRow.job_id)
        .where(
            among(JobFundingRow.job_id, job_ids),
            among(JobFundingRow.tenant_id, mine),
            JobFundingRow.state == "waiting",
        )
        .order_by(*funding)
        .with_for_update(skip_locked=True)
    ).all()
    if not waiting:
        return []
    left = give_back_holds(session, waiting, at)
    columns = (
        array(waiting),
        array(left[job_id].card_ms * 1000 if job_id in left else 0 for job_id in waiting),
        array(left[job_id].cost_micros if job_id in left else 0 for job_id in waiting),
    )
    run(session, _COVERED, columns)
    return list(waiting)


def _to_give_back() -> Pages:
    uncharged = select(UnchargedUsageRow.job_id).where(UnchargedUsageRow.job_id == JobFundingRow.job_id)
    final = select(UsageRecordRow.id).where(
        UsageRecordRow.job_id == RunRow.job_id,
        UsageRecordRow.attempt == RunRow.attempt,
        UsageRecordRow.rank == RunRow.rank,
        UsageRecordRow.final,
    )
    awaited = select(RunRow.id).where(
        RunRow.job_id == JobRow.id,
        RunRow.end_reason != "never_started",
        ~(RunRow.attempt == JobRow.lost_attempts.any_()),
        ~final.exists(),
    )
    query = (
        select(JobFundingRow.job_id)
        .join(JobRow, JobRow.id == JobFundingRow.job_id)
        .where(JobFundingRow.state == "waiting", ~uncharged.exists(), ~awaited.exists())
        .order_by(JobFundingRow.job_id)
    )
    return Pages(query, JobFundingRow.job_id > AFTER)


_TO_GIVE_BACK: Final = _to_give_back()
