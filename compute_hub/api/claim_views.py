"""What claims look like: a claim with its steps, and its lines page by page."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from compute_hub.api.amounts import in_units
from compute_hub.api.shapes import Page, View, page_of
from compute_hub.billing.tables import ChargeRow
from kernel.bulk import among
from vouchers.errors import ClaimNotFound
from vouchers.reading import claim_view as claim_with_lines
from vouchers.reading import list_claims
from vouchers.tables import Claim, ClaimLine, ClaimStep


class ClaimSummary(View):
    """A claim without its steps and lines. Without a claimant it is the centre's."""

    id: UUID
    programme: str
    period: str
    sequence: int
    claimant_id: UUID | None
    state: str
    line_count: int
    amount_cny: str | None
    amount_card_ms: int | None
    approved_cny: str | None
    approved_card_ms: int | None
    from_reserve_cny: str | None
    from_reserve_card_ms: int | None
    bank_reference: str | None
    made_at: datetime


class ClaimStepView(View):
    """Who did what to a claim, with the facts of automatic checks."""

    step: str
    actor_id: str
    facts: dict[str, Any]
    at: datetime


class ClaimView(ClaimSummary):
    """A claim with its evidence and steps; its amount is the sum of its lines."""

    evidence: dict[str, Any]
    sample_seed: str | None
    steps: list[ClaimStepView]


class ClaimLineView(View):
    """One captured coverage with what it rests on."""

    line: int
    state: str
    reason: str
    sampled: bool
    job_id: UUID
    charge_id: UUID
    tenant_id: UUID
    voucher_id: UUID | None
    used_until: datetime
    amount_cny: str | None
    amount_card_ms: int | None
    clause: str
    sentence: str


def own_claim(session: Session, claim_id: UUID, tenant_id: UUID | None) -> Claim:
    """A claim, of this claimant if one is named; anybody else's looks like none. Raises ClaimNotFound."""
    row = session.get(Claim, claim_id)
    if row is None or tenant_id not in {None, row.claimant_id}:
        raise ClaimNotFound(claim=claim_id)
    return row


def claim_view(session: Session, claim_id: UUID) -> ClaimView:
    """A claim with its steps."""
    row = session.get_one(Claim, claim_id)
    steps = session.scalars(select(ClaimStep).where(ClaimStep.claim_id == claim_id).order_by(ClaimStep.number))
    return ClaimView.model_validate(
        {
            **_summary(session, row),
            "evidence": row.evidence,
            "sample_seed": row.sample_seed,
            "steps": [
                ClaimStepView(step=step.step, actor_id=step.actor, facts=step.facts, at=step.at)
                for step in steps
            ],
        }
    )


def claim_page(
    session: Session,
    tenant_id: UUID | None,
    slug: str | None,
    state: str | None,
    *,
    after: UUID | None,
    limit: int,
) -> Page[ClaimSummary]:
    """Claims, newest first, that come after the one named; one claimant's, or all. Raises ClaimNotFound."""
    last = None if after is None else own_claim(session, after, tenant_id)
    rows = list_claims(session, claimant_id=tenant_id, slug=slug, state=state, after=last, limit=limit)
    items = [ClaimSummary.model_validate(_summary(session, row)) for row in rows]
    return page_of(items, limit, items[-1].id if items else "")


def line_page(session: Session, claim_id: UUID, *, after: int, limit: int) -> Page[ClaimLineView]:
    """A claim's lines in order, with what each rests on."""
    claim = claim_with_lines(session, claim_id, after=after, limit=limit)
    charges = [line.charge_id for line in claim.lines]
    jobs = dict(
        session.execute(select(ChargeRow.id, ChargeRow.job_id).where(among(ChargeRow.id, charges))).all()
    )
    items = [
        ClaimLineView.model_validate(
            {
                "line": row.line,
                "state": row.state,
                "reason": row.reason,
                "sampled": row.sampled,
                "job_id": jobs.get(
                    row.charge_id, row.job_id
                ),  # what is late or corrected has a hold of its own
                "charge_id": row.charge_id,
                "tenant_id": row.tenant_id,
                "voucher_id": row.voucher_id,
                "used_until": row.used_until,
                **in_units(claim.asset, amount=row.amount),
                "clause": row.clause,
                "sentence": row.sentence,
            }
        )
        for row in claim.lines
    ]
    return page_of(items, limit, items[-1].line if items else "")


def _summary(session: Session, row: Claim) -> dict[str, Any]:
    lines = session.scalar(select(func.count()).select_from(ClaimLine).where(ClaimLine.claim_id == row.id))
    return {
        "id": row.id,
        "programme": row.slug,
        "period": row.period,
        "sequence": row.sequence,
        "claimant_id": row.claimant_id,
        "state": row.state,
        "line_count": lines,
        **in_units(row.asset, amount=row.amount, approved=row.approved, from_reserve=row.from_reserve),
        "bank_reference": row.bank_reference,
        "made_at": row.made_at,
    }
