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
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import Span, month_of
from compute_hub.billing.domain.rating import Priced, Usage, next_charge_micros, rate, share_out
from compute_hub.billing.losses import is_lost, restore_losses
from compute_hub.billing.rates import NoRate, tariff_of, traits_of
from compute_hub.billing.tables import (
    ChargedUsageRow,
    ChargeLineRow,
    ChargeRow,
    JobFundingRow,
    TenantVolumeRow,
)
from compute_hub.metering.gaps import open_gap_cases
from compute_hub.metering.tables import UnchargedUsageRow, UsageRecordRow
from kernel.clock import from_unix_ms, unix_ms
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
    """Charge all usage of a job that is not charged yet, one charge per attempt, model and month.

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
    job = session.get_one(JobRow, job_id, populate_existing=True)
    stretches = [
        _Stretch(*key, some, payable=not is_lost(session, job_id, key[0])) for key, some in _grouped(due)
    ]
    if behind and _is_late(job, at):
        open_gap_cases(session, job_id, at)
        stretches += [_Stretch(*key, some, payable=False) for key, some in _grouped(behind)]
    charges = [_charge(session, funding, job, stretch, at) for stretch in stretches]
    done = [record.id for stretch in stretches for record in stretch.records]
    session.execute(delete(UnchargedUsageRow).where(UnchargedUsageRow.record_id.in_(done)))
    return [charge for charge in charges if charge is not None]


def release_job(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what a finished job did not use, and what it lost. Does nothing while another biller is at it."""
    funding = _funding(session, job_id)
    if funding is None or funding.state != "ended":
        return
    open_gap_cases(session, job_id, at)
    restore_losses(session, job_id, at)
    release_hold(session, job_id, at)
    funding.state = "released"


def restore_lost_time(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what attempts that the centre lost were charged. Does nothing while another biller is at the job."""
    if _funding(session, job_id) is not None:
        restore_losses(session, job_id, at)


@dataclass(frozen=True)
class _Stretch:
    """Records of one attempt, model and month that become one charge, and whether anybody pays for them."""

    attempt: int
    model: str
    month: str
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


def _is_late(job: JobRow, at: datetime) -> bool:
    return job.ended_at is not None and job.ended_at < at - LATE


def span_of(record: UsageRecordRow) -> Span:
    """The instants a record is about."""
    start = unix_ms(record.started_at) + record.offset_ms
    return Span(start, start + record.duration_ms)


def _grouped(
    records: Sequence[UsageRecordRow],
) -> list[tuple[tuple[int, str, str], list[UsageRecordRow]]]:
    """By attempt, model and month; a record belongs to the month its last millisecond lies in."""
    found: dict[tuple[int, str, str], list[UsageRecordRow]] = {}
    for record in records:
        span = span_of(record)
        month = month_of(max(span.start_ms, span.end_ms - 1))
        found.setdefault((record.attempt, record.model, month), []).append(record)
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


def _charge(
    session: Session, funding: JobFundingRow, job: JobRow, stretch: _Stretch, at: datetime
) -> ChargeRow | None:
    slot_ms = sum(record.slot_ms for record in stretch.records)
    if slot_ms == 0:
        return None
    pieces = _rate(session, funding, job, stretch, slot_ms, at)
    units = int(funding.rated_units)
    cost = next_charge_micros(units, sum(piece.units for piece in pieces))
    n = session.scalars(select(func.count()).where(ChargeRow.job_id == funding.job_id)).one()
    charge_id = derived_id("charge", funding.job_id, n)
    coverage = Coverage(0, ())
    if cost and stretch.payable:
        coverage = _capture(session, funding.job_id, charge_id, cost, stretch, slot_ms, at)
    charge = charge_row(
        charge_id,
        funding,
        n,
        coverage,
        attempt=stretch.attempt,
        model=stretch.model,
        month=stretch.month,
        slot_ms=slot_ms,
        cost=cost,
        at=at,
    )
    session.add(charge)
    session.flush()
    session.add_all(line_rows(charge_id, units, pieces))
    session.add_all(ChargedUsageRow(record_id=record.id, charge_id=charge_id) for record in stretch.records)
    funding.rated_units += sum(piece.units for piece in pieces)
    session.flush()
    return charge


def _rate(
    session: Session, funding: JobFundingRow, job: JobRow, stretch: _Stretch, slot_ms: int, at: datetime
) -> list[Priced]:
    """Price a stretch and count it to the tenant's month. Raises NoRate."""
    admitted_at = funding.funded_at or at
    pieces = rate(
        [Usage(span_of(record), record.slot_ms) for record in stretch.records],
        tariff_of(session, funding.tenant_id, stretch.model),
        traits_of(job),
        unix_ms(admitted_at),
        _add_volume(session, funding.tenant_id, stretch, slot_ms),
    )
    if pieces is None:
        raise NoRate(model=stretch.model, at=admitted_at.isoformat())
    return pieces


def _add_volume(session: Session, tenant_id: UUID, stretch: _Stretch, slot_ms: int) -> int:
    """Add to what the tenant has used of the model in the month; returns what it was before."""
    statement = insert(TenantVolumeRow).values(
        tenant_id=tenant_id, model=stretch.model, month=stretch.month, slot_ms=slot_ms
    )
    added = statement.on_conflict_do_update(
        index_elements=[TenantVolumeRow.tenant_id, TenantVolumeRow.model, TenantVolumeRow.month],
        set_={"slot_ms": TenantVolumeRow.slot_ms + slot_ms},
    ).returning(TenantVolumeRow.slot_ms)
    return int(session.scalars(added).one()) - slot_ms


def charge_row(
    charge_id: UUID,
    funding: JobFundingRow,
    n: int,
    coverage: Coverage,
    *,
    attempt: int,
    model: str,
    month: str,
    slot_ms: int,
    cost: int,
    at: datetime,
) -> ChargeRow:
    """A charge as it is kept: what it cost, who paid which part, and what of it is forgone."""
    return ChargeRow(
        id=charge_id,
        job_id=funding.job_id,
        tenant_id=funding.tenant_id,
        n=n,
        attempt=attempt,
        model=model,
        month=month,
        slot_ms=slot_ms,
        amount_micros=coverage.cost_micros,
        voucher_micros=coverage.public_micros - coverage.reimbursed_micros,
        tenant_micros=coverage.tenant_micros,
        rounding_micros=sum(line.amount_micros for line in coverage.lines if line.source == ROUNDING),
        forgone_micros=cost - coverage.cost_micros,
        charged_at=at,
    )


def line_rows(charge_id: UUID, units_before: int, pieces: Sequence[Priced]) -> list[ChargeLineRow]:
    """A charge's lines, one per price; their costs telescope to the charge's."""
    return [
        ChargeLineRow(
            charge_id=charge_id,
            line=number,
            rate_id=piece.rate_id,
            window=piece.window,
            from_slot_ms=piece.from_slot_ms,
            price_micros=piece.price_micros,
            slot_ms=piece.slot_ms,
            cost_micros=cost,
        )
        for number, (piece, cost) in enumerate(zip(pieces, share_out(units_before, pieces), strict=True))
    ]


def _capture(
    session: Session, job_id: UUID, charge_id: UUID, cost: int, stretch: _Stretch, slot_ms: int, at: datetime
) -> Coverage:
    """Capture a cost, or as much of it as is held for usage at that time."""
    held = held_facts(session, [job_id]).get((job_id, stretch.model))
    if held is None:
        return Coverage(0, ())
    facts = replace(held, card_ms=slot_ms // 1000)
    used_until = from_unix_ms(max(span_of(record).end_ms for record in stretch.records))
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
