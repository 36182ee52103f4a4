"""The tenant's own money: prepaid balance, credit line, project budgets, group accounts, voucher parts.

None of them can go below nothing, because their accounts in the ledger cannot.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from kernel.money import MICROS_MAX
from kernel.prepared import Prepared
from ledger.domain.accounts import Account
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from ledger.reading import balances, moved_between, transfers
from vouchers import accounts, movements
from vouchers.enterprises import lock_tenants, relation
from vouchers.errors import (
    AlreadyBound,
    AmountRefused,
    BankReferenceUsed,
    BudgetDiffers,
    DatesReversed,
    GroupFull,
    NothingOwed,
    NotRelated,
    VoucherEnded,
    VoucherNotFound,
)
from vouchers.tables import GroupMember, ProjectBudget, Voucher, VoucherPart

AFFILIATES_MAX: Final = 6
ROUNDING_MICROS_MAX: Final = 1_000_000
"""Invoices ask for whole fen, so what is paid of them can be some fen more than was used of the credit line. So much
may stay on the line; it is used before the line is."""

_PAYER: Final = Prepared(select(GroupMember.payer_id).where(GroupMember.affiliate_id == bindparam("affiliate")))


@dataclass(frozen=True)
class WalletBalance:
    """An enterprise's own money in micro-yuan: what can be spent, and what open holds have set aside."""

    prepaid_available_micros: int
    prepaid_held_micros: int
    credit_available_micros: int
    credit_held_micros: int
    payer_id: UUID | None


def deposit(session: Session, tenant_id: UUID, amount_micros: int, reference: str, at: datetime) -> None:
    """Book money that arrived at the bank; the bank's reference is booked once.

    Raises:
        AmountRefused: not an amount.
        BankReferenceUsed: the reference was booked for another tenant, amount or purpose.
    """
    _check_amount(amount_micros)
    lock_tenants(session, [tenant_id])
    if not _is_booked(session, accounts.wallet(tenant_id), reference, amount_micros):
        _post(session, tenant_id, [movements.deposit(tenant_id, reference, amount_micros)], at)


def grant_credit(session: Session, tenant_id: UUID, amount_micros: int, reference: str, at: datetime) -> None:
    """Raise an enterprise's postpaid credit line by an amount."""
    _post_own(session, movements.grant_credit, tenant_id, reference, amount_micros, at)


def withdraw_credit(
    session: Session, tenant_id: UUID, amount_micros: int, reference: str, at: datetime
) -> None:
    """Lower a credit line by an amount that is neither used nor set aside. Raises InsufficientFunds."""
    _post_own(session, movements.withdraw_credit, tenant_id, reference, amount_micros, at)


def repay_credit(session: Session, tenant_id: UUID, amount_micros: int, reference: str, at: datetime) -> None:
    """Book a bank transfer for what was used before paying; the credit line can be used again.

    What it brings beyond what is owed (and `ROUNDING_MICROS_MAX`) goes to the prepaid balance, as the line is what the
    centre grants and no payment raises it. The bank's reference is booked once.

    Raises:
        AmountRefused: not an amount.
        NothingOwed: the credit line is not in use.
        BankReferenceUsed: the reference was booked for another tenant, amount or purpose.
    """
    _check_amount(amount_micros)
    lock_tenants(session, [tenant_id])
    if _is_booked(session, accounts.credit_line(tenant_id), reference, amount_micros):
        return
    owed = owed_micros(session, tenant_id)
    if owed <= 0:
        raise NothingOwed(enterprise=tenant_id, reference=reference)
    repaid = min(amount_micros, owed + ROUNDING_MICROS_MAX)
    booked = [movements.repay_credit(tenant_id, reference, repaid)]
    if amount_micros > repaid:
        booked.append(movements.keep_surplus(tenant_id, reference, amount_micros - repaid))
    _post(session, tenant_id, booked, at)


