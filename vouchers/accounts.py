"""The chart of accounts: each account's name, asset and bound, and an id that follows from the name.

What each means and what always holds is in this folder's README.
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.domain.accounts import CNY, Account, Bound
from ledger.posting import open_accounts
from ledger.reading import balances


@lru_cache(maxsize=100_000)
def _account(name: str, asset: str, bound: Bound) -> Account:
    full = name if asset == CNY else f"{name}/{asset}"
    return Account(derived_id("account", full), full, asset, bound)


def authority_funds(authority: str, asset: str) -> Account:
    """Where an authority's money comes from, and goes back to."""
    return _account(f"authority/{authority}/funds", asset, Bound.NONE)


def pool(slug: str, cycle: str, asset: str) -> Account:
    """What a programme may still issue in a cycle."""
    return _account(f"programme/{slug}/pool/{cycle}", asset, Bound.CREDIT)


def promised(application_id: UUID, asset: str) -> Account:
    """The parts of a grant that wait for a progress report."""
    return _account(f"application/{application_id}/promised", asset, Bound.CREDIT)


def voucher(voucher_id: UUID, asset: str) -> Account:
    """What remains on a voucher, parts for projects left out."""
    return _account(f"voucher/{voucher_id}", asset, Bound.CREDIT)


def voucher_part(voucher_id: UUID, project: str, asset: str) -> Account:
    """What remains of a voucher's part for one project."""
    return _account(f"voucher/{voucher_id}/project/{project}", asset, Bound.CREDIT)


def claimable(slug: str, enterprise_id: UUID, asset: str) -> Account:
    """Captured from an enterprise's vouchers of a programme and not yet claimed."""
    return _account(f"programme/{slug}/claimable/{enterprise_id}", asset, Bound.CREDIT)


def claimed(slug: str, asset: str) -> Account:
    """In claims that are under review."""
    return _account(f"programme/{slug}/claimed", asset, Bound.CREDIT)


def payable(slug: str, asset: str) -> Account:
    """Approved and not yet disbursed."""
    return _account(f"programme/{slug}/payable", asset, Bound.CREDIT)


def reserve_used(slug: str, asset: str) -> Account:
    """The part of the reserve fund that claims have used up; it is made good from the programme's money."""
    return _account(f"programme/{slug}/reserve/used", asset, Bound.NONE)


def reserve(slug: str, asset: str) -> Account:
    """What is left of the money advanced to the centre."""
    return _account(f"programme/{slug}/reserve/left", asset, Bound.CREDIT)


def disbursed(slug: str, payee: str, asset: str) -> Account:
    """What a programme has paid out to the centre or to a buyer, after what was taken back."""
    return _account(f"programme/{slug}/disbursed/{payee}", asset, Bound.CREDIT)


def revenue(enterprise_id: UUID) -> Account:
    """What the centre earned from an enterprise's own money."""
    return _account(f"enterprise/{enterprise_id}/revenue", CNY, Bound.NONE)


def wallet(enterprise_id: UUID) -> Account:
    """An enterprise's prepaid balance."""
    return _account(f"enterprise/{enterprise_id}/prepaid", CNY, Bound.CREDIT)


def credit_line(enterprise_id: UUID) -> Account:
    """What an enterprise may still use before it has paid."""
    return _account(f"enterprise/{enterprise_id}/credit", CNY, Bound.CREDIT)


def project_budget(budget_id: UUID) -> Account:
    """What an enterprise may still spend itself on a project in a period."""
    return _account(f"budget/{budget_id}", CNY, Bound.CREDIT)


CENTRE: Final = "centre"
BANK: Final = _account("bank", CNY, Bound.NONE)
ROUNDING: Final = _account("centre/rounding", CNY, Bound.NONE)
CREDIT_GRANTED: Final = _account("centre/credit-granted", CNY, Bound.NONE)
BUDGET_LIMITS: Final = _account("budget/limits", CNY, Bound.NONE)
BUDGET_SPENT: Final = _account("budget/spent", CNY, Bound.NONE)


def ensure(
    session: Session, accounts: Iterable[Account], at: datetime, known: Collection[UUID] | None = None
) -> None:
    """Make accounts exist that may not yet; `known` are those already seen, if the caller has looked."""
    wanted = {account.id: account for account in accounts}
    if known is None:
        known = balances(session, wanted.keys())
    missing = [account for account_id, account in sorted(wanted.items()) if account_id not in known]
    if missing:
        open_accounts(session, missing, at=at)


def available(session: Session, accounts: Iterable[Account]) -> dict[UUID, int]:
    """What bounded accounts may still pay, open holds counted; nothing where there is no account yet."""
    wanted = [account.id for account in accounts]
    found = balances(session, wanted)
    return {
        account_id: (found[account_id].available or 0) if account_id in found else 0 for account_id in wanted
    }
