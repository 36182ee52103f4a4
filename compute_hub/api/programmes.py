"""Programmes, applications and vouchers: the authority's face, and the enterprise's view of its vouchers."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Body, Call, Caller, View
from compute_hub.api.enterprises import Text, Yuan
from compute_hub.identity.roles import Role
from kernel.money import format_yuan, parse_yuan
from vouchers.applications import (
    checks_of,
    final_approval,
    first_review,
    reject_application,
    submit_application,
)
from vouchers.domain.facts import ContractFacts
from vouchers.issuing import issue_voucher
from vouchers.programmes import publish_programme
from vouchers.reading import list_programmes, list_vouchers, programme_totals
from vouchers.tables import Application, ProgrammeVersion

router = APIRouter(prefix="/v1", tags=["vouchers"])

_OFFICERS = (Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER, Role.OPERATOR, Role.AUDITOR)
Reason = Annotated[str, StringConstraints(max_length=2000)]


class ProgrammePublication(Body):
    """A programme version as its rules' document; examples lie in examples/programmes."""

    document: dict[str, Any]


class ProgrammeView(View):
    """Where a programme's money is, over all cycles."""

    programme: str
    asset: str
    budget: str
    pool: str
    issued: str
    held: str
    captured: str
    claimed: str
    disbursed: str


class ApplicationRequest(Body):
    """What an enterprise asks of a programme, with the contract it names."""

    programme: Text
    requested_cny: Yuan
    contract_number: Annotated[str, StringConstraints(max_length=100)] = ""
    supplier_credit_code: Annotated[str, StringConstraints(max_length=18)] = ""
    contract_cny: Yuan = "0"
    contract_days: Annotated[int, Field(ge=0, le=3660)] = 0
    centre_region: Annotated[str, StringConstraints(max_length=12)] = "331003"


class Decision(Body):
    """A review's or an approval's reason; an approval may grant less than was asked."""

    reason: Reason = ""
    granted_cny: Yuan | None = None


class Review(Body):
    """A first review's reason."""

    reason: Reason = ""


class Rejection(Body):
    """Why an application is refused; its applicant is told."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class CheckView(View):
    """What one automatic rule found, and the facts it saw."""

    rule: str
    verdict: str
    clause: str
    facts: dict[str, Any]


class ApplicationView(View):
    """An application and how far it got."""

    id: UUID
    programme: str
    tenant_id: UUID
    state: str
    requested_cny: str
    granted_cny: str | None
    checks: list[CheckView]


class VoucherView(View):
    """A voucher and where its face value is, in yuan (or card-milliseconds when the asset is card time)."""

    id: UUID
    number: str
    programme: str
    tenant_id: UUID
    asset: str
    state: str
    issued_at: datetime
    expires_at: datetime
    face_cny: str
    held_cny: str
    captured_cny: str
    remaining_cny: str


@router.post("/programmes", status_code=201)
def publish(body: ProgrammePublication, call: Caller) -> ProgrammeView:
    """Publish a version of a programme's rules and appropriate the budget of the cycle it begins in."""
    principal = call.require(Role.AUTHORITY)

    def action(session: Session, at: datetime) -> ProgrammeView:
        version_id = publish_programme(session, body.document, by=str(principal.id), at=at)
        slug = session.get_one(ProgrammeVersion, version_id).slug
        return _programme(session, slug)

    return call.once(ProgrammeView, body, action)


@router.get("/programmes")
def programmes(call: Caller) -> list[ProgrammeView]:
    """All programmes and where their money is."""
    call.require(*_OFFICERS)
    return call.read(lambda session: [_programme(session, slug) for slug in list_programmes(session)])


@router.post("/applications", status_code=201)
def apply(body: ApplicationRequest, call: Caller) -> ApplicationView:
    """Apply for a voucher. The automatic checks run at once; what they found is in the answer."""
    principal = call.require(Role.TENANT)
    tenant_id = principal.tenant_id
    assert tenant_id is not None  # noqa: S101 - a tenant key always has one; the database checks it

    def action(session: Session, at: datetime) -> ApplicationView:
        application_id = submit_application(
            session,
            enterprise_id=tenant_id,
            programme=body.programme,
            requested=parse_yuan(body.requested_cny, field="requested_cny"),
            by=str(principal.id),
            at=at,
            contract=ContractFacts(
                number=body.contract_number,
                supplier=body.supplier_credit_code,
                amount_micros=parse_yuan(body.contract_cny, field="contract_cny"),
                days=body.contract_days,
                centre_region=body.centre_region,
            ),
        )
        return _application(session, application_id)

    return call.once(ApplicationView, body, action)


