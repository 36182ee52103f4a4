"""Capturing: charges take their parts out of what their jobs set aside, once, and each part keeps its clause.

Charges are taken one after another in memory out of `open_holds`, which writes them together; a job whose charges
cannot be taken leaves no trace there. Releasing what is left of a job belongs to the same batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.errors import HubError
from kernel.ids import derived_id
from ledger.domain.transfers import Transfer
from vouchers import accounts, movements
from vouchers.domain.explanation import VOUCHER, Coverage, Line, own_line, rounding_line, voucher_line
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.terms import CNY
from vouchers.enterprises import lock_payers
from vouchers.errors import (
    ChargeBeyondHold,
    ChargeDiffers,
    ChargeFactsDiffer,
    ChargeNotFound,
    HoldNotFound,
    HoldReleased,
)
from vouchers.holding import check_cost
from vouchers.open_holds import (
    OWN,
    HeldLine,
    JobMoney,
    OpenHolds,
    OpenSegment,
    Written,
    open_holds,
    write_holds,
)
from vouchers.tables import CoverageLine, CoveredCharge, JobHold, Voucher

BUDGET: Final = "budget"
"""The source name of a project's limit, which is counted beside the money."""


@dataclass(frozen=True)
class Capture:
    """A charge to be taken out of what its job set aside.

    Args:
        charge_id: the charge; it is captured once.
        cost_micros: what it costs; 0 records the charge and moves nothing.
        facts: what was used, in the terms the hold was placed for, with this charge's card time.
        used_until: when the usage ended, by which a voucher's end is judged.
        partly: take what is set aside where that is less than the cost, be it nothing.
    """

    charge_id: UUID
    cost_micros: int
    facts: ChargeFacts
    used_until: datetime
    partly: bool = False


