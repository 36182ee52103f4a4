"""Clawback: what was claimed wrongly is taken back, by reversing what was recorded, newest movement first.

The money ends in the pool, not with the voucher's holder. The payee owes it: its `disbursed` account falls, and a
reserve fund that had paid is made good.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.claims import claim_of, record_step
from vouchers.enterprises import lock_tenants
from vouchers.errors import ClaimLineNotFound, ClaimState
from vouchers.tables import Claim, ClaimLine, CoverageLine, CoveredCharge, Restoration, Voucher


def claw_back_line(session: Session, claim_id: UUID, line: int, *, reason: str, by: str, at: datetime) -> int:
    """Take an approved or disbursed line back. Taking it back again does nothing.

    Returns:
        The amount taken back, in the programme's smallest unit.

    Raises:
        ClaimNotFound, ClaimLineNotFound.
        ClaimState: the line is still under review (dispute or refuse it) or was never approved.
    """
    claim = claim_of(session, claim_id)
    row = session.get(ClaimLine, (claim_id, line))
    if row is None:
        raise ClaimLineNotFound(claim=claim_id, line=line)
    coverage = session.get_one(CoverageLine, row.coverage_line_id)
    charge = session.get_one(CoveredCharge, coverage.charge_id)
    lock_tenants(session, [charge.tenant_id])
    session.refresh(claim, with_for_update=True)
    session.refresh(row)
    if row.state == "clawed_back":
        return row.amount
    if row.state != "approved":
        raise ClaimState(claim=claim_id, state=row.state, step="clawback", needed="approved")
    transfers = take_out_of_claim(session, row, charge.tenant_id, "clawed_back", reason, by, at)
    voucher = session.get_one(Voucher, coverage.voucher_id)
    pool = accounts.pool(voucher.slug, voucher.cycle, voucher.asset)
    taken = movements.claw_back(coverage.id, claim.slug, charge.tenant_id, pool, row.amount)
    number = next_number(session, charge.charge_id)
    session.add(
        Restoration(
            id=derived_id("restoration", coverage.id, number),
            line_id=coverage.id,
            number=number,
            reason=reason,
            kind="clawed_back",
            amount_micros=coverage.amount_micros - _given_back_micros(session, coverage.id),
            quantity=row.amount,
            transfer_id=taken.id,
            restored_by=by,
            restored_at=at,
        )
    )
    session.flush()
    post_all(session, [*transfers, taken], at=at)
    return row.amount


def take_out_of_claim(
    session: Session, row: ClaimLine, tenant_id: UUID, state: str, reason: str, by: str, at: datetime
) -> list[Transfer]:
    """Mark a standing line and say what brings its money back to where it could be claimed.

    A line under review becomes a disputed one, so that what stays of it may be claimed again; of an approved one
    every recorded movement is reversed.
    """
    claim = session.get_one(Claim, row.claim_id)
    session.refresh(claim, with_for_update=True)
    session.refresh(row)
    line_id, slug, asset = row.coverage_line_id, claim.slug, claim.asset
    record_step(session, claim.id, state.replace("_", " "), by, {"line": row.line, "reason": reason}, at)
    row.reason = reason
    if row.state == "claimed":
        row.state = "disputed"
        session.flush()
        return [movements.return_line(claim.id, line_id, slug, tenant_id, asset, row.amount)]
    row.state = state
    session.flush()
    recorded = [
        movements.approve_line(claim.id, line_id, slug, asset, row.amount),
        movements.claim_line(claim.id, line_id, slug, tenant_id, asset, row.amount),
    ]
    if claim.state in {"disbursed", "reconciled"}:
        payee = accounts.CENTRE if claim.claimant_id is None else str(claim.claimant_id)
        recorded.insert(0, movements.disburse_line(claim.id, line_id, slug, payee, asset, row.amount))
    undone = [movements.reverse(transfer.id, "take_out_of_claim") for transfer in recorded]
    if row.from_reserve:
        undone.append(movements.refill_reserve(claim.id, line_id, slug, asset, row.from_reserve))
    return undone


def next_number(session: Session, charge_id: UUID) -> int:
    """The number of a charge's next restoration or clawback."""
    last = session.scalar(
        select(func.max(Restoration.number))
        .join(CoverageLine, CoverageLine.id == Restoration.line_id)
        .where(CoverageLine.charge_id == charge_id)
    )
    return (last or 0) + 1


def _given_back_micros(session: Session, line_id: UUID) -> int:
    query = select(func.coalesce(func.sum(Restoration.amount_micros), 0))
    return int(session.scalars(query.where(Restoration.line_id == line_id)).one())
