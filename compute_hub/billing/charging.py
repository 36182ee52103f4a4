"""Charging: usage becomes a rated charge, its coverage and the captures, in one transaction per job.

The n-th charge of a job has an id derived from job and n, and the records it takes leave the queue in the same
transaction, so a killed biller is repeated, never doubled. A capture never exceeds what is held: what usage costs
beyond that is forgone by the centre, and the charge says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from compute_hub.billing.losses import is_lost, restore_losses
from compute_hub.billing.rates import rate_at
from compute_hub.billing.rating import next_charge_micros
from compute_hub.billing.tables import ChargedUsageRow, ChargeRow, JobFundingRow, RateRow
from compute_hub.metering.tables import UnchargedUsageRow, UsageRecordRow
from kernel.ids import derived_id
from scheduler.tables import JobRow, RunRow
from vouchers.capturing import capture_charge
from vouchers.domain.explanation import ROUNDING, Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import lock_tenants
from vouchers.errors import ChargeBeyondHold, HoldReleased
from vouchers.redemption import held_facts, release_hold
from vouchers.wallets import payer_of

LATE: Final = timedelta(minutes=10)
"""How long after a job's end its last records are waited for, before what is held for it is given back."""


def jobs_to_charge(session: Session, limit: int, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs with usage to charge, in order of their ids, from behind `after` on."""
    query = (
        select(UnchargedUsageRow.job_id)
        .join(JobFundingRow, JobFundingRow.job_id == UnchargedUsageRow.job_id)
        .distinct()
        .order_by(UnchargedUsageRow.job_id)
        .limit(limit)
    )
    return session.scalars(query if after is None else query.where(UnchargedUsageRow.job_id > after)).all()


def jobs_to_release(session: Session, limit: int, at: datetime, *, after: UUID | None = None) -> Sequence[UUID]:
    """Jobs that are over and fully charged: every run's final record is there, or was waited for long enough."""
    uncharged = select(UnchargedUsageRow.record_id).where(UnchargedUsageRow.job_id == JobFundingRow.job_id)
    final = select(UsageRecordRow.id).where(
        UsageRecordRow.job_id == RunRow.job_id,
        UsageRecordRow.attempt == RunRow.attempt,
        UsageRecordRow.rank == RunRow.rank,
        UsageRecordRow.final,
    )
    awaited = select(RunRow.id).where(
        RunRow.job_id == JobFundingRow.job_id, RunRow.end_reason != "never_started", ~final.exists()
    )
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


def charge_job(session: Session, job_id: UUID, at: datetime) -> Sequence[ChargeRow]:
    """Charge all usage of a job that is not charged yet, one charge per attempt and model.

    A record is charged when all records of its run before it are; behind a gap it waits, and is forgone when the job
    has been over for `LATE`. Usage of an attempt that the centre lost is forgone. Does nothing while another biller
    is at the job.
    """
    funding = _funding(session, job_id)
    if funding is None:
        return ()
    records = session.scalars(
        select(UsageRecordRow)
        .join(UnchargedUsageRow, UnchargedUsageRow.record_id == UsageRecordRow.id)
        .where(UnchargedUsageRow.job_id == job_id)
        .order_by(UsageRecordRow.attempt, UsageRecordRow.rank, UsageRecordRow.k)
    ).all()
    due, behind = _split_at_gaps(session, records)
    stretches = [
        _Stretch(attempt, model, some, payable=not is_lost(session, job_id, attempt))
        for (attempt, model), some in _by_attempt_and_model(due)
    ]
    if behind and _is_late(session, job_id, at):
        stretches += [
            _Stretch(attempt, model, some, payable=False)
            for (attempt, model), some in _by_attempt_and_model(behind)
        ]
    charges = [_charge(session, funding, stretch, at) for stretch in stretches]
    done = [record.id for stretch in stretches for record in stretch.records]
    session.execute(delete(UnchargedUsageRow).where(UnchargedUsageRow.record_id.in_(done)))
    return [charge for charge in charges if charge is not None]


def release_job(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what a finished job did not use, and what it lost. Does nothing while another biller is at it."""
    funding = _funding(session, job_id)
    if funding is None or funding.state != "ended":
        return
    restore_losses(session, job_id, at)
    release_hold(session, job_id, at)
    funding.state = "released"


def restore_lost_time(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what attempts that the centre lost were charged. Does nothing while another biller is at the job."""
    if _funding(session, job_id) is not None:
        restore_losses(session, job_id, at)


@dataclass(frozen=True)
class _Stretch:
    """Records of one attempt on one model that become one charge, and whether anybody pays for them."""

    attempt: int
    model: str
    records: Sequence[UsageRecordRow]
    payable: bool


def _funding(session: Session, job_id: UUID) -> JobFundingRow | None:
    """The job's funding, locked; None while another has it.

    The tenant is locked first, because the controller may hold a tenant while it waits for a funding, and the funding
    is not waited for: so nobody waits in a circle.
    """
    tenant_id = session.scalars(
        select(JobFundingRow.tenant_id).where(JobFundingRow.job_id == job_id)
    ).one_or_none()
    if tenant_id is None:
        return None
    payer_id = payer_of(session, tenant_id)
    lock_tenants(session, [tenant_id] if payer_id is None else [tenant_id, payer_id])
    return session.scalars(
        select(JobFundingRow)
        .where(JobFundingRow.job_id == job_id)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).one_or_none()


def _is_late(session: Session, job_id: UUID, at: datetime) -> bool:
    ended_at = session.scalars(select(JobRow.ended_at).where(JobRow.id == job_id)).one_or_none()
    return ended_at is not None and ended_at < at - LATE


def _by_attempt_and_model(
    records: Sequence[UsageRecordRow],
) -> list[tuple[tuple[int, str], list[UsageRecordRow]]]:
    found: dict[tuple[int, str], list[UsageRecordRow]] = {}
    for record in records:
        found.setdefault((record.attempt, record.model), []).append(record)
    return sorted(found.items())


def _split_at_gaps(
    session: Session, records: Sequence[UsageRecordRow]
) -> tuple[list[UsageRecordRow], list[UsageRecordRow]]:
    """Records whose run is known without a gap up to them, and those behind one."""
    before = {_predecessor(record): record for record in records if record.k > 0}
    waiting = select(UnchargedUsageRow.record_id).where(UnchargedUsageRow.record_id == UsageRecordRow.id)
    reached = set(
        session.scalars(select(UsageRecordRow.id).where(UsageRecordRow.id.in_(list(before)), ~waiting.exists()))
    )
    due, behind = [], []
    for record in records:  # in order of their numbers, so a predecessor is looked at before its successor
        if record.k == 0 or _predecessor(record) in reached:
            reached.add(record.id)
            due.append(record)
        else:
            behind.append(record)
    return due, behind


def _predecessor(record: UsageRecordRow) -> UUID:
    return derived_id("usage", record.job_id, record.attempt, record.rank, record.k - 1)


def _charge(session: Session, funding: JobFundingRow, stretch: _Stretch, at: datetime) -> ChargeRow | None:
    slot_ms = sum(record.slot_ms for record in stretch.records)
    if slot_ms == 0:
        return None
    rate = rate_at(session, stretch.model, funding.funded_at or at)
    before = _charged_slot_ms(session, funding.job_id, rate)
    cost = next_charge_micros(before, slot_ms, rate.micros_per_card_hour)
    n = session.scalars(select(func.count()).where(ChargeRow.job_id == funding.job_id)).one()
    charge_id = derived_id("charge", funding.job_id, n)
    coverage = Coverage(0, ())
    if cost and stretch.payable:
        coverage = _capture(session, funding.job_id, charge_id, cost, stretch, slot_ms, at)
    charge = ChargeRow(
        id=charge_id,
        job_id=funding.job_id,
        tenant_id=funding.tenant_id,
        n=n,
        attempt=stretch.attempt,
        rate_id=rate.id,
        slot_ms=slot_ms,
        amount_micros=coverage.cost_micros,
        voucher_micros=coverage.public_micros - coverage.reimbursed_micros,
        tenant_micros=coverage.tenant_micros,
        rounding_micros=sum(line.amount_micros for line in coverage.lines if line.source == ROUNDING),
        forgone_micros=cost - coverage.cost_micros,
        charged_at=at,
    )
    session.add(charge)
    session.flush()
    session.add_all(ChargedUsageRow(record_id=record.id, charge_id=charge_id) for record in stretch.records)
    session.flush()
    return charge


def _capture(
    session: Session, job_id: UUID, charge_id: UUID, cost: int, stretch: _Stretch, slot_ms: int, at: datetime
) -> Coverage:
    """Capture a cost, or as much of it as is held for usage at that time."""
    held = held_facts(session, job_id, stretch.model)
    if held is None:
        return Coverage(0, ())
    facts = replace(held, card_ms=slot_ms // 1000)
    used_until = max(
        record.started_at + timedelta(milliseconds=record.duration_ms) for record in stretch.records
    )
    try:
        return _capture_whole(session, job_id, charge_id, cost, facts, at, used_until)
    except ChargeBeyondHold as beyond:
        available = int(str(beyond.facts["available"]))
    except HoldReleased:
        available = 0
    if available == 0:
        return Coverage(0, ())
    part = replace(facts, card_ms=facts.card_ms * available // cost)
    return _capture_whole(session, job_id, charge_id, available, part, at, used_until)


def _capture_whole(
    session: Session,
    job_id: UUID,
    charge_id: UUID,
    cost: int,
    facts: ChargeFacts,
    at: datetime,
    used_until: datetime,
) -> Coverage:
    with session.begin_nested():
        return capture_charge(session, job_id, charge_id, cost, facts, at, used_until=used_until)


def _charged_slot_ms(session: Session, job_id: UUID, rate: RateRow) -> int:
    query = select(func.coalesce(func.sum(ChargeRow.slot_ms), 0))
    return int(session.scalars(query.where(ChargeRow.job_id == job_id, ChargeRow.rate_id == rate.id)).one())