def owed_micros(session: Session, tenant_id: UUID) -> int:
    """What an enterprise has used of its credit line and not paid; what is only set aside is not owed yet."""
    line = accounts.credit_line(tenant_id)
    granted = moved_between(session, accounts.CREDIT_GRANTED.id, line.id)
    granted -= moved_between(session, line.id, accounts.CREDIT_GRANTED.id)
    balance = balances(session, [line.id]).get(line.id)
    return granted - (0 if balance is None else balance.net)


def wallet_balance(session: Session, tenant_id: UUID) -> WalletBalance:
    """What an enterprise can spend of its own, and who pays for it if it is bound to a group."""
    prepaid, credit = accounts.wallet(tenant_id), accounts.credit_line(tenant_id)
    found = balances(session, [prepaid.id, credit.id])

    def figures(account: Account) -> tuple[int, int]:
        balance = found.get(account.id)
        return (0, 0) if balance is None else (balance.available or 0, balance.debits_pending)

    return WalletBalance(*figures(prepaid), *figures(credit), payer_of(session, tenant_id))


def set_budget(
    session: Session,
    tenant_id: UUID,
    project: str,
    *,
    starts_at: datetime,
    ends_at: datetime,
    amount_micros: int,
    reference: str,
    by: str,
    at: datetime,
    lower: bool = False,
) -> UUID:
    """Raise (or lower) what the enterprise itself may spend on a project in a period.

    A project without a budget for a time is not limited at that time.

    Raises:
        DatesReversed: the period ends before it starts.
        BudgetDiffers: the one that begins then ends at another time.
        InsufficientFunds: lowered below what is spent or set aside.
    """
    if ends_at <= starts_at:
        raise DatesReversed(field="ends_at", starts_at=starts_at, ends_at=ends_at)
    lock_tenants(session, [tenant_id])
    budget_id = derived_id("budget", tenant_id, project, starts_at.astimezone(UTC).isoformat())
    known = session.get(ProjectBudget, budget_id)
    if known is not None and known.ends_at != ends_at:
        raise BudgetDiffers(project=project, starts_at=known.starts_at, ends_at=known.ends_at)
    if known is None:
        session.add(
            ProjectBudget(
                id=budget_id,
                enterprise_id=tenant_id,
                project=project,
                starts_at=starts_at,
                ends_at=ends_at,
                set_by=by,
            )
        )
        session.flush()
    movement = movements.lower_budget if lower else movements.raise_budget
    _check_amount(amount_micros)
    accounts.ensure(session, [accounts.project_budget(budget_id), accounts.BUDGET_LIMITS], at)
    post_all(session, [movement(budget_id, reference, amount_micros)], at=at)
    return budget_id


def bind_affiliate(session: Session, payer_id: UUID, affiliate_id: UUID, *, by: str, at: datetime) -> None:
    """Bind an affiliate to the enterprise that pays for it: at most six per payer, each bound once.

    Raises:
        NotRelated: they are not of one group.
        AlreadyBound: the affiliate has a payer, pays for others itself, or the payer is bound.
        GroupFull: six are bound.
    """
    rows = {row.id: row for row in lock_tenants(session, [payer_id, affiliate_id])}
    bound_to = payer_of(session, affiliate_id)
    if bound_to == payer_id:
        return
    places = _places(session, payer_id)
    for enterprise, payer in (
        (affiliate_id, bound_to),
        (payer_id, payer_of(session, payer_id)),
        (affiliate_id, affiliate_id if _places(session, affiliate_id) else None),
        (payer_id, payer_id if affiliate_id == payer_id else None),
    ):
        if payer is not None:
            raise AlreadyBound(enterprise=enterprise, payer=payer)
    if not relation(session, rows[payer_id].credit_code, rows[affiliate_id].credit_code):
        raise NotRelated(affiliate=affiliate_id, payer=payer_id)
    free = [place for place in range(1, AFFILIATES_MAX + 1) if place not in places]
    if not free:
        raise GroupFull(payer=payer_id, count=len(places), allowed=AFFILIATES_MAX)
    session.add(
        GroupMember(affiliate_id=affiliate_id, payer_id=payer_id, place=free[0], bound_by=by, bound_at=at)
    )
    session.flush()


