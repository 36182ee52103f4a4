"""What could pay for a tenant's usage now: its vouchers, its own money, its group's payer.

Callers that go on to set money aside hold the tenant's lock, so that what is read here stays true.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from ledger.domain.accounts import Account
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
    VoucherSpent,
)
from vouchers.programmes import terms_of
from vouchers.tables import Voucher, VoucherPart
from vouchers.wallets import budget_at, payer_of

VOUCHERS_MAX: Final = 200
"""Of one tenant weighed at once; beyond it the longest-lasting wait for the others to be used up."""


@dataclass(frozen=True)
class VoucherSource:
    """A voucher that may pay, and the account that would."""

    candidate: Candidate
    account: Account
    voucher_id: UUID
    version_id: UUID
    slug: str
    expires_at: datetime


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
    session: Session,
    tenant_id: UUID,
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
        tenant_id: whose usage it is.
        facts: what is used.
        voucher_ids: the vouchers to use; None for all that apply, empty for none.
        at: now.
        usage_until: a voucher that ends earlier does not pay.
        insist: refuse when a named voucher cannot pay, instead of going on without it.

    Raises:
        VoucherNotFound, VoucherEnded, VoucherExpired, VoucherSpent, VoucherNotApplicable: about a named
        voucher.
    """
    insist = insist and voucher_ids is not None
    rows = _rows(session, tenant_id, voucher_ids)
    places = _places(session, rows, facts.project)
    left = accounts.available(session, places.values())
    sources = []
    for row in rows:
        account = places[row.id]
        held = _held(session, row, left[account.id])
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
                    candidate(held, tier, facts), account, row.id, row.version_id, row.slug, row.expires_at
                )
            )
    return Funding(tuple(sources), _own_sources(session, tenant_id), _budget(session, tenant_id, facts, at))


def _rows(session: Session, tenant_id: UUID, voucher_ids: Sequence[UUID] | None) -> Sequence[Voucher]:
    query = select(Voucher).where(Voucher.enterprise_id == tenant_id).order_by(Voucher.expires_at, Voucher.id)
    if voucher_ids is None:
        return session.scalars(query.where(Voucher.state == "active").limit(VOUCHERS_MAX)).all()
    if not voucher_ids:
        return []
    rows = session.scalars(query.where(Voucher.id.in_(voucher_ids))).all()
    missing = set(voucher_ids) - {row.id for row in rows}
    if missing:
        raise VoucherNotFound(voucher=min(missing))
    return rows


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


def _held(session: Session, row: Voucher, remaining: int) -> HeldVoucher:
    return HeldVoucher(
        voucher=str(row.id),
        number=row.number,
        terms=terms_of(session, row.version_id),
        holder=EnterpriseFacts.from_json(row.holder),
        issued_at=row.issued_at,
        expires_at=row.expires_at,
        remaining=remaining,
    )


def _usable(row: Voucher, remaining: int, at: datetime, usage_until: datetime) -> bool:
    return row.state == "active" and at < row.expires_at and usage_until <= row.expires_at and remaining > 0


def _check_usable(row: Voucher, remaining: int, at: datetime, usage_until: datetime) -> None:
    if row.state == "recalled":
        raise VoucherEnded(voucher=row.number, state=row.state)
    if row.state == "expired" or at >= row.expires_at or usage_until > row.expires_at:
        raise VoucherExpired(voucher=row.number, expired_at=row.expires_at.isoformat())
    if remaining <= 0:
        raise VoucherSpent(voucher=row.number)


def _own_sources(session: Session, tenant_id: UUID) -> tuple[OwnSource, ...]:
    """Own prepaid balance, the payer's, own credit line, the payer's."""
    payer_id = payer_of(session, tenant_id)
    payers = [tenant_id] if payer_id is None else [tenant_id, payer_id]
    places = [(PREPAID, payer, accounts.wallet(payer)) for payer in payers]
    places += [(CREDIT, payer, accounts.credit_line(payer)) for payer in payers]
    left = accounts.available(session, [account for _, _, account in places])
    return tuple(OwnSource(source, payer, account, left[account.id]) for source, payer, account in places)


def _budget(session: Session, tenant_id: UUID, facts: ChargeFacts, at: datetime) -> tuple[Account, int] | None:
    budget_id = budget_at(session, tenant_id, facts.project, at)
    if budget_id is None:
        return None
    account = accounts.project_budget(budget_id)
    return account, accounts.available(session, [account])[account.id]
