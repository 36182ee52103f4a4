"""Restoration: usage that the centre lost goes back to the very vouchers and accounts that paid for it.

What a charge took is unwound from its newest end, by the plans it was captured by, so a part that is given back is
exactly what was taken for it and a whole in parts is the whole. `restored_*` on the charge is how far that went.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.claims import STANDING
from vouchers.clawback import next_number, take_out_of_claim
from vouchers.domain.segments import Segment, Stretch, Unwound, unwind
from vouchers.enterprises import lock_tenants
from vouchers.errors import ChargeClaimed, ChargeNotFound, LostTimeOutOfRange, NotRestorable
from vouchers.programmes import lock_programme
from vouchers.redemption import forward_to_pool, hold_lines, read_plan
from vouchers.tables import (
    ChargeStretch,
    Claim,
    ClaimLine,
    CoverageLine,
    CoveredCharge,
    HoldLine,
    HoldSegment,
    Restoration,
)


@dataclass(frozen=True)
class _Returned:
    """What of a coverage line (or, without one, of a budget or of rounding) goes back, by which transfer."""

    line: CoverageLine | None
    held: HoldLine | None
    amount_micros: int
    quantity: int
    transfer: Transfer | None


def restore_charge(
    session: Session,
    charge_id: UUID,
    *,
    reason: str,
    by: str,
    at: datetime,
    lost_ms: int | None = None,
    forward: bool = True,
) -> int:
    """Give a charge for lost usage back, or the part of it that paid for `lost_ms` of card time in all.

    What was given back before counts, so repeating a restoration does nothing. A share that stands in a claim
    leaves it first; one whose voucher has ended meanwhile goes on to the pool.

    Args:
        session: whose transaction this belongs to.
        charge_id: a captured charge.
        reason: what was lost, and why.
        by: who says so.
        at: now.
        lost_ms: how much of the charge's card time was lost since it was captured; None for all of it.
        forward: let what comes back to an ended voucher go on to the pool; else the caller takes it again at once.

    Returns:
        The micro-yuan given back of this charge in all.

    Raises:
        ChargeNotFound: it was never captured.
        LostTimeOutOfRange: more than its card time.
        ChargeClaimed: a share was refused in a claim for good.
        NotRestorable: a share was clawed back.
    """
    charge = session.get(CoveredCharge, charge_id)
    if charge is None:
        raise ChargeNotFound(charge=charge_id)
    lock_tenants(session, [charge.tenant_id])
    session.refresh(charge)
    until_micros, until_ms = _lost(charge, lost_ms)
    if until_micros <= charge.restored_micros:
        return charge.restored_micros
    lines = _lines(session, charge_id)
    _check_restorable(session, charge_id)
    transfers = _leave_claims(session, charge, lines, reason, by, at)
    returned = list(_returned(session, charge, lines, until_micros))
    transfers += [entry.transfer for entry in returned if entry.transfer is not None]
    transfers += _forwarded(session, returned) if forward else []
    _record(session, charge, returned, reason, by, at)
    charge.restored_micros, charge.restored_ms = until_micros, until_ms
    session.flush()
    post_all(session, transfers, at=at)
    return until_micros


def _lost(charge: CoveredCharge, lost_ms: int | None) -> tuple[int, int]:
    """Cost and card time that are lost in all; a part of a millionth is the tenant's. Raises LostTimeOutOfRange."""
    if lost_ms is None:
        return charge.cost_micros, charge.card_ms
    if type(lost_ms) is not int or not 1 <= lost_ms <= charge.card_ms:
        raise LostTimeOutOfRange(charge=charge.charge_id, value=lost_ms, card_ms=charge.card_ms)
    return -(-charge.cost_micros * lost_ms // charge.card_ms), lost_ms


def _lines(session: Session, charge_id: UUID) -> Sequence[CoverageLine]:
    query = select(CoverageLine).where(CoverageLine.charge_id == charge_id).order_by(CoverageLine.line)
    return session.scalars(query).all()


def _check_restorable(session: Session, charge_id: UUID) -> None:
    clawed_back = session.scalar(
        select(func.count())
        .select_from(Restoration)
        .join(CoverageLine, CoverageLine.id == Restoration.line_id)
        .where(CoverageLine.charge_id == charge_id, Restoration.kind == "clawed_back")
    )
    if clawed_back:
        raise NotRestorable(charge=charge_id)


def _leave_claims(
    session: Session,
    charge: CoveredCharge,
    lines: Sequence[CoverageLine],
    reason: str,
    by: str,
    at: datetime,
) -> list[Transfer]:
    """Take the charge's shares out of the claims they stand in; no new claim is made of them meanwhile."""
    for slug in sorted({line.slug for line in lines if line.slug}):
        lock_programme(session, slug)
    mine = ClaimLine.coverage_line_id.in_([line.id for line in lines])
    involved = select(ClaimLine.claim_id).where(mine)
    session.execute(select(Claim.id).where(Claim.id.in_(involved)).order_by(Claim.id).with_for_update())
    # Only now: a line may have been decided while its claim was waited for.
    standing = session.scalars(
        select(ClaimLine)
        .where(mine, ClaimLine.state.in_(STANDING))
        .order_by(ClaimLine.claim_id, ClaimLine.line)
        .execution_options(populate_existing=True)
    ).all()
    transfers: list[Transfer] = []
    for row in standing:
        if row.state == "rejected":
            raise ChargeClaimed(charge=charge.charge_id, claim=row.claim_id)
        transfers += take_out_of_claim(session, row, charge.tenant_id, "restored", reason, by, at)
    return transfers


def _returned(
    session: Session, charge: CoveredCharge, lines: Sequence[CoverageLine], until_micros: int
) -> Iterator[_Returned]:
    rows = session.scalars(
        select(ChargeStretch).where(ChargeStretch.charge_id == charge.charge_id).order_by(ChargeStretch.segment)
    )
    taken = {row.segment: Stretch(row.from_micros, row.until_micros, row.from_ms, row.until_ms) for row in rows}
    for segment, back in unwind(taken, charge.restored_micros, until_micros):
        row = session.get_one(HoldSegment, (charge.job_id, segment))
        mine = [line for line in lines if line.segment == segment]
        yield from _returned_of(session, charge, row, mine, back)


def _returned_of(
    session: Session, charge: CoveredCharge, row: HoldSegment, lines: Sequence[CoverageLine], back: Unwound
) -> Iterator[_Returned]:
    """What one segment's sources get back: the difference of two points of its division."""
    held = hold_lines(session, row.job_id, row.segment)
    own = [line for line in held if line.source in {"prepaid", "credit"}]
    by_voucher = {str(line.voucher_id): line for line in held if line.voucher_id}
    division = Segment(read_plan(row), tuple(line.held for line in own))
    before, after = division.parts(*back.before), division.parts(*back.after)
    cause = (charge.charge_id, row.segment, back.before[0])
    for old, new in zip(before.shares, after.shares, strict=True):
        candidate = old.candidate
        line = next((line for line in lines if str(line.voucher_id) == candidate.voucher), None)
        destination = accounts.claimable(candidate.programme, charge.tenant_id, candidate.asset).id
        hold = by_voucher.get(candidate.voucher)
        amount, quantity = old.amount_micros - new.amount_micros, old.quantity - new.quantity
        yield _back(cause, line, hold, destination, amount, quantity)
    revenue = accounts.revenue(charge.tenant_id)
    for hold, old_own, new_own in zip(own, before.own, after.own, strict=True):
        line = next((x for x in lines if (x.source, x.payer_id) == (hold.source, hold.payer_id)), None)
        yield _back(cause, line, hold, revenue.id, old_own - new_own, old_own - new_own)
    spent = sum(before.own) - sum(after.own)
    for hold in held:
        if hold.source == "budget":
            yield _back(cause, None, hold, accounts.BUDGET_SPENT.id, spent, spent)
    rounding = before.rounding - after.rounding
    if rounding:
        movement = movements.return_rounding(*cause, charge.tenant_id, rounding)
        yield _Returned(None, None, rounding, abs(rounding), movement)


def _back(
    cause: tuple[UUID, int, int],
    line: CoverageLine | None,
    held: HoldLine | None,
    destination: UUID,
    amount_micros: int,
    quantity: int,
) -> _Returned:
    if held is None or quantity == 0:
        return _Returned(line, held, amount_micros, 0, None)
    transfer = movements.restore_usage(cause, held.transfer_id, destination, held.account_id, quantity)
    return _Returned(line, held, amount_micros, quantity, transfer)


def _forwarded(session: Session, returned: Sequence[_Returned]) -> list[Transfer]:
    """What came back to a voucher that has ended goes on to the pool."""
    transfers: list[Transfer] = []
    for entry in returned:
        if entry.held is None or entry.held.voucher_id is None or entry.transfer is None:
            continue
        voucher_id, account_id = entry.held.voucher_id, entry.held.account_id
        transfers += forward_to_pool(session, voucher_id, account_id, entry.quantity, entry.transfer.id)
    return transfers


def _record(
    session: Session,
    charge: CoveredCharge,
    returned: Sequence[_Returned],
    reason: str,
    by: str,
    at: datetime,
) -> None:
    number = next_number(session, charge.charge_id)
    session.add_all(
        Restoration(
            id=derived_id("restoration", entry.line.id, number),
            line_id=entry.line.id,
            number=number,
            reason=reason,
            kind="restored",
            amount_micros=entry.amount_micros,
            quantity=entry.quantity,
            transfer_id=None if entry.transfer is None else entry.transfer.id,
            restored_by=by,
            restored_at=at,
        )
        for entry in returned
        if entry.line is not None and (entry.amount_micros or entry.quantity)
    )