def unbind_affiliate(session: Session, payer_id: UUID, affiliate_id: UUID) -> None:
    """Stop paying for an affiliate; what is set aside for its running jobs stays set aside."""
    lock_tenants(session, [payer_id, affiliate_id])
    member = session.get(GroupMember, affiliate_id)
    if member is not None and member.payer_id == payer_id:
        session.delete(member)
        session.flush()


def payer_of(session: Session, tenant_id: UUID) -> UUID | None:
    """Who pays for an enterprise besides itself."""
    return next((payer_id for (payer_id,) in _PAYER(session, affiliate=tenant_id)), None)


def allot_part(
    session: Session,
    tenant_id: UUID,
    voucher_id: UUID,
    project: str,
    amount: int,
    *,
    reference: str,
    by: str,
    at: datetime,
    back: bool = False,
) -> None:
    """Keep a part of a voucher for one project, or (`back`) give it back; parts can never exceed the voucher.

    Raises:
        VoucherNotFound: the tenant has no such voucher.
        VoucherEnded: it was recalled or has expired.
        InsufficientFunds: the voucher (or the part) has less left.
    """
    _check_amount(amount)
    lock_tenants(session, [tenant_id])
    voucher = session.get(Voucher, voucher_id)
    if voucher is None or voucher.enterprise_id != tenant_id:
        raise VoucherNotFound(voucher=voucher_id)
    if voucher.state != "active" or at >= voucher.expires_at:
        raise VoucherEnded(voucher=voucher.number, state=voucher.state)
    whole = accounts.voucher(voucher_id, voucher.asset)
    part = accounts.voucher_part(voucher_id, project, voucher.asset)
    accounts.ensure(session, [part], at)
    if session.get(VoucherPart, (voucher_id, project)) is None:
        session.add(VoucherPart(voucher_id=voucher_id, project=project, opened_by=by, opened_at=at))
        session.flush()
    movement = movements.return_part if back else movements.allot_part
    allotment_id = derived_id("allotment", voucher_id, project, reference)
    post_all(session, [movement(allotment_id, whole, part, amount)], at=at)


def _post_own(
    session: Session,
    movement: Callable[[UUID, str, int], Transfer],
    tenant_id: UUID,
    reference: str,
    amount_micros: int,
    at: datetime,
) -> None:
    _check_amount(amount_micros)
    lock_tenants(session, [tenant_id])
    _post(session, tenant_id, [movement(tenant_id, reference, amount_micros)], at)


def _post(session: Session, tenant_id: UUID, booked: Sequence[Transfer], at: datetime) -> None:
    own = [accounts.wallet(tenant_id), accounts.credit_line(tenant_id)]
    accounts.ensure(session, [*own, accounts.BANK, accounts.CREDIT_GRANTED], at)
    post_all(session, booked, at=at)


def _is_booked(session: Session, place: Account, reference: str, amount_micros: int) -> bool:
    """Whether a bank transfer has been booked to this place. Raises BankReferenceUsed: it was booked otherwise."""
    bank_id = movements.bank_transfer_id(reference)
    booked = transfers(session, [bank_id, movements.surplus_id(reference)])
    if bank_id not in booked:
        return False
    amount, movement = sum(part.amount for part in booked.values()), booked[bank_id].movement
    if (booked[bank_id].credit, amount) != (place.id, amount_micros):
        raise BankReferenceUsed(reference=reference, movement=movement.replace("_", " "), amount=amount)
    return True


def _places(session: Session, payer_id: UUID) -> Sequence[int]:
    return session.scalars(select(GroupMember.place).where(GroupMember.payer_id == payer_id)).all()


def _check_amount(amount: int) -> None:
    if type(amount) is not int or not 1 <= amount <= MICROS_MAX:
        raise AmountRefused(field="amount", value=amount)
