"""Clawback: what was claimed wrongly is taken back, by reversing what was recorded, newest movement first.

The money ends in the pool, not with the voucher's holder. The payee owes it: its `disbursed` account falls.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.claims import claim_of, record_step
from vouchers.enterprises import lock_tenants
from vouchers.errors import ClaimLineNotFound, ClaimState
from vouchers.tables import ClaimLine, CoverageLine, CoveredCharge, HoldLine, Restoration, Voucher


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
    if row.state != "approved" or coverage.transfer_id is None:
        raise ClaimState(claim=claim_id, state=row.state, step="clawback", needed="approved")
    voucher = session.get_one(Voucher, coverage.voucher_id)
    pool = accounts.pool(voucher.slug, voucher.cycle, voucher.asset)
    recorded = [
        movements.approve_line(claim_id, coverage.id, claim.slug, claim.asset, row.amount),
        movements.claim_line(claim_id, coverage.id, claim.slug, charge.tenant_id, claim.asset, row.amount),
    ]
    if claim.state in {"disbursed", "reconciled"}:
        payee = accounts.CENTRE if claim.claimant_id is None else str(claim.claimant_id)
        paid = movements.disburse_line(claim_id, coverage.id, claim.slug, payee, claim.asset, row.amount)
        recorded.insert(0, paid)
    undone = [
        movements.reverse(transfer_id, "claw_back_line")
        for transfer_id in [*(transfer.id for transfer in recorded), coverage.transfer_id]
    ]
    source = _account_of(session, charge.job_id, coverage)
    row.state, row.reason = "clawed_back", reason
    session.add(
        Restoration(
            line_id=coverage.id,
            reason=reason,
            kind="clawed_back",
            transfer_id=undone[-1].id,
            restored_by=by,
            restored_at=at,
        )
    )
    session.flush()
    post_all(session, [*undone, movements.claw_back(coverage.id, source, pool, row.amount)], at=at)
    record_step(session, claim_id, "clawed back", by, {"line": line, "reason": reason}, at)
    return row.amount


def _account_of(session: Session, job_id: UUID, coverage: CoverageLine) -> UUID:
    """The voucher's account, or its part's, that paid this line."""
    return session.scalars(
        select(HoldLine.account_id).where(
            HoldLine.job_id == job_id,
            HoldLine.segment == coverage.segment,
            HoldLine.voucher_id == coverage.voucher_id,
        )
    ).one()
