"""Recharging: usage that was charged at the wrong cost is given back and charged again, by the very sources that paid.

A voucher that has ended since pays its share of the usage before its end all the same, out of what is given back to it;
only what is left of that goes on to the pool. So does an enterprise that paid for the tenant then and no longer does;
one that pays for it only now is not asked.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from ledger.posting import post_all
from ledger.reading import balances
from vouchers import accounts, movements
from vouchers.capturing import capture_charge, coverage_of
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import lock_tenants
from vouchers.errors import ChargeNotFound
from vouchers.redemption import place_hold, release_hold
from vouchers.restoration import restore_charge
from vouchers.tables import CoveredCharge, HoldLine, Voucher
from vouchers.wallets import payer_of


def recharge(
    session: Session, charge_id: UUID, new_id: UUID, cost_micros: int, *, reason: str, by: str, at: datetime
) -> Coverage:
    """Give a captured charge back whole and capture another cost for its usage; the hold for it is called `new_id`.

    Args:
        session: whose transaction this belongs to.
        charge_id: the captured charge.
        new_id: the charge that replaces it.
        cost_micros: what the usage should have cost; 0 gives back only.
        reason: why it is charged again.
        by: who says so.
        at: now.

    Returns:
        Who pays the new charge.

    Raises:
        ChargeNotFound; what `restore_charge` and `place_hold` refuse.
    """
    charge = session.get(CoveredCharge, charge_id)
    if charge is None:
        raise ChargeNotFound(charge=charge_id)
    lines = coverage_of(session, charge_id).lines
    paid_by = [UUID(line.voucher) for line in lines if line.voucher]
    others = sorted({UUID(line.payer) for line in lines if line.payer} - {charge.tenant_id})
    now = payer_of(session, charge.tenant_id)
    lock_tenants(session, [charge.tenant_id, *others, *([] if now is None else [now])])
    restore_charge(session, charge_id, reason=reason, by=by, at=at, forward=False)
    coverage = Coverage(0, ())
    if cost_micros:
        facts, until = ChargeFacts(**(charge.facts | {"card_ms": charge.card_ms})), charge.used_until
        place_hold(
            session,
            new_id,
            charge.tenant_id,
            cost_micros,
            facts,
            paid_by,
            at,
            usage_until=until,
            again=True,
            payers=(charge.tenant_id, *others),
        )
        coverage = capture_charge(session, new_id, new_id, cost_micros, facts, at, used_until=until)
        release_hold(session, new_id, at)
    _empty_ended(session, charge.job_id, new_id, at)
    return coverage


def _empty_ended(session: Session, hold_id: UUID, cause: UUID, at: datetime) -> None:
    """What is left on ended vouchers that a hold drew on goes on to the pools of the cycles they came from."""
    rows = session.execute(
        select(HoldLine.account_id, Voucher)
        .join(Voucher, Voucher.id == HoldLine.voucher_id)
        .where(HoldLine.job_id == hold_id, Voucher.state != "active")
        .ext(distinct_on(HoldLine.account_id))
        .order_by(HoldLine.account_id)
    )
    ended = {account_id: accounts.pool(row.slug, row.cycle, row.asset) for account_id, row in rows}
    transfers = [
        movements.return_freed(cause, account_id, ended[account_id], balance.available)
        for account_id, balance in sorted(balances(session, ended.keys()).items())
        if balance.available
    ]
    post_all(session, transfers, at=at)
