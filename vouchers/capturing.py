"""Capturing: a charge takes its parts out of what its job set aside, once, and each part keeps its clause.

A charge fills the job's segments in order. A segment serves usage up to the earliest end among its vouchers:
what was used before a voucher ended may still be captured afterwards, what was used later may not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.domain.explanation import ROUNDING, VOUCHER, Coverage, Line, own_line, rounding_line, voucher_line
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.segments import Segment
from vouchers.domain.terms import CNY
from vouchers.errors import (
    ChargeBeyondHold,
    ChargeDiffers,
    ChargeFactsDiffer,
    ChargeNotFound,
    HoldReleased,
)
from vouchers.holding import check_cost
from vouchers.redemption import hold_lines, locked_job, read_plan
from vouchers.tables import (
    ChargeStretch,
    CoverageLine,
    CoveredCharge,
    HoldLine,
    HoldSegment,
    JobHold,
    Voucher,
)

BUDGET: Final = "budget"
"""The source name of a project's limit, which is counted beside the money."""


@dataclass(frozen=True)
class _Taken:
    """What a charge takes out of one source: the line for people, and the hold it comes from."""

    line: Line
    held: HoldLine | None
    transfer: Transfer | None


def capture_charge(
    session: Session,
    job_id: UUID,
    charge_id: UUID,
    cost_micros: int,
    facts: ChargeFacts,
    at: datetime,
    *,
    used_until: datetime | None = None,
) -> Coverage:
    """Capture a charge from its job's holds. The same charge again returns the first result.

    Args:
        session: whose transaction this belongs to.
        job_id: whose holds pay.
        charge_id: the charge; it is captured once.
        cost_micros: what it costs; 0 records the charge and moves nothing.
        facts: what was used, in the terms the hold was placed for, with this charge's card time.
        at: now.
        used_until: when the usage ended, by which a voucher's end is judged; now if left out.

    Raises:
        ChargeBeyondHold: less is set aside for usage at that time.
        ChargeFactsDiffer: the hold is for another kind of usage.
        ChargeDiffers: the charge's id was captured with other content.
        HoldNotFound, HoldReleased: nothing is set aside.
    """
    if cost_micros:
        check_cost(cost_micros, facts)
    used_until = used_until or at
    job = locked_job(session, job_id, released=True)
    known = session.get(CoveredCharge, charge_id)
    if known is not None:
        asked = (job_id, cost_micros, facts.card_ms, facts.kind())
        if (known.job_id, known.cost_micros, known.card_ms, known.facts) != asked:
            raise ChargeDiffers(charge=charge_id)
        return coverage_of(session, charge_id)
    if job.state == "released":
        raise HoldReleased(job=job_id)
    segments = _segments(session, job, facts)
    stretches = _stretches(segments, charge_id, job, cost_micros, facts.card_ms, used_until)
    taken = [entry for row, stretch in stretches for entry in _take(session, row, stretch, job)]
    charge = CoveredCharge(
        charge_id=charge_id,
        job_id=job_id,
        tenant_id=job.tenant_id,
        cost_micros=cost_micros,
        card_ms=facts.card_ms,
        facts=facts.kind(),
        used_until=used_until,
        captured_at=at,
        restored_micros=0,
        restored_ms=0,
    )
    _book(session, charge, stretches, taken)
    return Coverage(cost_micros, tuple(entry.line for entry in taken if entry.line.source != BUDGET))


def coverage_of(session: Session, charge_id: UUID) -> Coverage:
    """Who paid a captured charge. Raises ChargeNotFound."""
    charge = session.get(CoveredCharge, charge_id)
    if charge is None:
        raise ChargeNotFound(charge=charge_id)
    rows = session.execute(
        select(CoverageLine, Voucher.number)
        .outerjoin(Voucher, Voucher.id == CoverageLine.voucher_id)
        .where(CoverageLine.charge_id == charge_id)
        .order_by(CoverageLine.line)
    )
    return Coverage(charge.cost_micros, tuple(_line(row, number or "") for row, number in rows))


def _book(
    session: Session,
    charge: CoveredCharge,
    stretches: Sequence[tuple[HoldSegment, ChargeStretch]],
    taken: Sequence[_Taken],
) -> None:
    session.add(charge)
    session.flush()
    session.add_all(stretch for _, stretch in stretches)
    session.add_all(_rows(charge, taken))
    session.flush()
    if any(entry.line.source == ROUNDING for entry in taken):
        accounts.ensure(session, [accounts.ROUNDING], charge.captured_at)
    post_all(session, [entry.transfer for entry in taken if entry.transfer is not None], at=charge.captured_at)


def _segments(session: Session, job: JobHold, facts: ChargeFacts) -> list[HoldSegment]:
    rows = session.scalars(
        select(HoldSegment)
        .where(HoldSegment.job_id == job.job_id, HoldSegment.captured_micros < HoldSegment.cost_micros)
        .order_by(HoldSegment.segment)
    ).all()
    fitting = [row for row in rows if row.facts == facts.kind()]
    if rows and not fitting:
        held, asked = rows[0].facts, facts.kind()
        differing = [
            f"{name} {asked[name]!r} for {held[name]!r}" for name in asked if asked[name] != held[name]
        ]
        raise ChargeFactsDiffer(job=job.job_id, differences=", ".join(differing))
    return fitting


