"""What could pay for one usage now, in the order in which it does: vouchers, own money, its payer's money."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from ledger.domain.accounts import Account
from vouchers.domain.applicability import HeldVoucher, NotApplicable, candidate, ratio_for
from vouchers.domain.coverage import Candidate
from vouchers.domain.explanation import CREDIT, PREPAID
from vouchers.errors import (
    VoucherEnded,
    VoucherExpired,
    VoucherNotApplicable,
    VoucherNotFound,
    VoucherPastUse,
    VoucherSpent,
)
from vouchers.means import Means, Owned, Wish, own_places


@dataclass(frozen=True)
class VoucherSource:
    """A voucher that may pay, and the account that would."""

    candidate: Candidate
    account: Account
    voucher_id: UUID
    version_id: UUID
    slug: str
    use_by_at: datetime


@dataclass(frozen=True)
class OwnSource:
    """An account of the tenant, or of its group's payer, and what it has."""

    source: str
    payer_id: UUID
    account: Account
    available: int


@dataclass(frozen=True)
class Funding:
    """Everything that could pay, each in the order in which it does."""

    vouchers: tuple[VoucherSource, ...]
    own: tuple[OwnSource, ...]
    budget: tuple[Account, int] | None


def find_funding(
    means: Means,
    wish: Wish,
    at: datetime,
    usage_until: datetime,
    *,
    insist: bool = True,
    ended_too: bool = False,
) -> Funding:
    """What could pay for usage from now until then.

    Args:
        means: what the tenant has.
        wish: the usage and how it is to be paid.
        at: now.
        usage_until: a voucher that ends earlier does not pay.
        insist: refuse when a named voucher cannot pay, instead of going on without it.
        ended_too: let a named voucher that has ended pay for usage before its end with what was given back to it.

    Raises:
        VoucherNotFound, VoucherEnded, VoucherExpired, VoucherPastUse, VoucherSpent, VoucherNotApplicable: about a named
        voucher.
    """
    insist = insist and wish.voucher_ids is not None
    rows, missing = means.vouchers(wish)
    if missing:
        raise VoucherNotFound(voucher=missing[0])
    sources = []
    for row in rows:
        account = means.place(row, wish.facts.project)
        held = _held(row, means.available(account))
        tier = ratio_for(held, wish.facts)
        if isinstance(tier, NotApplicable):
            if insist:
                raise VoucherNotApplicable(voucher=row.number, reason=tier.reason, clause=tier.clause)
            continue
        if insist:
            _check_usable(row, held.remaining, at, usage_until)
        living = row.state == "active" and at < row.use_by_at
        if (living or ended_too) and usage_until <= row.use_by_at and held.remaining > 0:
            paying = candidate(held, tier, wish.facts)
            sources.append(VoucherSource(paying, account, row.id, row.version_id, row.slug, row.use_by_at))
    budget = means.budget(wish)
    return Funding(
        vouchers=tuple(sources),
        own=_own(means, wish),
        budget=None if budget is None else (budget, means.available(budget)),
    )


def _own(means: Means, wish: Wish) -> tuple[OwnSource, ...]:
    """Own prepaid balance, the payer's, own credit line, the payer's."""
    places = own_places(wish.payers)
    named = [(PREPAID, payer, wallet) for payer, wallet, _ in places]
    named += [(CREDIT, payer, line) for payer, _, line in places]
    return tuple(
        OwnSource(source, payer, account, means.available(account)) for source, payer, account in named
    )


def _held(row: Owned, remaining: int) -> HeldVoucher:
    return HeldVoucher(
        voucher=str(row.id),
        number=row.number,
        version=str(row.version_id),
        terms=row.terms,
        holder=row.holder,
        issued_at=row.issued_at,
        use_by_at=row.use_by_at,
        remaining=remaining,
    )


def _check_usable(row: Owned, remaining: int, at: datetime, usage_until: datetime) -> None:
    if row.state == "recalled":
        raise VoucherEnded(voucher=row.number, state=row.state)
    if row.state == "expired" or at >= row.expires_at or usage_until > row.expires_at:
        raise VoucherExpired(voucher=row.number, expired_at=row.expires_at.isoformat())
    if at >= row.use_by_at or usage_until > row.use_by_at:
        raise VoucherPastUse(voucher=row.number, use_by_at=row.use_by_at.isoformat())
    if remaining <= 0:
        raise VoucherSpent(voucher=row.number)
