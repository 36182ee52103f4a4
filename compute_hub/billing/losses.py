"""What the centre lost is not paid for: an attempt that ended through its fault is given back, whole and once.

Which attempts those are the scheduler writes into the job (`lost_attempts`): lost with a node, or stopped for another
job. One that failed through its own program is paid, also where it is tried again. What was charged of a lost one goes
back to the lots it came from; what is reported of it later is charged to nobody.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, any_, select
from sqlalchemy.orm import Session

from compute_hub.billing.pages import AFTER, Pages
from compute_hub.billing.tables import ChargeRow, JobFundingRow, LostAttemptRow
from kernel.errors import HubError
from scheduler.controller.settling import CENTRES_STOPS, INFRASTRUCTURE
from scheduler.tables import JobRow, RunRow
from vouchers.restoration import restore_charge

BY: Final = "biller"


def jobs_with_losses(session: Session, limit: int, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs not yet settled with charges of lost attempts that were not looked at, in order of their ids."""
    return _LOST(session, limit, after)


def is_lost(session: Session, job_id: UUID, attempt: int) -> bool:
    """Whether the centre lost an attempt, as far as is known now."""
    return attempt in session.get_one(JobRow, job_id, populate_existing=True).lost_attempts


def restore_losses(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what lost attempts of a job were charged. The caller has the job's funding locked."""
    query = (
        select(ChargeRow)
        .join(JobRow, JobRow.id == ChargeRow.job_id)
        .where(ChargeRow.job_id == job_id, _lost(), ~_settled().exists())
        .order_by(ChargeRow.attempt, ChargeRow.n.desc())
    )
    by_attempt: dict[int, list[ChargeRow]] = {}
    for charge in session.scalars(query):
        by_attempt.setdefault(charge.attempt, []).append(charge)
    for attempt, charges in by_attempt.items():
        _restore(session, job_id, attempt, charges, at)


def _restore(session: Session, job_id: UUID, attempt: int, charges: Sequence[ChargeRow], at: datetime) -> None:
    reason = f"attempt {attempt} was lost ({_why(session, job_id, attempt)})"
    restored, refusals = 0, []
    for charge in charges:
        if charge.amount_micros == 0:
            continue
        try:
            with session.begin_nested():
                restored += restore_charge(session, charge.id, reason=reason, by=BY, at=at)
        except HubError as refusal:
            refusals.append(str(refusal))
    session.add(
        LostAttemptRow(
            job_id=job_id,
            attempt=attempt,
            reason=reason,
            restored_micros=restored,
            refused=" ".join(refusals),
            restored_at=at,
        )
    )
    session.flush()


def _why(session: Session, job_id: UUID, attempt: int) -> str:
    ends = session.scalars(
        select(RunRow.end_reason)
        .where(RunRow.job_id == job_id, RunRow.attempt == attempt, RunRow.end_reason.is_not(None))
        .order_by(RunRow.ended_at, RunRow.rank)
    ).all()
    return next((end for end in ends if end in INFRASTRUCTURE | CENTRES_STOPS), None) or "it was queued again"


def _lost() -> ColumnElement[bool]:
    """In a query of charges with their jobs: those of attempts that the centre lost."""
    return ChargeRow.attempt == any_(JobRow.lost_attempts)


def _settled() -> Select[int]:
    return select(LostAttemptRow.attempt).where(
        LostAttemptRow.job_id == ChargeRow.job_id, LostAttemptRow.attempt == ChargeRow.attempt
    )


_LOST: Final = Pages(
    select(ChargeRow.job_id)
    .join(JobFundingRow, JobFundingRow.job_id == ChargeRow.job_id)
    .join(JobRow, JobRow.id == ChargeRow.job_id)
    .where(JobFundingRow.state != "released", _lost(), ~_settled().exists())
    .distinct()
    .order_by(ChargeRow.job_id),
    ChargeRow.job_id > AFTER,
)
