"""What requests and answers about applications look like."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.amounts import in_units
from compute_hub.api.shapes import Body, CardMs, Id, NeededReason, Page, Reason, Slug, Text, View, Yuan, page_of
from kernel.money import parse_yuan
from vouchers.applications import checks_of, steps_of
from vouchers.domain.facts import CentreFacts, ContractFacts
from vouchers.enterprises import in_force
from vouchers.errors import ApplicationNotFound
from vouchers.tables import Application, Enterprise, EnterpriseVersion, Objection, ProgrammeVersion

Code = Annotated[str, StringConstraints(max_length=18)]
Number = Annotated[str, StringConstraints(max_length=100)]


class Contract(Body):
    """A purchase contract, where the programme asks for one. A centre it does not describe is this one."""

    contract_number: Number = ""
    supplier_credit_code: Code = ""
    contract_cny: Yuan = "0"
    contract_days: Annotated[int, Field(ge=0, le=3660)] = 0
    cost_kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_-]{0,62}$")] = "compute"
    centre_region: Annotated[str, StringConstraints(max_length=12)] | None = None
    centre_pflops: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    other_subsidies: Annotated[list[Text], Field(max_length=20)] = Field(default_factory=list)

    def facts(self, here: CentreFacts) -> ContractFacts:
        """The same in the rules' words."""
        return ContractFacts(
            number=self.contract_number,
            supplier=self.supplier_credit_code,
            amount_micros=parse_yuan(self.contract_cny, field="contract_cny"),
            days=self.contract_days,
            cost_kind=self.cost_kind,
            centre_region=here.region if self.centre_region is None else self.centre_region,
            centre_pflops=here.pflops if self.centre_pflops is None else self.centre_pflops,
            other_subsidies=tuple(self.other_subsidies),
        )


class ApplicationRequest(Contract):
    """What an enterprise asks of a programme; the amount is in the programme's unit."""

    programme: Slug
    requested_cny: Yuan | None = None
    requested_card_ms: CardMs | None = None
    round_id: Id | None = None


class ApplicationRevision(Body):
    """What changes in a draft or in an application that was sent back."""

    requested_cny: Yuan | None = None
    requested_card_ms: CardMs | None = None
    contract: Contract | None = None


class Review(Body):
    """A first review's reason."""

    reason: Reason = ""


class Decision(Review):
    """A final approval, which may grant less than was asked."""

    granted_cny: Yuan | None = None
    granted_card_ms: CardMs | None = None


class Rejection(Body):
    """Why an application is refused or sent back; its applicant is told."""

    reason: NeededReason


class ProgressReport(Body):
    """The reference of an accepted progress report."""

    report: Text


class ObjectionRaising(Body):
    """What somebody says against an approval."""

    reason: NeededReason


class ObjectionResolution(Body):
    """What became of an objection; an upheld one rejects the application."""

    upheld: bool
    resolution: NeededReason


class CheckView(View):
    """What one automatic rule found on one revision, and the facts it saw."""

    revision: int
    rule: str
    verdict: str
    clause: str
    facts: dict[str, Any]


class StepView(View):
    """Who decided what."""

    step: str
    actor_id: str
    reason: str
    at: datetime


class ObjectionView(View):
    """What was said against an approval, and what became of it."""

    id: UUID
    state: str
    reason: str
    raised_at: datetime
    resolution: str | None


class ApplicationView(View):
    """An application and how far it got."""

    id: UUID
    programme: str
    programme_version: int
    tenant_id: UUID
    state: str
    revision: int
    requested_cny: str | None
    requested_card_ms: int | None
    granted_cny: str | None
    granted_card_ms: int | None
    created_at: datetime
    submitted_at: datetime | None
    notice_ends_at: datetime | None
    checks: list[CheckView]
    steps: list[StepView]
    objections: list[ObjectionView]


class NoticeView(View):
    """An approval as the public sees it."""

    application_id: UUID
    programme: str
    enterprise: str
    granted_cny: str | None
    granted_card_ms: int | None
    notice_ends_at: datetime
    objections_open: int


def own_application(session: Session, application_id: UUID, tenant_id: UUID | None) -> Application:
    """An application, of this tenant if one is named; another tenant's looks like none. Raises ApplicationNotFound."""
    row = session.get(Application, application_id)
    if row is None or tenant_id not in {None, row.enterprise_id}:
        raise ApplicationNotFound(application=application_id)
    return row


def application_view(session: Session, application_id: UUID) -> ApplicationView:
    """An application with everything that is known of it."""
    row = session.get_one(Application, application_id)
    version = session.get_one(ProgrammeVersion, row.version_id)
    amounts = in_units(version.document["asset"], requested=row.requested, granted=row.granted)
    return ApplicationView.model_validate(
        {
            "id": row.id,
            "programme": version.slug,
            "programme_version": version.version,
            "tenant_id": row.enterprise_id,
            "state": row.state,
            "revision": row.revision,
            **amounts,
            "created_at": row.created_at,
            "submitted_at": row.submitted_at,
            "notice_ends_at": row.notice_ends_at,
            "checks": [
                CheckView(
                    revision=check.revision,
                    rule=check.rule,
                    verdict=check.verdict,
                    clause=check.clause,
                    facts=check.facts,
                )
                for check in checks_of(session, application_id)
            ],
            "steps": [
                StepView(step=step.step, actor_id=step.actor, reason=step.reason, at=step.at)
                for step in steps_of(session, application_id)
            ],
            "objections": [
                ObjectionView(
                    id=objection.id,
                    state=objection.state,
                    reason=objection.reason,
                    raised_at=objection.raised_at,
                    resolution=objection.resolution,
                )
                for objection in _objections(session, application_id)
            ],
        }
    )


def notice_views(
    session: Session, *, limit: int = 1, after: UUID | None = None, only: UUID | None = None
) -> Page[NoticeView]:
    """Approved applications under public notice, newest first; or the one named."""
    query = (
        select(Application, ProgrammeVersion, EnterpriseVersion.name)
        .join(ProgrammeVersion, ProgrammeVersion.id == Application.version_id)
        .join(Enterprise, Enterprise.id == Application.enterprise_id)
        .join(EnterpriseVersion, in_force())
        .where(Application.state == "approved", Application.notice_ends_at.is_not(None))
        .order_by(Application.id.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(Application.id < after)
    if only is not None:
        query = query.where(Application.id == only)
    items = [
        NoticeView.model_validate(
            {
                "application_id": row.id,
                "programme": version.slug,
                "enterprise": name,
                **in_units(version.document["asset"], granted=row.granted),
                "notice_ends_at": row.notice_ends_at,
                "objections_open": sum(entry.state == "open" for entry in _objections(session, row.id)),
            }
        )
        for row, version, name in session.execute(query)
    ]
    return page_of(items, limit, items[-1].application_id if items else "")


def _objections(session: Session, application_id: UUID) -> Sequence[Objection]:
    return session.scalars(
        select(Objection)
        .where(Objection.application_id == application_id)
        .order_by(Objection.raised_at, Objection.id)
    ).all()
