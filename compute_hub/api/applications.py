"""Applications for vouchers: drafted and submitted by enterprises, decided by officers, objected to by anybody."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.amounts import amount_in, asset_of, optional_amount_in
from compute_hub.api.application_views import (
    ApplicationRequest,
    ApplicationRevision,
    ApplicationView,
    Decision,
    NoticeView,
    ObjectionRaising,
    ObjectionResolution,
    ProgressReport,
    Rejection,
    Review,
    application_view,
    notice_views,
    own_application,
)
from compute_hub.api.call import Call, Caller
from compute_hub.api.shapes import After, Limit, Page, SlugQuery, page_of
from compute_hub.api.vouchers import VoucherDetail, voucher_view
from vouchers.applications import (
    draft_application,
    final_approval,
    first_review,
    reject_application,
    request_revision,
    revise_application,
    submit_draft,
    withdraw_application,
)
from vouchers.errors import ApplicationNotFound
from vouchers.issuing import issue_voucher, release_tranche
from vouchers.notices import raise_objection, resolve_objection
from vouchers.tables import Application, Objection, ProgrammeVersion

router = APIRouter(prefix="/v1", tags=["applications"])

State = Literal["draft", "submitted", "revision", "reviewed", "approved", "issued", "rejected", "withdrawn"]


@router.post("/applications", status_code=201, name="apply")
def apply(body: ApplicationRequest, call: Caller) -> ApplicationView:
    """Apply for a voucher. The automatic checks run at once; what they found is in the answer."""

    def action(session: Session, at: datetime) -> ApplicationView:
        application_id = _draft(session, body, call, at)
        submit_draft(session, application_id, by=call.by, at=at)
        return application_view(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications:draft", status_code=201, name="draft_application")
def draft(body: ApplicationRequest, call: Caller) -> ApplicationView:
    """Begin an application without handing it in."""

    def action(session: Session, at: datetime) -> ApplicationView:
        return application_view(session, _draft(session, body, call, at))

    return call.once(ApplicationView, body, action)


@router.get("/applications", name="list_applications")
def applications(
    call: Caller,
    limit: Limit = 50,
    after: After = None,
    state: Annotated[State | None, Query(description="Only applications in this state.")] = None,
    programme: SlugQuery = None,
) -> Page[ApplicationView]:
    """Applications, newest first; a tenant's own, or all."""

    def action(session: Session) -> Page[ApplicationView]:
        query = select(Application.id).order_by(Application.id.desc()).limit(limit)
        if call.scope is not None:
            query = query.where(Application.enterprise_id == call.scope)
        if after is not None:
            query = query.where(Application.id < after)
        if state is not None:
            query = query.where(Application.state == state)
        if programme is not None:
            query = query.join(ProgrammeVersion).where(ProgrammeVersion.slug == programme)
        ids = session.scalars(query).all()
        return page_of([application_view(session, one) for one in ids], limit, ids[-1] if ids else "")

    return call.read(action)


@router.get("/applications/{application_id}", name="show_application")
def application(application_id: UUID, call: Caller) -> ApplicationView:
    """One application with its checks, its steps and what was said against it."""

    def action(session: Session) -> ApplicationView:
        own_application(session, application_id, call.scope)
        return application_view(session, application_id)

    return call.read(action)


@router.post("/applications/{application_id}:submit", name="submit_application")
def submit(application_id: UUID, call: Caller) -> ApplicationView:
    """Hand a draft, or what was sent back, in. The automatic checks run at once."""

    def action(session: Session, at: datetime) -> ApplicationView:
        own_application(session, application_id, call.scope)
        submit_draft(session, application_id, by=call.by, at=at)
        return application_view(session, application_id)

    return call.once(ApplicationView, None, action)


