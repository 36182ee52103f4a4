"""Settlement claims: a programme pays for what its vouchers covered, line by line.

A claim gathers every captured coverage of a programme up to the end of a period that no standing claim holds;
what is used or reported after the claim was made waits for the next one. Its amount is the sum of its lines.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.domain.calendar import claim_period
from vouchers.domain.coverage import BUYER_REIMBURSED, CENTRE_CLAIMS
from vouchers.domain.terms import Terms, read_terms
from vouchers.errors import ClaimNotFound, NothingToClaim, PeriodClosed, PeriodNotBegun, ProgrammeNotFound
from vouchers.tables import (
    Claim,
    ClaimLine,
    ClaimStep,
    CoverageLine,
    CoveredCharge,
    Programme,
    ProgrammeVersion,
    Restoration,
)

CLAIM_LINES_MAX: Final = 5_000
"""Per claim; what is over waits for the next one."""

STANDING: Final = ("claimed", "approved", "clawed_back")
_UNDER_REVIEW: Final = ("submitted", "checked", "reviewed")


def make_claim(
    session: Session,
    programme: str,
    period: str,
    *,
    by: str,
    at: datetime,
    claimant_id: UUID | None = None,
    evidence: dict[str, Any] | None = None,
) -> UUID:
    """Claim what was captured up to the end of a period; while that claim is under review, return it again.

    Args:
        session: whose transaction this belongs to.
        programme: the slug.
        period: such as `2026-03` or `2026-Q1`, by the programme's claim cycle and time zone.
        by: who claims.
        at: now.
        claimant_id: the buyer who is to be reimbursed; None for the centre.
        evidence: references of what proves the usage, by kind (`invoice`, `delivery_proof`, …).

    Returns:
        The claim's id.

    Raises:
        ProgrammeNotFound, MalformedPeriod, PeriodNotBegun.
        PeriodClosed: the period's claim has been decided.
        NothingToClaim: nothing captured waits.
    """
    terms = _lock_programme(session, programme)
    begins_at, ends_at = claim_period(terms, period)
    if at < begins_at:
        raise PeriodNotBegun(period=period, programme=programme, begins_at=begins_at.isoformat())
    latest = _latest(session, programme, period, claimant_id)
    if latest is not None and latest.state in _UNDER_REVIEW:
        return latest.id
    if latest is not None and latest.state != "rejected":
        raise PeriodClosed(period=period, programme=programme, claim=latest.id, state=latest.state)
    lines = _unclaimed(session, programme, ends_at, claimant_id)
    if not lines:
        raise NothingToClaim(programme=programme, period=period)
    sequence = 1 if latest is None else latest.sequence + 1
    claim = Claim(
        id=derived_id("claim", programme, period, claimant_id or "centre", sequence),
        slug=programme,
        period=period,
        sequence=sequence,
        claimant_id=claimant_id,
        asset=terms.asset,
        amount=sum(line.quantity for line, _ in lines),
        state="submitted",
        made_by=by,
        made_at=at,
        evidence=evidence or {},
    )
    session.add(claim)
    session.flush()
    _add_lines(session, claim, lines, at)
    record_step(session, claim.id, "submitted", by, {"lines": len(lines), "amount": claim.amount}, at)
    return claim.id


def claim_of(session: Session, claim_id: UUID) -> Claim:
    """A claim. Raises ClaimNotFound."""
    claim = session.get(Claim, claim_id)
    if claim is None:
        raise ClaimNotFound(claim=claim_id)
    return claim


def lines_of(session: Session, claim_id: UUID) -> list[ClaimLine]:
    """A claim's lines in order."""
    return list(
        session.scalars(select(ClaimLine).where(ClaimLine.claim_id == claim_id).order_by(ClaimLine.line))
    )


def record_step(
    session: Session, claim_id: UUID, step: str, actor: str, facts: dict[str, Any], at: datetime
) -> None:
    """Note who did what to a claim."""
    count = session.scalar(select(func.count()).where(ClaimStep.claim_id == claim_id))
    session.add(
        ClaimStep(claim_id=claim_id, number=int(count or 0) + 1, step=step, actor=actor, facts=facts, at=at)
    )
    session.flush()


def _lock_programme(session: Session, slug: str) -> Terms:
    """Lock a programme and read its newest version's terms."""
    locked = session.scalar(
        select(Programme.slug).where(Programme.slug == slug).with_for_update(key_share=True)
    )
    if locked is None:
        raise ProgrammeNotFound(programme=slug, day="any day")
    newest = session.scalars(
        select(ProgrammeVersion)
        .where(ProgrammeVersion.slug == slug)
        .order_by(ProgrammeVersion.version.desc())
        .limit(1)
    ).one()
    return read_terms(newest.document)


def _latest(session: Session, slug: str, period: str, claimant_id: UUID | None) -> Claim | None:
    return session.scalars(
        select(Claim)
        .where(Claim.slug == slug, Claim.period == period, Claim.claimant_id.is_not_distinct_from(claimant_id))
        .order_by(Claim.sequence.desc())
        .limit(1)
    ).one_or_none()


def _unclaimed(
    session: Session, slug: str, ends_at: datetime, claimant_id: UUID | None
) -> list[tuple[CoverageLine, UUID]]:
    """Captured coverage with its tenant, oldest first, that no standing claim holds and nobody took back."""
    in_claim = exists().where(ClaimLine.coverage_line_id == CoverageLine.id, ClaimLine.state.in_(STANDING))
    taken_back = exists().where(Restoration.line_id == CoverageLine.id)
    query = (
        select(CoverageLine, CoveredCharge.tenant_id)
        .join(CoveredCharge, CoveredCharge.charge_id == CoverageLine.charge_id)
        .where(
            CoverageLine.slug == slug,
            CoverageLine.voucher_id.is_not(None),
            CoverageLine.quantity > 0,
            CoverageLine.used_until < ends_at,
            ~in_claim,
            ~taken_back,
        )
        .order_by(CoverageLine.used_until, CoverageLine.id)
        .limit(CLAIM_LINES_MAX)
    )
    if claimant_id is None:
        query = query.where(CoverageLine.direction == CENTRE_CLAIMS)
    else:
        query = query.where(CoverageLine.direction == BUYER_REIMBURSED, CoveredCharge.tenant_id == claimant_id)
    return [(line, tenant_id) for line, tenant_id in session.execute(query)]


def _add_lines(
    session: Session, claim: Claim, lines: Sequence[tuple[CoverageLine, UUID]], at: datetime
) -> None:
    session.add_all(
        ClaimLine(
            claim_id=claim.id,
            line=number,
            coverage_line_id=line.id,
            amount=line.quantity,
            sampled=False,
            state="claimed",
            reason="",
        )
        for number, (line, _) in enumerate(lines, start=1)
    )
    session.flush()
    accounts.ensure(session, [accounts.claimed(claim.slug, claim.asset)], at)
    post_all(
        session,
        [
            movements.claim_line(claim.id, line.id, claim.slug, tenant_id, claim.asset, line.quantity)
            for line, tenant_id in lines
        ],
        at=at,
    )
