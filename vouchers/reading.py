"""Reading vouchers: totals of programmes, vouchers with what remains, claims with their lines.

Amounts are in the smallest unit of the programme's asset and come from the ledger's balances.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, cast, func, literal, select, tuple_, type_coerce, union_all
from sqlalchemy.orm import Session

from ledger.domain.accounts import CNY, Account
from ledger.reading import balances
from ledger.tables import AccountRow
from vouchers import accounts
from vouchers.claims import claim_of, given_back
from vouchers.tables import (
    Appropriation,
    Claim,
    ClaimLine,
    CoverageLine,
    CoveredCharge,
    CycleClosing,
    Programme,
    Voucher,
    VoucherPart,
)

PAGE_MAX = 500


@dataclass(frozen=True)
class ProgrammeTotals:
    """Where a programme's money is, over all cycles: `budget` = `pool` + `issued` − `returned`.

    `budget` is what its authorities put in, less what they got back of cycles that are over.
    """

    slug: str
    asset: str
    budget: int
    pool: int
    issued: int
    remaining: int
    held: int
    captured: int
    returned: int
    claimed: int
    disbursed: int


@dataclass(frozen=True)
class VoucherView:
    """A voucher and where its face value is."""

    id: UUID
    number: str
    slug: str
    enterprise_id: UUID
    asset: str
    state: str
    issued_at: datetime
    use_by_at: datetime
    expires_at: datetime
    face: int
    held: int
    captured: int
    remaining: int


@dataclass(frozen=True)
class ClaimLineView:
    """A claim line with what it rests on."""

    line: int
    coverage_line_id: UUID
    charge_id: UUID
    job_id: UUID
    tenant_id: UUID
    voucher_id: UUID | None
    clause: str
    sentence: str
    used_until: datetime
    amount: int
    state: str
    reason: str
    sampled: bool


@dataclass(frozen=True)
class ClaimView:
    """A claim with its lines."""

    id: UUID
    slug: str
    period: str
    sequence: int
    claimant_id: UUID | None
    asset: str
    state: str
    amount: int
    approved: int | None
    made_at: datetime
    lines: tuple[ClaimLineView, ...]


def list_programmes(session: Session) -> list[str]:
    """The slugs of all programmes."""
    return list(session.scalars(select(Programme.slug).order_by(Programme.slug)))


def programme_totals(session: Session, slug: str) -> ProgrammeTotals:
    """Where a programme's money is; zeros for a programme that has none."""
    asset = session.scalar(select(Programme.asset).where(Programme.slug == slug)) or "CNY"
    budget = _sum(session, select(func.sum(Appropriation.amount)).where(Appropriation.slug == slug))
    budget -= _sum(
        session,
        select(func.sum(CycleClosing.amount)).where(
            CycleClosing.slug == slug, CycleClosing.carried_to.is_(None)
        ),
    )
    cycles = session.scalars(select(Appropriation.cycle).where(Appropriation.slug == slug).distinct())
    pools = _net(session, [accounts.pool(slug, cycle, asset) for cycle in cycles])
    issued = _sum(session, select(func.sum(Voucher.face)).where(Voucher.slug == slug))
    held, remaining = _on_vouchers(session, slug, asset)
    taken = sum(_captured_by_voucher(session, CoverageLine.slug == slug).values())
    return ProgrammeTotals(
        slug=slug,
        asset=asset,
        budget=budget,
        pool=pools,
        issued=issued,
        remaining=remaining,
        held=held,
        captured=taken,
        returned=issued - remaining - held - taken,
        claimed=_net(session, [accounts.claimed(slug, asset), accounts.payable(slug, asset)]),
        disbursed=_sum(
            session,
            select(func.sum(ClaimLine.amount))
            .join(Claim, Claim.id == ClaimLine.claim_id)
            .where(
                Claim.slug == slug,
                Claim.state.in_(("disbursed", "reconciled")),
                ClaimLine.state == "approved",
            ),
        ),
    )