@router.post("/applications/{application_id}:revise", name="revise_application")
def revise(application_id: UUID, body: ApplicationRevision, call: Caller) -> ApplicationView:
    """Change a draft, or what a reviewer sent back; what is not named stays."""

    def action(session: Session, at: datetime) -> ApplicationView:
        row = own_application(session, application_id, call.scope)
        slug = session.get_one(ProgrammeVersion, row.version_id).slug
        requested = optional_amount_in(
            asset_of(session, slug), slug, "requested", body.requested_cny, body.requested_card_ms
        )
        contract = None if body.contract is None else body.contract.facts(call.settings.centre_facts)
        revise_application(session, application_id, by=call.by, at=at, requested=requested, contract=contract)
        return application_view(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:withdraw", name="withdraw_application")
def withdraw(application_id: UUID, call: Caller) -> ApplicationView:
    """Take an application back."""

    def action(session: Session, at: datetime) -> ApplicationView:
        own_application(session, application_id, call.scope)
        withdraw_application(session, application_id, by=call.by, at=at)
        return application_view(session, application_id)

    return call.once(ApplicationView, None, action)


@router.post("/applications/{application_id}:request-revision", name="request_revision")
def send_back(application_id: UUID, body: Rejection, call: Caller) -> ApplicationView:
    """Send an application back to its applicant with what is missing."""

    def action(session: Session, at: datetime) -> ApplicationView:
        request_revision(session, application_id, by=call.by, reason=body.reason, at=at)
        return application_view(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:first-review", name="review_application")
def review(application_id: UUID, body: Review, call: Caller) -> ApplicationView:
    """Pass an application on to final approval."""

    def action(session: Session, at: datetime) -> ApplicationView:
        first_review(session, application_id, by=call.by, at=at, reason=body.reason)
        return application_view(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:final-approval", name="approve_application")
def approve(application_id: UUID, body: Decision, call: Caller) -> ApplicationView:
    """Approve an application, wholly or in part; never by the person who reviewed it first."""

    def action(session: Session, at: datetime) -> ApplicationView:
        row = own_application(session, application_id, None)
        slug = session.get_one(ProgrammeVersion, row.version_id).slug
        granted = optional_amount_in(
            asset_of(session, slug), slug, "granted", body.granted_cny, body.granted_card_ms
        )
        final_approval(session, application_id, by=call.by, at=at, granted=granted, reason=body.reason)
        return application_view(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:reject", name="reject_application")
def reject(application_id: UUID, body: Rejection, call: Caller) -> ApplicationView:
    """Refuse an application for a reason its applicant is told."""

    def action(session: Session, at: datetime) -> ApplicationView:
        reject_application(session, application_id, by=call.by, reason=body.reason, at=at)
        return application_view(session, application_id)

    return call.once(ApplicationView, body, action)


@router.post("/applications/{application_id}:issue", status_code=201, name="issue_voucher")
def issue(application_id: UUID, call: Caller) -> VoucherDetail:
    """Issue the voucher of an approved application whose public notice is over."""

    def action(session: Session, at: datetime) -> VoucherDetail:
        return voucher_view(session, issue_voucher(session, application_id, by=call.by, at=at), None)

    return call.once(VoucherDetail, None, action)


@router.post("/applications/{application_id}:release-tranche", status_code=201, name="release_tranche")
def release(application_id: UUID, body: ProgressReport, call: Caller) -> VoucherDetail:
    """Issue the next part of a grant on an accepted progress report; a report releases one part."""

    def action(session: Session, at: datetime) -> VoucherDetail:
        voucher_id = release_tranche(session, application_id, report=body.report, by=call.by, at=at)
        return voucher_view(session, voucher_id, None)

    return call.once(VoucherDetail, body, action)


@router.get("/notices", name="list_notices")
def notices(call: Caller, limit: Limit = 50, after: After = None) -> Page[NoticeView]:
    """Approved applications against which anybody may object now."""
    return call.read(lambda session: notice_views(session, limit=limit, after=after))


@router.post("/applications/{application_id}:object", status_code=201, name="raise_objection")
def object_(application_id: UUID, body: ObjectionRaising, call: Caller) -> NoticeView:
    """Object to an approval during its public notice; nothing is issued before the objection is resolved."""

    def action(session: Session, at: datetime) -> NoticeView:
        row = session.get(Application, application_id)
        public = row is not None and row.state == "approved" and row.notice_ends_at is not None
        if row is None or not (public or call.scope in {None, row.enterprise_id}):
            raise ApplicationNotFound(application=application_id)
        raise_objection(session, application_id, by=call.by, reason=body.reason, at=at)
        return notice_views(session, only=application_id).items[0]

    return call.once(NoticeView, body, action)


@router.post("/objections/{objection_id}:resolve", name="resolve_objection")
def resolve(objection_id: UUID, body: ObjectionResolution, call: Caller) -> ApplicationView:
    """Dismiss an objection, or uphold it, which rejects the application."""

    def action(session: Session, at: datetime) -> ApplicationView:
        resolve_objection(
            session, objection_id, upheld=body.upheld, by=call.by, resolution=body.resolution, at=at
        )
        return application_view(session, session.get_one(Objection, objection_id).application_id)

    return call.once(ApplicationView, body, action)


def _draft(session: Session, body: ApplicationRequest, call: Call, at: datetime) -> UUID:
    asset = asset_of(session, body.programme)
    return draft_application(
        session,
        enterprise_id=call.tenant_id,
        programme=body.programme,
        requested=amount_in(asset, body.programme, "requested", body.requested_cny, body.requested_card_ms),
        by=call.by,
        at=at,
        contract=body.facts(call.settings.centre_facts),
        round_id=body.round_id,
    )
