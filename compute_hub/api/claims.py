"""Settlement claims: the centre, or a buyer who is to be reimbursed, asks a programme for what its vouchers covered."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.claim_views import (
    ClaimLineView,
    ClaimSummary,
    ClaimView,
    claim_page,
    claim_view,
    line_page,
    own_claim,
)
from compute_hub.api.shapes import After, Body, Limit, Page, Slug, SlugQuery, Text
from vouchers.claims import make_claim, resubmit_claim

router = APIRouter(prefix="/v1/claims", tags=["claims"])

ClaimState = Literal["submitted", "checked", "reviewed", "approved", "rejected", "disbursed", "reconciled"]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_-]{0,62}$")]
Evidence = Annotated[dict[Kind, Text], Field(max_length=20)]


class ClaimRequest(Body):
    """Which programme's period to claim: `2026-03` for a monthly, `2026-Q1` for a quarterly one."""

    programme: Slug
    period: Annotated[str, StringConstraints(pattern=r"^2[01][0-9]{2}-(Q[1-4]|0[1-9]|1[0-2])$")]
    evidence: Evidence = Field(default_factory=dict)


class Resubmission(Body):
    """Better evidence for the lines that were disputed: references by kind, such as `invoice`."""

    evidence: Evidence = Field(default_factory=dict)


@router.post("", status_code=201, name="make_claim")
def make(body: ClaimRequest, call: Caller) -> ClaimView:
    """Claim everything captured up to the period's end that no claim holds yet; a tenant claims what it paid first."""

    def action(session: Session, at: datetime) -> ClaimView:
        claim_id = make_claim(
            session,
            body.programme,
            body.period,
            by=call.by,
            at=at,
            claimant_id=call.scope,
            evidence=dict(body.evidence),
        )
        return claim_view(session, claim_id)

    return call.once(ClaimView, body, action)


@router.post("/{claim_id}:resubmit", status_code=201, name="resubmit_claim")
def resubmit(claim_id: UUID, body: Resubmission, call: Caller) -> ClaimView:
    """Claim the disputed lines of a decided claim again, with better evidence."""

    def action(session: Session, at: datetime) -> ClaimView:
        own_claim(session, claim_id, call.scope)
        new_id = resubmit_claim(session, claim_id, evidence=dict(body.evidence), by=call.by, at=at)
        return claim_view(session, new_id)

    return call.once(ClaimView, body, action)


@router.get("", name="list_claims")
def claims(
    call: Caller,
    limit: Limit = 50,
    after: After = None,
    programme: SlugQuery = None,
    state: Annotated[ClaimState | None, Query(description="Only claims in this state.")] = None,
) -> Page[ClaimSummary]:
    """Claims, newest first; a tenant's own, or all."""
    return call.read(
        lambda session: claim_page(session, call.scope, programme, state, after=after, limit=limit)
    )


@router.get("/{claim_id}", name="show_claim")
def claim(claim_id: UUID, call: Caller) -> ClaimView:
    """One claim with its steps."""

    def action(session: Session) -> ClaimView:
        own_claim(session, claim_id, call.scope)
        return claim_view(session, claim_id)

    return call.read(action)


@router.get("/{claim_id}/lines", name="list_claim_lines")
def lines(
    claim_id: UUID, call: Caller, limit: Limit = 100, after: Annotated[int, Query(ge=0, le=2**53)] = 0
) -> Page[ClaimLineView]:
    """A claim's lines in order, each with the charge and clause it rests on."""

    def action(session: Session) -> Page[ClaimLineView]:
        own_claim(session, claim_id, call.scope)
        return line_page(session, claim_id, after=after, limit=limit)

    return call.read(action)