@dataclass(frozen=True)
class _Taken:
    """What a charge takes out of one source: the line for people, and its movement."""

    line: Line
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
    """Capture one charge from its job's holds. The same charge again returns the first result.

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
    tenants = session.scalars(select(JobHold.tenant_id).where(JobHold.job_id == job_id))
    lock_payers(session, tenants.all())
    known = session.get(CoveredCharge, charge_id)
    if known is not None:
        asked = (job_id, cost_micros, facts.card_ms, facts.kind())
        if (known.job_id, known.cost_micros, known.card_ms, known.facts) != asked:
            raise ChargeDiffers(charge=charge_id)
        return coverage_of(session, charge_id)
    holds = open_holds(session, [job_id])
    (coverage,) = take_charges(holds, job_id, [Capture(charge_id, cost_micros, facts, used_until or at)], at)
    write_holds(session, holds, at)
    return coverage


def take_charges(holds: OpenHolds, job_id: UUID, captures: Sequence[Capture], at: datetime) -> list[Coverage]:
    """Take a job's charges, one after another, or none of them. They are written with the holds.

    Args:
        holds: the open holds; whoever opened them has seen that the charges are new.
        job_id: whose charges they are.
        captures: in order.
        at: now.

    Returns:
        Who pays what of each; of one that may be taken partly, what was set aside.

    Raises:
        ChargeBeyondHold, ChargeFactsDiffer, HoldNotFound, HoldReleased: nothing was taken.
    """
    money = holds.jobs.get(job_id)
    if money is None:
        raise HoldNotFound(job=job_id)
    written, before = Written(), money.cursors()
    try:
        coverages = [_capture(money, capture, written, at) for capture in captures]
    except HubError:
        money.reset(before)
        raise
    holds.written.add(written)
    return coverages


def release_rest(holds: OpenHolds, job_id: UUID) -> None:
    """Give back what was set aside for a job that was opened for it and not captured; again does nothing.

    What comes back to a voucher that has ended goes on to the pool of the cycle it came from. Raises HoldNotFound.
    """
    money = holds.jobs.get(job_id)
    if money is None:
        raise HoldNotFound(job=job_id)
    if money.state == "released":
        return
    money.state = "released"
    holds.written.released.append(job_id)
    _give_back(holds, money)


def give_back_rest(holds: OpenHolds, job_id: UUID) -> None:
    """The same while the job waits to run again: what it will need then is set aside anew. Raises HoldNotFound."""
    money = holds.jobs.get(job_id)
    if money is None:
        raise HoldNotFound(job=job_id)
    if money.state == "released":
        return
    holds.written.given_back.append(job_id)
    _give_back(holds, money)
    money.segments, money.lines = [], []


def _give_back(holds: OpenHolds, money: JobMoney) -> None:
    for line in money.lines:
        holds.written.transfers.append(movements.release_funds(line.transfer_id))
        ended = None if line.voucher_id is None else holds.ended.get(line.voucher_id)
        if ended is not None and line.held > line.captured:
            pool, rest = accounts.pool(ended.slug, ended.cycle, ended.asset), line.held - line.captured
            freed = movements.return_freed(line.transfer_id, line.account_id, pool, rest)
            holds.written.transfers.append(freed)


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


def _capture(money: JobMoney, capture: Capture, written: Written, at: datetime) -> Coverage:
    if money.state == "released":
        if capture.partly:
            return Coverage(0, ())
        raise HoldReleased(job=money.job_id)
    parts, cost_left, time_left = _parts(money, capture)
    if cost_left:
        available = capture.cost_micros - cost_left
        if not capture.partly:
            raise ChargeBeyondHold(
                job=money.job_id,
                available=available,
                used_until=capture.used_until.isoformat(),
                required=capture.cost_micros,
            )
        if available == 0:
            return Coverage(0, ())
        part = capture.facts.lasting(capture.facts.card_ms - time_left)
        capture = replace(capture, cost_micros=available, facts=part)
    taken: list[_Taken] = []
    for row, cost, time in parts:
        taken += _take(money, row, capture.charge_id, cost, time, written)
    return _note(money, capture, taken, written, at)


def _parts(money: JobMoney, capture: Capture) -> tuple[list[tuple[OpenSegment, int, int]], int, int]:
    """What the segments take of a charge in order, each as cost and card time, and what is left of both."""
    parts: list[tuple[OpenSegment, int, int]] = []
    cost_left, time_left = capture.cost_micros, capture.facts.card_ms
    for row in _segments(money, capture.facts):
        if cost_left == 0:
            break
        cost, time = row.takes(cost_left, time_left) if row.serves(capture.used_until) else (0, 0)
        if cost:
            parts.append((row, cost, time))
            cost_left, time_left = cost_left - cost, time_left - time
    return parts, cost_left, time_left


def _segments(money: JobMoney, facts: ChargeFacts) -> list[OpenSegment]:
    """The segments that were placed for this kind of usage and are not used up. Raises ChargeFactsDiffer."""
    kind = facts.kind()
    rows = [row for row in money.segments if row.captured_micros < row.cost_micros]
    fitting = [row for row in rows if row.facts == kind]
    if rows and not fitting:
        held = rows[0].facts
        differing = [f"{name} {kind[name]!r} for {held[name]!r}" for name in kind if kind[name] != held[name]]
        raise ChargeFactsDiffer(job=money.job_id, differences=", ".join(differing))
    return fitting


def _take(
    money: JobMoney, row: OpenSegment, charge_id: UUID, cost: int, card_ms: int, written: Written
) -> list[_Taken]:
    """What one stretch of a segment takes from each source: the difference of two points of its division."""
    division = row.division
    before = division.parts(row.captured_micros, row.captured_ms)
    after = division.parts(row.captured_micros + cost, row.captured_ms + card_ms)
    _advance(row, charge_id, cost, card_ms, written)
    by_number = {line.line: line for line in row.lines}
    taken = []
    for number, (old, new) in enumerate(zip(before.shares, after.shares, strict=True)):
        amount, quantity = new.amount_micros - old.amount_micros, new.quantity - old.quantity
        line = voucher_line(
            division.plan,
            new,
            Fraction(new.parts - old.parts, new.scale),
            cost,
            amount=amount,
            quantity=quantity,
            segment=row.segment,
        )
        taken.append(_move(charge_id, line, by_number.get(number), quantity, written))
    own = [line for line in row.lines if line.source in OWN]
    for old_own, new_own, held in zip(before.own, after.own, own, strict=True):
        words = own_line(held.source, str(held.payer_id), new_own - old_own, row.segment)
        taken.append(_move(charge_id, words, held, new_own - old_own, written))
    rounding = after.rounding - before.rounding
    if rounding:
        carried = movements.carry_rounding(charge_id, row.segment, money.tenant_id, rounding)
        taken.append(_Taken(rounding_line(rounding, row.segment), carried))
        written.rounded = True
    spent = sum(after.own) - sum(before.own)
    budgets = [line for line in row.lines if line.source == BUDGET and spent]
    words = Line(BUDGET, spent, spent, CNY, "", "", segment=row.segment)
    taken += [_move(charge_id, words, line, spent, written) for line in budgets]
    return [entry for entry in taken if entry.line.amount_micros or entry.line.quantity]


def _advance(row: OpenSegment, charge_id: UUID, cost: int, card_ms: int, written: Written) -> None:
    """Move a segment's cursors and note the stretch."""
    micros, ms = row.captured_micros, row.captured_ms
    row.captured_micros, row.captured_ms = micros + cost, ms + card_ms
    written.moved[row.job_id, row.segment] = row
    written.stretches.append(
        {
            "charge_id": charge_id,
            "segment": row.segment,
            "from_micros": micros,
            "until_micros": row.captured_micros,
            "from_ms": ms,
            "until_ms": row.captured_ms,
        }
    )


