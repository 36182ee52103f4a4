"""Charging: usage becomes a rated charge, its coverage and the captures, in one transaction per job.

The n-th charge of a job has an id derived from job and n, and the records it takes leave the queue in the same
transaction, so a killed biller is repeated, never doubled.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from compute_hub.billing.funding import charge_facts
from compute_hub.billing.rates import rate_at
from compute_hub.billing.rating import next_charge_micros
from compute_hub.billing.tables import ChargedUsageRow, ChargeRow, JobFundingRow, RateRow
from compute_hub.metering.tables import UnchargedUsageRow, UsageRecordRow
from kernel.ids import derived_id
from vouchers.capturing import capture_charge
from vouchers.domain.explanation import ROUNDING, Coverage
from vouchers.redemption import release_hold


def jobs_to_charge(session: Session, limit: int) -> Sequence[UUID]:
    """Jobs with usage to charge and money still held for it."""
    return session.scalars(
        select(UnchargedUsageRow.job_id)
        .join(JobFundingRow, JobFundingRow.job_id == UnchargedUsageRow.job_id)
        .where(JobFundingRow.state.in_(("held", "ended")))
        .distinct()
        .order_by(UnchargedUsageRow.job_id)
        .limit(limit)
    ).all()


def jobs_to_release(session: Session, limit: int) -> Sequence[UUID]:
    """Jobs that are over and fully charged."""
    uncharged = select(UnchargedUsageRow.record_id).where(UnchargedUsageRow.job_id == JobFundingRow.job_id)
    return session.scalars(
        select(JobFundingRow.job_id)
        .where(JobFundingRow.state == "ended", ~uncharged.exists())
        .order_by(JobFundingRow.job_id)
        .limit(limit)
    ).all()


def charge_job(session: Session, job_id: UUID, at: datetime) -> Sequence[ChargeRow]:
    """Charge all usage of a job that is not charged yet, one charge per rate.

    Does nothing while another biller is at the job.
    """
    funding = session.scalars(
        select(JobFundingRow).where(JobFundingRow.job_id == job_id).with_for_update(skip_locked=True)
    ).one_or_none()
    if funding is None:
        return ()
    records = session.scalars(
        select(UsageRecordRow)
        .join(UnchargedUsageRow, UnchargedUsageRow.record_id == UsageRecordRow.id)
        .where(UnchargedUsageRow.job_id == job_id)
        .order_by(UsageRecordRow.attempt, UsageRecordRow.rank, UsageRecordRow.k)
    ).all()
    by_model: dict[str, list[UsageRecordRow]] = {}
    for record in records:
        by_model.setdefault(record.model, []).append(record)
    charges = [_charge(session, funding, model, of_model, at) for model, of_model in sorted(by_model.items())]
    session.execute(
        delete(UnchargedUsageRow).where(UnchargedUsageRow.record_id.in_([record.id for record in records]))
    )
    return [charge for charge in charges if charge is not None]


def release_job(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what a finished job did not use. Does nothing while another biller is at the job."""
    funding = session.scalars(
        select(JobFundingRow)
        .where(JobFundingRow.job_id == job_id, JobFundingRow.state == "ended")
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if funding is None:
        return
    release_hold(session, job_id, at)
    funding.state = "released"


def _charge(
    session: Session, funding: JobFundingRow, model: str, records: Sequence[UsageRecordRow], at: datetime
) -> ChargeRow | None:
    slot_ms = sum(record.slot_ms for record in records)
    if slot_ms == 0:
        return None
    rate = rate_at(session, model, funding.funded_at or at)
    before = _charged_slot_ms(session, funding.job_id, rate)
    amount = next_charge_micros(before, slot_ms, rate.micros_per_card_hour)
    n = session.scalars(select(func.count()).where(ChargeRow.job_id == funding.job_id)).one()
    charge_id = derived_id("charge", funding.job_id, n)
    coverage = Coverage(0, ())
    if amount:
        facts = charge_facts(session, model, slot_ms)
        used_until = max(record.started_at + timedelta(milliseconds=record.duration_ms) for record in records)
        coverage = capture_charge(session, funding.job_id, charge_id, amount, facts, at, used_until=used_until)
    charge = ChargeRow(
        id=charge_id,
        job_id=funding.job_id,
        tenant_id=funding.tenant_id,
        n=n,
        rate_id=rate.id,
        slot_ms=slot_ms,
        amount_micros=amount,
        voucher_micros=coverage.public_micros - coverage.reimbursed_micros,
        tenant_micros=coverage.tenant_micros,
        rounding_micros=sum(line.amount_micros for line in coverage.lines if line.source == ROUNDING),
        charged_at=at,
    )
    session.add(charge)
    session.flush()
    session.add_all(ChargedUsageRow(record_id=record.id, charge_id=charge_id) for record in records)
    session.flush()
    return charge


def _charged_slot_ms(session: Session, job_id: UUID, rate: RateRow) -> int:
    query = select(func.coalesce(func.sum(ChargeRow.slot_ms), 0))
    return int(session.scalars(query.where(ChargeRow.job_id == job_id, ChargeRow.rate_id == rate.id)).one())