def list_vouchers(
    session: Session,
    *,
    enterprise_id: UUID | None = None,
    slug: str | None = None,
    state: str | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[VoucherView]:
    """Up to `limit` vouchers in the order of their ids, of one enterprise or programme if named."""
    query = select(Voucher).order_by(Voucher.id).limit(min(limit, PAGE_MAX))
    if enterprise_id is not None:
        query = query.where(Voucher.enterprise_id == enterprise_id)
    if slug is not None:
        query = query.where(Voucher.slug == slug)
    if state is not None:
        query = query.where(Voucher.state == state)
    if after is not None:
        query = query.where(Voucher.id > after)
    return _views(session, session.scalars(query).all())


def list_claims(
    session: Session,
    *,
    claimant_id: UUID | None = None,
    slug: str | None = None,
    state: str | None = None,
    after: Claim | None = None,
    limit: int = 100,
) -> list[Claim]:
    """Up to `limit` claims that come after one, newest first; one claimant's, programme's or state's if named."""
    query = select(Claim).order_by(Claim.made_at.desc(), Claim.id.desc()).limit(min(limit, PAGE_MAX))
    if claimant_id is not None:
        query = query.where(Claim.claimant_id == claimant_id)
    if slug is not None:
        query = query.where(Claim.slug == slug)
    if state is not None:
        query = query.where(Claim.state == state)
    if after is not None:
        query = query.where(tuple_(Claim.made_at, Claim.id) < (after.made_at, after.id))
    return list(session.scalars(query))


def claim_view(session: Session, claim_id: UUID, *, after: int = 0, limit: int | None = None) -> ClaimView:
    """A claim with its lines, or up to `limit` of those after one, and what each rests on. Raises ClaimNotFound."""
    claim = claim_of(session, claim_id)
    found = session.execute(
        select(ClaimLine, CoverageLine, CoveredCharge)
        .join(CoverageLine, CoverageLine.id == ClaimLine.coverage_line_id)
        .join(CoveredCharge, CoveredCharge.charge_id == CoverageLine.charge_id)
        .where(ClaimLine.claim_id == claim_id, ClaimLine.line > after)
        .order_by(ClaimLine.line)
        .limit(limit)
    )
    return ClaimView(
        id=claim.id,
        slug=claim.slug,
        period=claim.period,
        sequence=claim.sequence,
        claimant_id=claim.claimant_id,
        asset=claim.asset,
        state=claim.state,
        amount=claim.amount,
        approved=claim.approved,
        made_at=claim.made_at,
        lines=tuple(_claim_line(*rows) for rows in found),
    )


def _claim_line(row: ClaimLine, line: CoverageLine, charge: CoveredCharge) -> ClaimLineView:
    return ClaimLineView(
        line=row.line,
        coverage_line_id=line.id,
        charge_id=charge.charge_id,
        job_id=charge.job_id,
        tenant_id=charge.tenant_id,
        voucher_id=line.voucher_id,
        clause=line.clause,
        sentence=line.sentence,
        used_until=line.used_until,
        amount=row.amount,
        state=row.state,
        reason=row.reason,
        sampled=row.sampled,
    )


def _views(session: Session, rows: Sequence[Voucher]) -> list[VoucherView]:
    ids = [row.id for row in rows]
    places: dict[UUID, list[Account]] = {row.id: [accounts.voucher(row.id, row.asset)] for row in rows}
    assets = {row.id: row.asset for row in rows}
    for part in session.scalars(select(VoucherPart).where(VoucherPart.voucher_id.in_(ids))):
        places[part.voucher_id].append(
            accounts.voucher_part(part.voucher_id, part.project, assets[part.voucher_id])
        )
    found = balances(session, [account.id for group in places.values() for account in group])
    captured = _captured_by_voucher(session, CoverageLine.voucher_id.in_(ids))
    views = []
    for row in rows:
        mine = [found[account.id] for account in places[row.id] if account.id in found]
        views.append(
            VoucherView(
                id=row.id,
                number=row.number,
                slug=row.slug,
                enterprise_id=row.enterprise_id,
                asset=row.asset,
                state=row.state,
                issued_at=row.issued_at,
                use_by_at=row.use_by_at,
                expires_at=row.expires_at,
                face=row.face,
                held=sum(balance.debits_pending for balance in mine),
                captured=captured.get(row.id, 0),
                remaining=sum(balance.available or 0 for balance in mine),
            )
        )
    return views


def _on_vouchers(session: Session, slug: str, asset: str) -> tuple[int, int]:
    """What is set aside and what remains on all vouchers of a programme and their parts, summed in the database."""
    suffix = "" if asset == CNY else f"/{asset}"
    whole = select(literal("voucher/") + cast(Voucher.id, Text) + suffix).where(Voucher.slug == slug)
    parts = (
        select(literal("voucher/") + cast(Voucher.id, Text) + "/project/" + VoucherPart.project + suffix)
        .select_from(Voucher)
        .join(VoucherPart, VoucherPart.voucher_id == Voucher.id)
        .where(Voucher.slug == slug)
    )
    posted = AccountRow.credits_posted - AccountRow.debits_posted
    held, remaining = session.execute(
        select(
            func.coalesce(func.sum(AccountRow.debits_pending), 0),
            func.coalesce(func.sum(posted - AccountRow.debits_pending), 0),
        ).where(type_coerce(AccountRow.name, Text).in_(union_all(whole, parts)))
    ).one()
    return int(held), int(remaining)


def _captured_by_voucher(session: Session, condition: ColumnElement[bool]) -> dict[UUID, int]:
    """What was captured from vouchers and neither restored nor clawed back."""
    rows = session.execute(
        select(CoverageLine.voucher_id, func.sum(CoverageLine.quantity - given_back()))
        .where(condition, CoverageLine.voucher_id.is_not(None))
        .group_by(CoverageLine.voucher_id)
    )
    return {voucher_id: int(total) for voucher_id, total in rows if voucher_id is not None}


def _net(session: Session, places: Sequence[Account]) -> int:
    return sum(balance.net for balance in balances(session, [account.id for account in places]).values())


def _sum(session: Session, query: Select[int]) -> int:
    return int(session.scalar(query) or 0)
