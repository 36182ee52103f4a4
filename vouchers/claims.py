"""Settlement claims: a programme pays for what its vouchers covered, line by line.

A claim gathers every captured coverage of a programme up to the end of a period that no standing claim holds;
what is used or reported after the claim was made waits for the next one. Its amount is the sum of its lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Select, cast, exists, func, select
from sqlalchemy.orm import Session, aliased

from kernel.ids import derived_id
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.domain.calendar import claim_period
from vouchers.domain.coverage import BUYER_REIMBURSED, CENTRE_CLAIMS
from vouchers.domain.terms import Terms
from vouchers.errors import (
    ClaimNotFound,
    ClaimState,
    MissingEvidence,
    NothingToClaim,
    PeriodClosed,
    PeriodNotBegun,
)
from vouchers.programmes import lock_programme, terms_of
from vouchers.tables import (
    Claim,
    ClaimLine,
    ClaimStep,
    CoverageLine,
    CoveredCharge,
    ProgrammeVersion,
    Restoration,
)

CLAIM_LINES_MAX: Final = 5_000
"""Per claim; what is over is claimed by another one for the same period."""

STANDING: Final = ("claimed", "approved", "rejected", "clawed_back")
_UNDER_REVIEW: Final = ("submitted", "checked", "reviewed")


@dataclass(frozen=True)
class _Waiting:
    """A coverage line that can be claimed, whose it is, and what of it was not given back."""

    line: CoverageLine
    tenant_id: UUID
    quantity: int


def make_claim(
    session: Session,
    programme: str,
    period: str,
    *,
    by: str,
    at: datetime,
    claimant_id: UUID | None = None,
    evidence: dict[str, Any] | None = None,
    lines_max: int = CLAIM_LINES_MAX,
) -> UUID:
    """Claim what was captured up to the end of a period; while that claim is under review, return it again.

    What did not fit into a claim of the most lines is claimed by another one for the period, after that is decided.

    Args:
        session: whose transaction this belongs to.
        programme: the slug.
        period: such as `2026-03` or `2026-Q1`, by the programme's claim cycle and time zone.
        by: who claims.
        at: now.
        claimant_id: the buyer who is to be reimbursed; None for the centre.
        evidence: references of what proves the usage, by kind (`invoice`, `delivery_proof`, …).
        lines_max: how many lines the claim may have, oldest usage first.

    Returns:
        The claim's id.

    Raises:
        ProgrammeNotFound, MalformedPeriod, PeriodNotBegun.
        PeriodClosed: the period's claim has been decided, and nothing was left over from it.
        MissingEvidence: the programme pays only on more evidence.
        NothingToClaim: nothing captured waits.
    """
    terms = lock_terms(session, programme)
    begins_at, ends_at = claim_period(terms, period)
    if at < begins_at:
        raise PeriodNotBegun(period=period, programme=programme, begins_at=begins_at.isoformat())
    latest = _latest(session, programme, period, claimant_id)
    if latest is not None and latest.state in _UNDER_REVIEW:
        return latest.id
    decided = None if latest is None or latest.state == "rejected" else latest
    lines = _unclaimed(session, programme, ends_at, claimant_id, decided, lines_max)
    if not lines and decided is not None:
        raise PeriodClosed(period=period, programme=programme, claim=decided.id, state=decided.state)
    if not lines:
        raise NothingToClaim(programme=programme, period=period)
    return _new_claim(session, terms, period, claimant_id, latest, lines, evidence or {}, by, at)


def resubmit_claim(
    session: Session, claim_id: UUID, *, evidence: dict[str, Any], by: str, at: datetime
) -> UUID:
    """Claim the disputed lines of a decided claim again, for its period, with better evidence.

    Raises:
        ClaimState: the claim is still under review.
        NothingToClaim: no line of it is disputed, or all are in a later claim.
    """
    old = claim_of(session, claim_id)
    terms = lock_terms(session, old.slug)
    latest = _latest(session, old.slug, old.period, old.claimant_id) or old
    if latest.state in _UNDER_REVIEW:
        if latest.id != claim_id:
            return latest.id
        raise ClaimState(claim=claim_id, state=old.state, step="resubmission", needed="decided")
    lines = _disputed(session, claim_id)
    if not lines:
        raise NothingToClaim(programme=old.slug, period=old.period)
    return _new_claim(session, terms, old.period, old.claimant_id, latest, lines, evidence, by, at)


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


def lock_terms(session: Session, slug: str) -> Terms:
    """Lock a programme and read its newest version's terms. Raises ProgrammeNotFound."""
    lock_programme(session, slug)
    newest = session.scalars(
        select(ProgrammeVersion)
        .where(ProgrammeVersion.slug == slug)
        .order_by(ProgrammeVersion.version.desc())
        .limit(1)
    ).one()
    return terms_of(session, newest.id)