@router.get("/applications")
def applications(call: Caller) -> list[ApplicationView]:
    """Applications, newest first; a tenant's own, or all."""

    def action(session: Session) -> list[ApplicationView]:
        query = select(Application.id).order_by(Application.created_at.desc(), Application.id).limit(200)
        if call.principal.tenant_id is not None:
            query = query.where(Application.enterprise_id == call.principal.tenant_id)
        return [_application(session, application_id) for application_id in session.scalars(query)]

    return call.read(action)


@router.post("/applications/{application_id}:first-review")
def review(application_id: UUID, body: Review, call: Caller) -> ApplicationView:
    """Pass an application on to final approval."""
    principal = call.require(Role.FIRST_REVIEWER)

    def action(session: Session, at: datetime) -> ApplicationView:
        first_review(session, application_id, by=str(principal.id), at=at, reason=body.reason)
        return _application(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:final-approval")
def approve(application_id: UUID, body: Decision, call: Caller) -> ApplicationView:
    """Approve an application, wholly or in part; never by the person who reviewed it first."""
    principal = call.require(Role.APPROVER)

    def action(session: Session, at: datetime) -> ApplicationView:
        granted = None if body.granted_cny is None else parse_yuan(body.granted_cny, field="granted_cny")
        final_approval(
            session, application_id, by=str(principal.id), at=at, granted=granted, reason=body.reason
        )
        return _application(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:reject")
def reject(application_id: UUID, body: Rejection, call: Caller) -> ApplicationView:
    """Refuse an application for a reason its applicant is told."""
    principal = call.require(Role.FIRST_REVIEWER, Role.APPROVER)

    def action(session: Session, at: datetime) -> ApplicationView:
        reject_application(session, application_id, by=str(principal.id), reason=body.reason, at=at)
        return _application(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:issue", status_code=201)
def issue(application_id: UUID, call: Caller) -> VoucherView:
    """Issue the voucher of an approved application whose public notice is over."""
    principal = call.require(Role.AUTHORITY)

    def action(session: Session, at: datetime) -> VoucherView:
        voucher_id = issue_voucher(session, application_id, by=str(principal.id), at=at)
        holder = session.get_one(Application, application_id).enterprise_id
        return next(view for view in _vouchers(session, holder) if view.id == voucher_id)

    return call.once(VoucherView, None, action)


@router.get("/vouchers")
def vouchers(
    call: Caller,
    after: UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[VoucherView]:
    """Vouchers with what remains on them, by id; a tenant's own, or all."""
    return call.read(lambda session: _vouchers(session, _scope(call), after=after, limit=limit))


def _scope(call: Call) -> UUID | None:
    return call.principal.tenant_id


def _vouchers(
    session: Session, enterprise_id: UUID | None, *, after: UUID | None = None, limit: int = 500
) -> list[VoucherView]:
    return [
        VoucherView(
            id=found.id,
            number=found.number,
            programme=found.slug,
            tenant_id=found.enterprise_id,
            asset=found.asset,
            state=found.state,
            issued_at=found.issued_at,
            expires_at=found.expires_at,
            face_cny=format_yuan(found.face),
            held_cny=format_yuan(found.held),
            captured_cny=format_yuan(found.captured),
            remaining_cny=format_yuan(found.remaining),
        )
        for found in list_vouchers(session, enterprise_id=enterprise_id, after=after, limit=limit)
    ]


def _programme(session: Session, slug: str) -> ProgrammeView:
    totals = programme_totals(session, slug)
    return ProgrammeView(
        programme=totals.slug,
        asset=totals.asset,
        budget=format_yuan(totals.budget),
        pool=format_yuan(totals.pool),
        issued=format_yuan(totals.issued),
        held=format_yuan(totals.held),
        captured=format_yuan(totals.captured),
        claimed=format_yuan(totals.claimed),
        disbursed=format_yuan(totals.disbursed),
    )


def _application(session: Session, application_id: UUID) -> ApplicationView:
    row = session.get_one(Application, application_id)
    return ApplicationView(
        id=row.id,
        programme=session.get_one(ProgrammeVersion, row.version_id).slug,
        tenant_id=row.enterprise_id,
        state=row.state,
        requested_cny=format_yuan(row.requested),
        granted_cny=None if row.granted is None else format_yuan(row.granted),
        checks=[
            CheckView(rule=check.rule, verdict=check.verdict, clause=check.clause, facts=check.facts)
            for check in checks_of(session, application_id)
        ],
    )
