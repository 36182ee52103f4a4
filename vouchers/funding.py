"""What could pay for a tenant's usage now: its vouchers, its own money, its group's payer.

Callers that go on to set money aside hold the tenant's lock, so that what is read here stays true.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.domain.accounts import Account
from ledger.reading import balances
from vouchers import accounts
from vouchers.domain.applicability import HeldVoucher, NotApplicable, candidate, ratio_for
from vouchers.domain.coverage import Candidate
from vouchers.domain.explanation import CREDIT, PREPAID
from vouchers.domain.facts import ChargeFacts, EnterpriseFacts
from vouchers.errors import (
    VoucherEnded,
    VoucherExpired,
    VoucherNotApplicable,
    VoucherNotFound,
    VoucherPastUse,
    VoucherSpent,
)
from vouchers.programmes import terms_of_digest
from vouchers.tables import ProgrammeVersion, Voucher, VoucherPart
from vouchers.wallets import budget_at

VOUCHERS_MAX: Final = 200
"""Of one tenant weighed at once; beyond it those that last longest wait for the others to be used up."""


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
    known: Collection[UUID] = ()
    """The accounts that exist, of those that paying may touch."""


def find_funding(
    session: Session,
    payers: Sequence[UUID],
    facts: ChargeFacts,
    voucher_ids: Sequence[UUID] | None,
    at: datetime,
    usage_until: datetime,
    *,
    insist: bool = True,
) -> Funding:
    """What could pay for usage from now until then.

    Args:
        session: whose transaction this belongs to.
        payers: whose usage it is, and then who else pays for that enterprise.
        facts: what is used.
        voucher_ids: the vouchers to use; None for all that apply, empty for none.
        at: now.
        usage_until: a voucher that ends earlier does not pay.
        insist: refuse when a named voucher cannot pay, instead of going on without it.

    Raises:
        VoucherNotFound, VoucherEnded, VoucherExpired, VoucherPastUse, VoucherSpent, VoucherNotApplicable: about a named
        voucher.
    """
    insist = insist and voucher_ids is not None
    tenant_id = payers[0]
    rows = _rows(session, tenant_id, voucher_ids)
    places = _places(session, [row for row, _ in rows], facts.project)
    own = _own_places(payers)
    budget = _budget(session, tenant_id, facts, at)
    found = balances(session, _all_ids(tenant_id, rows, places, own, budget))

    def left(account: Account) -> int:
        return (found[account.id].available or 0) if account.id in found else 0

    sources = []
    for row, digest in rows:
        account = places[row.id]
        held = _held(session, row, digest, left(account))
        tier = ratio_for(held, facts)
        if isinstance(tier, NotApplicable):
            if insist:
                raise VoucherNotApplicable(voucher=row.number, reason=tier.reason, clause=tier.clause)
            continue
        if insist:
            _check_usable(row, held.remaining, at, usage_until)
        if _usable(row, held.remaining, at, usage_until):
            sources.append(
                VoucherSource(
                    candidate(held, tier, facts), account, row.id, row.version_id, row.slug, row.use_by_at
                )
            )
    return Funding(
        vouchers=tuple(sources),
        own=tuple(OwnSource(source, payer, account, left(account)) for source, payer, account in own),
        budget=None if budget is None else (budget, left(budget)),
        known=found.keys(),
    )


def _rows(
    session: Session, tenant_id: UUID, voucher_ids: Sequence[UUID] | None
) -> Sequence[tuple[Voucher, str]]:
    """The tenant's vouchers in question, as they are now, with the digests of their versions' documents."""
    if voucher_ids is not None and not voucher_ids:
        return []
    query = (
        select(Voucher, ProgrammeVersion.digest)
        .join(ProgrammeVersion, ProgrammeVersion.id == Voucher.version_id)
        .where(Voucher.enterprise_id == tenant_id)
        .order_by(Voucher.use_by_at, Voucher.id)
        .execution_options(populate_existing=True)
    )
    if voucher_ids is None:
        query = query.where(Voucher.state == "active").limit(VOUCHERS_MAX)
    else:
        query = query.where(Voucher.id.in_(voucher_ids))
    rows = [(row, digest) for row, digest in session.execute(query)]
    missing = set(voucher_ids or ()) - {row.id for row, _ in rows}
    if missing:
        raise VoucherNotFound(voucher=min(missing))
    return rows


def _all_ids(
    tenant_id: UUID,
    rows: Sequence[tuple[Voucher, str]],
    places: dict[UUID, Account],
    own: Sequence[tuple[str, UUID, Account]],
    budget: Account | None,
) -> set[UUID]:
    """Every account that paying may touch, so that one look suffices."""
    wanted = [*places.values(), *(account for _, _, account in own), accounts.revenue(tenant_id)]
    wanted += [accounts.claimable(row.slug, tenant_id, row.asset) for row, _ in rows]
    if budget is not None:
        wanted += [budget, accounts.BUDGET_SPENT]
    return {account.id for account in wanted}


def _places(session: Session, rows: Sequence[Voucher], project: str | None) -> dict[UUID, Account]:
    """Per voucher the account that pays: the project's part where it has one, else the voucher itself."""
    parts: set[UUID] = set()
    if project is not None and rows:
        found = session.scalars(
            select(VoucherPart.voucher_id).where(
                VoucherPart.voucher_id.in_([row.id for row in rows]), VoucherPart.project == project
            )
        )
        parts = set(found)
    return {
        row.id: accounts.voucher_part(row.id, project, row.asset)
        if project is not None and row.id in parts
        else accounts.voucher(row.id, row.asset)
        for row in rows
    }


def _held(session: Session, row: Voucher, digest: str, remaining: int) -> HeldVoucher:
    return HeldVoucher(
        voucher=str(row.id),
        number=row.number,
        version=str(row.version_id),
        terms=terms_of_digest(session, row.version_id, digest),
        holder=EnterpriseFacts.from_json(row.holder),
        issued_at=row.issued_at,
        use_by_at=row.use_by_at,
        remaining=remaining,
    )


def _usable(row: Voucher, remaining: int, at: datetime, usage_until: datetime) -> bool:
    return row.state == "active" and at < row.use_by_at and usage_until <= row.use_by_at and remaining > 0


def _check_usable(row: Voucher, remaining: int, at: datetime, usage_until: datetime) -> None:
    if row.state == "recalled":
        raise VoucherEnded(voucher=row.number, state=row.state)
    if row.state == "expired" or at >= row.expires_at or usage_until > row.expires_at:
        raise VoucherExpired(voucher=row.number, expired_at=row.expires_at.isoformat())
    if at >= row.use_by_at or usage_until > row.use_by_at:
        raise VoucherPastUse(voucher=row.number, use_by_at=row.use_by_at.isoformat())
    if remaining <= 0:
        raise VoucherSpent(voucher=row.number)


def _own_places(payers: Sequence[UUID]) -> list[tuple[str, UUID, Account]]:
    """Own prepaid balance, the payer's, own credit line, the payer's."""
    places = [(PREPAID, payer, accounts.wallet(payer)) for payer in payers]
    return places + [(CREDIT, payer, accounts.credit_line(payer)) for payer in payers]


def _budget(session: Session, tenant_id: UUID, facts: ChargeFacts, at: datetime) -> Account | None:
    budget_id = budget_at(session, tenant_id, facts.project, at)
    return None if budget_id is None else accounts.project_budget(budget_id)
