"""Settlement claims: the centre asks a programme for what its vouchers have covered."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from compute_hub.api.call import Body, Caller, View
from compute_hub.api.enterprises import Text
from compute_hub.identity.roles import Role
from kernel.money import format_yuan
from vouchers.claims import make_claim
from vouchers.reading import claim_view, list_claims

router = APIRouter(prefix="/v1", tags=["claims"])

_READERS = (Role.OPERATOR, Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER, Role.AUDITOR)


class ClaimRequest(Body):
    """Which programme's period to claim: `2026-03` for a monthly, `2026-Q1` for a quarterly one."""

    programme: Text
    period: Annotated[str, StringConstraints(max_length=10)]


class ClaimLineView(View):
    """One captured coverage with what it rests on."""

    line: int
    job_id: UUID
    charge_id: UUID
    tenant_id: UUID
    voucher_id: UUID | None
    amount_cny: str
    clause: str
    sentence: str
    state: str


class ClaimSummary(View):
    """A claim without its lines."""

    id: UUID
    programme: str
    period: str
    state: str
    amount_cny: str
    made_at: datetime


class ClaimView(ClaimSummary):
    """A claim with its lines; the amount is their sum."""

    lines: list[ClaimLineView]


@router.post("/claims", status_code=201)
def claim(body: ClaimRequest, call: Caller) -> ClaimView:
    """Claim everything captured up to the period's end that no claim holds yet."""
    principal = call.require(Role.OPERATOR)

    def action(session: Session, at: datetime) -> ClaimView:
        claim_id = make_claim(session, body.programme, body.period, by=str(principal.id), at=at)
        return _claim(session, claim_id)

    return call.once(ClaimView, body, action)


@router.get("/claims")
def claims(call: Caller) -> list[ClaimSummary]:
    """Claims, newest first."""
    call.require(*_READERS)
    return call.read(
        lambda session: [
            ClaimSummary(
                id=row.id,
                programme=row.slug,
                period=row.period,
                state=row.state,
                amount_cny=format_yuan(row.amount),
                made_at=row.made_at,
            )
            for row in list_claims(session)
        ]
    )


@router.get("/claims/{claim_id}")
def one_claim(claim_id: UUID, call: Caller) -> ClaimView:
    """One claim with its lines."""
    call.require(*_READERS)
    return call.read(lambda session: _claim(session, claim_id))


def _claim(session: Session, claim_id: UUID) -> ClaimView:
    found = claim_view(session, claim_id)
    return ClaimView(
        id=found.id,
        programme=found.slug,
        period=found.period,
        state=found.state,
        amount_cny=format_yuan(found.amount),
        made_at=found.made_at,
        lines=[
            ClaimLineView(
                line=line.line,
                job_id=line.job_id,
                charge_id=line.charge_id,
                tenant_id=line.tenant_id,
                voucher_id=line.voucher_id,
                amount_cny=format_yuan(line.amount),
                clause=line.clause,
                sentence=line.sentence,
                state=line.state,
            )
            for line in found.lines
        ],
    )