def _move(charge_id: UUID, line: Line, held: HeldLine | None, quantity: int, written: Written) -> _Taken:
    if held is None or quantity == 0:
        return _Taken(line, None)
    held.captured += quantity
    written.captured[held.job_id, held.segment, held.line] = held
    return _Taken(line, movements.capture_usage(charge_id, held.segment, held.line, held.transfer_id, quantity))


def _note(
    money: JobMoney, capture: Capture, taken: Sequence[_Taken], written: Written, at: datetime
) -> Coverage:
    written.charges.append(
        {
            "charge_id": capture.charge_id,
            "job_id": money.job_id,
            "tenant_id": money.tenant_id,
            "cost_micros": capture.cost_micros,
            "card_ms": capture.facts.card_ms,
            "facts": capture.facts.kind(),
            "used_until": capture.used_until,
            "captured_at": at,
            "restored_micros": 0,
            "restored_ms": 0,
        }
    )
    written.transfers += [entry.transfer for entry in taken if entry.transfer is not None]
    paying = [entry for entry in taken if entry.line.source != BUDGET]
    written.coverage += [_row(capture, number, entry) for number, entry in enumerate(paying)]
    return Coverage(capture.cost_micros, tuple(entry.line for entry in paying))


def _row(capture: Capture, number: int, entry: _Taken) -> dict[str, Any]:
    line = entry.line
    return {
        "id": derived_id("coverage-line", capture.charge_id, number),
        "charge_id": capture.charge_id,
        "line": number,
        "segment": line.segment,
        "source": line.source,
        "voucher_id": line.voucher or None,
        "version_id": line.version or None,
        "slug": line.programme or None,
        "payer_id": line.payer or None,
        "direction": line.direction,
        "clause": line.clause,
        "sentence": line.sentence,
        "amount_micros": line.amount_micros,
        "quantity": line.quantity,
        "asset": line.asset,
        "transfer_id": entry.transfer.id if entry.transfer else None,
        "used_until": capture.used_until,
    }


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