def _new_claim(
    session: Session,
    terms: Terms,
    period: str,
    claimant_id: UUID | None,
    latest: Claim | None,
    lines: Sequence[_Waiting],
    evidence: dict[str, Any],
    by: str,
    at: datetime,
) -> UUID:
    missing = sorted(set(terms.settlement.evidence) - {kind for kind, proof in evidence.items() if proof})
    if missing:
        raise MissingEvidence(
            programme=terms.programme, missing=", ".join(missing), clause=terms.settlement.clause
        )
    sequence = 1 if latest is None else latest.sequence + 1
    claim = Claim(
        id=derived_id("claim", terms.programme, period, claimant_id or "centre", sequence),
        slug=terms.programme,
        period=period,
        sequence=sequence,
        claimant_id=claimant_id,
        asset=terms.asset,
        amount=sum(entry.quantity for entry in lines),
        state="submitted",
        made_by=by,
        made_at=at,
        evidence=evidence,
    )
    session.add(claim)
    session.flush()
    _add_lines(session, claim, lines, at)
    record_step(session, claim.id, "submitted", by, {"lines": len(lines), "amount": claim.amount}, at)
    return claim.id


def _disputed(session: Session, claim_id: UUID) -> list[_Waiting]:
    """What a claim's disputed lines still stand for, where no standing claim holds them."""
    query = (
        _waiting()
        .join(ClaimLine, ClaimLine.coverage_line_id == CoverageLine.id)
        .where(ClaimLine.claim_id == claim_id, ClaimLine.state == "disputed")
        .order_by(ClaimLine.line)
    )
    return [_Waiting(line, tenant_id, left) for line, tenant_id, left in session.execute(query)]


def given_back() -> ColumnElement[int]:
    """In a query of coverage lines: how much of each was restored or clawed back."""
    return func.coalesce(
        select(func.sum(Restoration.quantity))
        .where(Restoration.line_id == CoverageLine.id)
        .correlate(CoverageLine)
        .scalar_subquery(),
        0,
    )


def _waiting() -> Select[CoverageLine, UUID, int]:
    """Coverage lines of vouchers that no standing claim holds, with tenants and what was not given back."""
    again = aliased(ClaimLine)
    standing = exists().where(again.coverage_line_id == CoverageLine.id, again.state.in_(STANDING))
    left = cast(CoverageLine.quantity - given_back(), BigInteger)
    return (
        select(CoverageLine, CoveredCharge.tenant_id, left)
        .join(CoveredCharge, CoveredCharge.charge_id == CoverageLine.charge_id)
        .where(CoverageLine.voucher_id.is_not(None), left > 0, ~standing)
    )


def _latest(session: Session, slug: str, period: str, claimant_id: UUID | None) -> Claim | None:
    return session.scalars(
        select(Claim)
        .where(Claim.slug == slug, Claim.period == period, Claim.claimant_id.is_not_distinct_from(claimant_id))
        .order_by(Claim.sequence.desc())
        .limit(1)
    ).one_or_none()


def _unclaimed(
    session: Session,
    slug: str,
    ends_at: datetime,
    claimant_id: UUID | None,
    decided: Claim | None,
    lines_max: int,
) -> list[_Waiting]:
    """Captured coverage, oldest first, that no standing claim holds, less what was given back.

    Of a period whose claim is `decided`, only what that had no room for: it was captured before, and never in a claim.
    """
    query = (
        _waiting()
        .where(CoverageLine.slug == slug, CoverageLine.used_until <= ends_at)
        .order_by(CoverageLine.used_until, CoverageLine.id)
        .limit(lines_max)
    )
    if decided is not None:
        before = exists().where(ClaimLine.coverage_line_id == CoverageLine.id)
        query = query.where(CoveredCharge.captured_at < decided.made_at, ~before)
    if claimant_id is None:
        query = query.where(CoverageLine.direction == CENTRE_CLAIMS)
    else:
        query = query.where(CoverageLine.direction == BUYER_REIMBURSED, CoveredCharge.tenant_id == claimant_id)
    return [_Waiting(line, tenant_id, left) for line, tenant_id, left in session.execute(query)]


def _add_lines(session: Session, claim: Claim, lines: Sequence[_Waiting], at: datetime) -> None:
    session.add_all(
        ClaimLine(
            claim_id=claim.id,
            line=number,
            coverage_line_id=entry.line.id,
            amount=entry.quantity,
            sampled=False,
            state="claimed",
            reason="",
        )
        for number, entry in enumerate(lines, start=1)
    )
    session.flush()
    accounts.ensure(session, [accounts.claimed(claim.slug, claim.asset)], at)
    post_all(
        session,
        [
            movements.claim_line(
                claim.id, entry.line.id, claim.slug, entry.tenant_id, claim.asset, entry.quantity
            )
            for entry in lines
        ],
        at=at,
    )