def _stretches(
    segments: Sequence[HoldSegment],
    charge_id: UUID,
    job: JobHold,
    cost_micros: int,
    card_ms: int,
    used_until: datetime,
) -> list[tuple[HoldSegment, ChargeStretch]]:
    """Which part of which segments a charge takes: the rest of each in order. Raises ChargeBeyondHold."""
    serving = [row for row in segments if row.serves_until is None or used_until <= row.serves_until]
    available = sum(row.cost_micros - row.captured_micros for row in serving)
    if available < cost_micros:
        raise ChargeBeyondHold(
            job=job.job_id, available=available, used_until=used_until.isoformat(), required=cost_micros
        )
    stretches = []
    cost_left, time_left = cost_micros, card_ms
    for row in serving:
        part = min(cost_left, row.cost_micros - row.captured_micros)
        if part == 0:
            break
        time = time_left * part // cost_left
        stretch = ChargeStretch(
            charge_id=charge_id,
            segment=row.segment,
            from_micros=row.captured_micros,
            until_micros=row.captured_micros + part,
            from_ms=row.captured_ms,
            until_ms=row.captured_ms + time,
        )
        stretches.append((row, stretch))
        cost_left, time_left = cost_left - part, time_left - time
    return stretches


def _take(session: Session, row: HoldSegment, stretch: ChargeStretch, job: JobHold) -> list[_Taken]:
    """What one stretch of a segment takes from each source: the difference of two points of its division."""
    charge_id, part = stretch.charge_id, stretch.until_micros - stretch.from_micros
    held = hold_lines(session, row.job_id, row.segment)
    own = [line for line in held if line.source in {"prepaid", "credit"}]
    by_number = {line.line: line for line in held}
    division = Segment(read_plan(row), tuple(line.held for line in own))
    before = division.parts(stretch.from_micros, stretch.from_ms)
    after = division.parts(stretch.until_micros, stretch.until_ms)
    row.captured_micros, row.captured_ms = stretch.until_micros, stretch.until_ms

    taken = []
    for number, (old, new) in enumerate(zip(before.shares, after.shares, strict=True)):
        amount, quantity = new.amount_micros - old.amount_micros, new.quantity - old.quantity
        line = voucher_line(
            division.plan,
            new,
            new.exact - old.exact,
            part,
            amount=amount,
            quantity=quantity,
            segment=row.segment,
        )
        taken.append(_capture(charge_id, line, by_number.get(number), quantity))
    for old_own, new_own, hold in zip(before.own, after.own, own, strict=True):
        words = own_line(hold.source, str(hold.payer_id), new_own - old_own, row.segment)
        taken.append(_capture(charge_id, words, hold, new_own - old_own))
    rounding = after.rounding - before.rounding
    if rounding:
        carried = movements.carry_rounding(charge_id, row.segment, job.tenant_id, rounding)
        taken.append(_Taken(rounding_line(rounding, row.segment), None, carried))
    taken += _spend_budget(charge_id, held, row.segment, sum(after.own) - sum(before.own))
    return [entry for entry in taken if entry.line.amount_micros or entry.line.quantity]


def _capture(charge_id: UUID, line: Line, held: HoldLine | None, quantity: int) -> _Taken:
    if held is None or quantity == 0:
        return _Taken(line, None, None)
    held.captured += quantity
    transfer = movements.capture_usage(charge_id, held.segment, held.line, held.transfer_id, quantity)
    return _Taken(line, held, transfer)


def _spend_budget(charge_id: UUID, held: Sequence[HoldLine], segment: int, amount: int) -> list[_Taken]:
    """Count what the tenant itself pays against its project's budget."""
    budgets = [line for line in held if line.source == BUDGET]
    words = Line(BUDGET, amount, amount, CNY, "", "", segment=segment)
    return [_capture(charge_id, words, line, amount) for line in budgets if amount]


def _rows(charge: CoveredCharge, taken: Sequence[_Taken]) -> list[CoverageLine]:
    paying = [entry for entry in taken if entry.line.source != BUDGET]
    return [
        CoverageLine(
            id=derived_id("coverage-line", charge.charge_id, number),
            charge_id=charge.charge_id,
            line=number,
            segment=entry.line.segment,
            source=entry.line.source,
            voucher_id=_uuid(entry.line.voucher),
            version_id=_uuid(entry.line.version),
            slug=entry.line.programme or None,
            payer_id=_uuid(entry.line.payer),
            direction=entry.line.direction,
            clause=entry.line.clause,
            sentence=entry.line.sentence,
            amount_micros=entry.line.amount_micros,
            quantity=entry.line.quantity,
            asset=entry.line.asset,
            transfer_id=entry.transfer.id if entry.transfer else None,
            used_until=charge.used_until,
        )
        for number, entry in enumerate(paying)
    ]


def _uuid(text: str) -> UUID | None:
    return UUID(text) if text else None


def _line(row: CoverageLine, number: str) -> Line:
    return Line(
        source=row.source,
        amount_micros=row.amount_micros,
        quantity=row.quantity,
        asset=row.asset,
        clause=row.clause,
        sentence=row.sentence,
        voucher=str(row.voucher_id) if row.source == VOUCHER else "",
        number=number,
        version=str(row.version_id) if row.version_id else "",
        programme=row.slug or "",
        payer=str(row.payer_id) if row.payer_id else "",
        direction=row.direction,
        segment=row.segment,
    )
