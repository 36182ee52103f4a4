"""The officers' work on claims: checks, sample, review, lines, approval, disbursement, reconciliation, clawback."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.amounts import amount_in
from compute_hub.api.call import Call, Caller
from compute_hub.api.claim_views import ClaimView, claim_view, own_claim
from compute_hub.api.shapes import Body, NeededReason, Party, Text, Yuan
from kernel.errors import Conflict
from vouchers.claims import CLAIM_LINES_MAX
from vouchers.clawback import claw_back_line
from vouchers.settlement import (
    approve_claim,
    check_claim,
    disburse_claim,
    dispute_line,
    draw_sample,
    reconcile_claim,
    refuse_line,
    reject_claim,
    review_claim,
)
from vouchers.tables import Claim

router = APIRouter(prefix="/v1/claims/{claim_id}", tags=["claims"])

LineNumber = Annotated[int, Path(ge=1, le=CLAIM_LINES_MAX)]


class BankReferenceUsed(Conflict):
    """One bank transfer pays one claim."""

    sentence = "bank_reference: {reference!r} has paid claim {claim}; give this payment's own reference."


class ClaimCheck(Body):
    """The credit code of the centre, to which tenants must not be related."""

    centre_credit_code: Party


class Sample(Body):
    """How many lines to inspect; the seed is recorded, so that anybody can draw the same lines again."""

    seed: Text
    count: Annotated[int, Field(ge=1, le=CLAIM_LINES_MAX)]


class LineDecision(Body):
    """Why a line, or a claim, is not paid."""

    reason: NeededReason


class Disbursement(Body):
    """The bank transfer that pays a claim."""

    bank_reference: Text


class Reconciliation(Body):
    """What the bank statement shows for a claim."""

    received_cny: Yuan | None = None
    received_card_ms: Annotated[int, Field(ge=0, le=2**53)] | None = None
    statement: Text


@router.post(":check", name="check_claim")
def check(claim_id: UUID, body: ClaimCheck, call: Caller) -> ClaimView:
    """Run the automatic checks; a claim without a failure goes on to first review."""
    return _decide(
        claim_id,
        body,
        call,
        lambda session, at: check_claim(session, claim_id, centre_code=body.centre_credit_code, at=at),
    )


@router.post(":sample", name="sample_claim")
def sample(claim_id: UUID, body: Sample, call: Caller) -> ClaimView:
    """Draw lines for inspection from a recorded seed; drawing again returns the first draw."""
    return _decide(
        claim_id,
        body,
        call,
        lambda session, at: draw_sample(session, claim_id, seed=body.seed, count=body.count, by=call.by, at=at),
    )


@router.post(":first-review", name="review_claim")
def review(claim_id: UUID, call: Caller) -> ClaimView:
    """Pass a checked claim on to final approval."""
    return _decide(claim_id, None, call, lambda session, at: review_claim(session, claim_id, by=call.by, at=at))


@router.post("/lines/{line}:dispute", name="dispute_claim_line")
def dispute(claim_id: UUID, line: LineNumber, body: LineDecision, call: Caller) -> ClaimView:
    """Take a line out of a claim under review; it may be claimed again with better evidence."""
    return _decide(
        claim_id,
        body,
        call,
        lambda session, at: dispute_line(session, claim_id, line, reason=body.reason, by=call.by, at=at),
    )


@router.post("/lines/{line}:refuse", name="refuse_claim_line")
def refuse(claim_id: UUID, line: LineNumber, body: LineDecision, call: Caller) -> ClaimView:
    """Refuse to pay a line, for good."""
    return _decide(
        claim_id,
        body,
        call,
        lambda session, at: refuse_line(session, claim_id, line, reason=body.reason, by=call.by, at=at),
    )


@router.post("/lines/{line}:claw-back", name="claw_back_claim_line")
def claw_back(claim_id: UUID, line: LineNumber, body: LineDecision, call: Caller) -> ClaimView:
    """Take an approved or disbursed line back, by reversing what was recorded; the money returns to the pool."""
    return _decide(
        claim_id,
        body,
        call,
        lambda session, at: claw_back_line(session, claim_id, line, reason=body.reason, by=call.by, at=at),
    )


@router.post(":final-approval", name="approve_claim")
def approve(claim_id: UUID, call: Caller) -> ClaimView:
    """Approve what is left of a claim; never by the person who reviewed it first."""
    return _decide(
        claim_id, None, call, lambda session, at: approve_claim(session, claim_id, by=call.by, at=at)
    )


@router.post(":reject", name="reject_claim")
def reject(claim_id: UUID, body: LineDecision, call: Caller) -> ClaimView:
    """Send a whole claim back; each of its lines may be claimed again."""
    return _decide(
        claim_id,
        body,
        call,
        lambda session, at: reject_claim(session, claim_id, reason=body.reason, by=call.by, at=at),
    )


@router.post(":disburse", name="disburse_claim")
def disburse(claim_id: UUID, body: Disbursement, call: Caller) -> ClaimView:
    """Pay what was approved: out of the reserve fund first, the rest through the bank."""

    def action(session: Session, at: datetime) -> None:
        other = session.scalar(
            select(Claim.id).where(Claim.bank_reference == body.bank_reference, Claim.id != claim_id)
        )
        if other is not None:
            raise BankReferenceUsed(field="bank_reference", reference=body.bank_reference, claim=other)
        disburse_claim(session, claim_id, bank_reference=body.bank_reference, by=call.by, at=at)

    return _decide(claim_id, body, call, action)


@router.post(":reconcile", name="reconcile_claim")
def reconcile(claim_id: UUID, body: Reconciliation, call: Caller) -> ClaimView:
    """Hold the bank statement against what was disbursed through the bank."""

    def action(session: Session, at: datetime) -> None:
        claim = own_claim(session, claim_id, None)
        received = amount_in(claim.asset, claim.slug, "received", body.received_cny, body.received_card_ms)
        reconcile_claim(session, claim_id, received=received, statement=body.statement, by=call.by, at=at)

    return _decide(claim_id, body, call, action)


def _decide(
    claim_id: UUID, body: BaseModel | None, call: Call, step: Callable[[Session, datetime], object]
) -> ClaimView:
    def action(session: Session, at: datetime) -> ClaimView:
        step(session, at)
        return claim_view(session, claim_id)

    return call.once(ClaimView, body, action)
