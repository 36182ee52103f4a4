"""Rating a charge anew: a documented correction, never a change of what was written.

The whole charge goes back to the very vouchers and accounts that paid it, and what it should have cost is captured from
the same sources in the same transaction. A correction only lowers a bill: what was used under a published price is not
made dearer afterwards.
"""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, func, or_, select, tuple_
from sqlalchemy.orm import Session

from compute_hub.billing.charge_writing import charge_values, line_values
from compute_hub.billing.charging import span_of
from compute_hub.billing.domain.rating import Priced, Usage, cost_micros, rate
from compute_hub.billing.domain.timelines import Tariff
from compute_hub.billing.rates import dated, traits_of
from compute_hub.billing.tables import (
    ChargeCorrectionRow,
    ChargedUsageRow,
    ChargeLineRow,
    ChargeRow,
    JobFundingRow,
    RateRow,
)
from compute_hub.metering.tables import UsageRecordRow
from kernel.errors import Conflict, Invalid, NotFound
from kernel.ids import derived_id
from scheduler.tables import JobRow
from vouchers.recharging import recharge
from vouchers.tables import CoveredCharge


class ChargeUnknown(NotFound):
    """No charge has this id."""

    sentence = "There is no charge {charge}."


class RateUnknown(NotFound):
    """No rate card has this id."""

    sentence = "rate_id: there is no rate {rate}."


class RateNotForCharge(Invalid):
    """A card of another model or another tenant."""

    sentence = "rate_id: {rate} is not a rate for {model!r} that this tenant may have."


class ChargeCorrected(Conflict):
    """A charge is corrected once; its replacement may be corrected again."""

    sentence = "Charge {charge} was corrected before or given back; what replaced it is {replacement}."


class CorrectionRaises(Conflict):
    """A correction may only lower what was paid."""

    sentence = (
        "At that rate the charge would cost {required} micro-yuan, not less than the {paid} that were paid; "
        "a correction only lowers a bill."
    )


def correct_charge(
    session: Session, charge_id: UUID, rate_id: UUID, *, reason: str, by: UUID, at: datetime
) -> ChargeRow:
    """Rate a charge's records with another card and book the difference. Returns the charge that replaces it.

    Raises:
        ChargeUnknown, RateUnknown, RateNotForCharge, ChargeCorrected, CorrectionRaises, and what
        `vouchers.recharging.recharge` refuses.
    """
    charge = session.get(ChargeRow, charge_id)
    if charge is None:
        raise ChargeUnknown(charge=charge_id)
    funding = session.get_one(JobFundingRow, charge.job_id, with_for_update=True, populate_existing=True)
    _check_standing(session, charge)
    row = session.get(RateRow, rate_id)
    if row is None:
        raise RateUnknown(rate=rate_id)
    if row.model != charge.model or row.tenant_id not in {None, charge.tenant_id}:
        raise RateNotForCharge(rate=rate_id, model=charge.model)
    pieces = _rate_anew(session, charge, row)
    cost = cost_micros(sum(piece.units for piece in pieces))
    if cost >= charge.amount_micros:
        raise CorrectionRaises(required=cost, paid=charge.amount_micros)
    n = funding.charges
    new_id = derived_id("charge", charge.job_id, n)
    coverage = recharge(session, charge_id, new_id, cost, reason=reason, by=str(by), at=at)
    values = charge_values(
        new_id,
        n,
        coverage,
        job_id=charge.job_id,
        tenant_id=charge.tenant_id,
        attempt=charge.attempt,
        model=charge.model,
        month=charge.month,
        slot_ms=charge.slot_ms,
        cost=cost,
        at=at,
    )
    new = ChargeRow(**values)
    session.add(new)
    funding.charges = n + 1
    session.flush()
    session.add_all(ChargeLineRow(**line) for line in line_values(new_id, 0, pieces))
    session.add(
        ChargeCorrectionRow(
            charge_id=charge_id,
            replacement_id=new_id,
            rate_id=rate_id,
            reason=reason,
            corrected_by=by,
            corrected_at=at,
        )
    )
    session.flush()
    return new


def records_of(session: Session, charge_id: UUID) -> list[UsageRecordRow]:
    """The records a charge is about; those of the charge it replaces, if it replaces one."""
    first = charge_id
    while (before := _replaced_by(session, first)) is not None:
        first = before
    return list(
        session.scalars(
            select(UsageRecordRow)
            .join(
                ChargedUsageRow,
                and_(
                    ChargedUsageRow.job_id == UsageRecordRow.job_id,
                    ChargedUsageRow.attempt == UsageRecordRow.attempt,
                    ChargedUsageRow.rank == UsageRecordRow.rank,
                    ChargedUsageRow.first_k <= UsageRecordRow.k,
                    ChargedUsageRow.until_k > UsageRecordRow.k,
                ),
            )
            .where(ChargedUsageRow.charge_id == first)
            .order_by(UsageRecordRow.attempt, UsageRecordRow.rank, UsageRecordRow.k)
        )
    )


def _replaced_by(session: Session, charge_id: UUID) -> UUID | None:
    """The charge that this one replaces."""
    query = select(ChargeCorrectionRow.charge_id).where(ChargeCorrectionRow.replacement_id == charge_id)
    return session.scalars(query).one_or_none()


def _check_standing(session: Session, charge: ChargeRow) -> None:
    known = session.get(ChargeCorrectionRow, charge.id)
    if known is not None:
        raise ChargeCorrected(charge=charge.id, replacement=known.replacement_id)
    covered = session.get(CoveredCharge, charge.id, populate_existing=True)
    if covered is not None and covered.restored_micros:
        raise ChargeCorrected(charge=charge.id, replacement="nothing")


def _rate_anew(session: Session, charge: ChargeRow, row: RateRow) -> list[Priced]:
    before = session.scalar(
        select(func.coalesce(func.sum(ChargeRow.slot_ms), 0))
        .outerjoin(ChargeCorrectionRow, ChargeCorrectionRow.replacement_id == ChargeRow.id)
        .where(
            ChargeRow.tenant_id == charge.tenant_id,
            ChargeRow.model == charge.model,
            ChargeRow.month == charge.month,
            ChargeCorrectionRow.charge_id.is_(None),
            or_(
                ChargeRow.charged_at < charge.charged_at,
                tuple_(ChargeRow.charged_at, ChargeRow.id) < tuple_(charge.charged_at, charge.id),
            ),
        )
    )
    card = replace(dated(row), from_ms=0, until_ms=None, changes_running=False)
    usage = [Usage(span_of(record), record.slot_ms) for record in records_of(session, charge.id)]
    job = session.get_one(JobRow, charge.job_id)
    pieces = rate(usage, Tariff((card,)), traits_of(job), 0, int(before or 0))
    assert pieces is not None  # noqa: S101 - the card holds from the beginning of time
    return pieces
