"""Enterprises: registration, dated facts, who controls whom, who is related."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import (
    PARTY_PATTERN,
    Body,
    Limit,
    NeededReason,
    Page,
    Party,
    Text,
    View,
    Yuan,
    page_of,
)
from kernel.money import format_yuan, parse_yuan
from vouchers.enterprises import (
    FactChanges,
    change_facts,
    enterprise_facts,
    facts_history,
    in_force,
    profile,
    record_controller,
    record_related,
    register_enterprise,
)
from vouchers.errors import EnterpriseNotFound
from vouchers.tables import Controller, Enterprise, EnterpriseVersion, RelatedParty

router = APIRouter(prefix="/v1", tags=["enterprises"])

PartyQuery = Annotated[str, Query(pattern=PARTY_PATTERN)]
PartyCursor = Annotated[str, Query(pattern=rf"{PARTY_PATTERN}|^$")]
Role = Annotated[Text, Field(pattern=r"^[a-z][a-z_-]{0,62}$")]
SizeClass = Literal["micro", "small", "medium", "large", "startup"]
CleanYears = Annotated[int, Field(ge=0, le=200)]
Roles = Annotated[list[Role], Field(max_length=20)]


class EnterpriseRegistration(Body):
    """Who an enterprise is, as the rules want to know it."""

    credit_code: Text
    name: Text
    region: Text
    industry: Text = "manufacturing"
    size_class: SizeClass = "small"
    yearly_contract_cny: Yuan = "0"
    clean_years: CleanYears = 0
    roles: Roles = Field(default_factory=list)


class FactChange(Body):
    """What is to change of an enterprise's facts, and why; what is left out or null stays."""

    reason: NeededReason
    name: Text | None = None
    region: Text | None = None
    industry: Text | None = None
    size_class: SizeClass | None = None
    yearly_contract_cny: Yuan | None = None
    clean_years: CleanYears | None = None
    dishonest: bool | None = None
    roles: Roles | None = None

    @model_validator(mode="after")
    def _names_a_fact(self) -> Self:
        if not self.model_dump(exclude={"reason"}, exclude_none=True):
            raise PydanticCustomError("no_fact_named", "name at least one fact that is to change")
        return self

    def changes(self) -> FactChanges:
        """As the rules know them."""
        facts = self.model_dump(exclude={"reason", "yearly_contract_cny", "roles"})
        if self.yearly_contract_cny is not None:
            facts["yearly_contract_micros"] = parse_yuan(self.yearly_contract_cny, field="yearly_contract_cny")
        if self.roles is not None:
            facts["roles"] = tuple(self.roles)
        return FactChanges(**facts)


class EnterpriseView(View):
    """An enterprise; its id is the tenant's id."""

    id: UUID
    credit_code: str
    name: str
    region: str
    industry: str
    size_class: str


class EnterpriseDetail(EnterpriseView):
    """An enterprise with all that the rules look at, as it is in force."""

    version: int
    yearly_contract_cny: str
    clean_years: int
    roles: list[str]
    dishonest: bool
    actual_controller: str
    registered_at: datetime


class FactsView(View):
    """One version of an enterprise's facts: in force from when it was recorded until the next one was."""

    version: int
    name: str
    region: str
    industry: str
    size_class: str
    yearly_contract_cny: str
    clean_years: int
    roles: list[str]
    dishonest: bool
    reason: str
    recorded_by: str
    recorded_at: datetime


class Control(Body):
    """Who directly controls a party from now on, by credit codes or persons' references, and how it is known."""

    controlled: Party
    controller: Party
    reason: NeededReason


class Relation(Body):
    """Two parties that are related otherwise than by control, such as by family."""

    one: Party
    other: Party
    reason: NeededReason


class ControlView(View):
    """A party, who directly controls it and since when; with an end, who did until then."""

    controlled: str
    controller: str
    reason: str
    recorded_by: str
    recorded_at: datetime
    ended_at: datetime | None


class RelationView(View):
    """Two related parties and why."""

    one: str
    other: str
    reason: str


@router.post("/enterprises", status_code=201, name="register_enterprise")
def register(body: EnterpriseRegistration, call: Caller) -> EnterpriseView:
    """Register an enterprise as a tenant."""

    def action(session: Session, at: datetime) -> EnterpriseView:
        enterprise_id = register_enterprise(
            session,
            credit_code=body.credit_code,
            name=body.name,
            region=body.region,
            industry=body.industry,
            size_class=body.size_class,
            yearly_contract_micros=parse_yuan(body.yearly_contract_cny, field="yearly_contract_cny"),
            clean_years=body.clean_years,
            roles=body.roles,
            by=call.by,
            at=at,
        )
        return _view(enterprise_id, *profile(session, enterprise_id))

    return call.once(EnterpriseView, body, action)


@router.get("/enterprises", name="list_enterprises")
def enterprises(
    call: Caller, limit: Limit = 100, after: Annotated[str, Query(pattern=r"^[0-9A-Z]{0,18}$")] = ""
) -> Page[EnterpriseView]:
    """All enterprises by credit code; for a tenant, itself."""

    def action(session: Session) -> Page[EnterpriseView]:
        query = (
            select(Enterprise, EnterpriseVersion)
            .join(EnterpriseVersion, in_force())
            .where(Enterprise.credit_code > after)
            .order_by(Enterprise.credit_code)
            .limit(limit)
        )
        if call.scope is not None:
            query = query.where(Enterprise.id == call.scope)
        items = [_view(row.id, row.credit_code, facts) for row, facts in session.execute(query)]
        return page_of(items, limit, items[-1].credit_code if items else "")

    return call.read(action)


@router.get("/enterprises/{tenant_id}", name="show_enterprise")
def enterprise(tenant_id: UUID, call: Caller) -> EnterpriseDetail:
    """One enterprise with all that the rules look at; for a tenant, itself only."""

    def action(session: Session) -> EnterpriseDetail:
        if call.scope not in {None, tenant_id}:
            raise EnterpriseNotFound(enterprise=tenant_id)
        return _detail(session, tenant_id)

    return call.read(action)


@router.post("/enterprises/{tenant_id}:change-facts", name="change_facts")
def change(tenant_id: UUID, body: FactChange, call: Caller) -> EnterpriseDetail:
    """Record other facts of an enterprise, such as its size class or that it is on the list of dishonest ones.

    They are in force from now on; what was decided keeps citing the facts it saw.
    """

    def action(session: Session, at: datetime) -> EnterpriseDetail:
        change_facts(session, tenant_id, body.changes(), reason=body.reason, by=call.by, at=at)
        return _detail(session, tenant_id)

    return call.once(EnterpriseDetail, body, action)


@router.get("/enterprises/{tenant_id}/facts", name="list_facts")
def facts(
    tenant_id: UUID, call: Caller, limit: Limit = 100, after: Annotated[int, Query(ge=0, le=2**53)] = 0
) -> Page[FactsView]:
    """Every version of an enterprise's facts, the first one first; for a tenant, its own only."""

    def action(session: Session) -> Page[FactsView]:
        if call.scope not in {None, tenant_id}:
            raise EnterpriseNotFound(enterprise=tenant_id)
        rows = facts_history(session, tenant_id, after=after, limit=limit)
        items = [_facts(row) for row in rows]
        return page_of(items, limit, items[-1].version if items else "")

    return call.read(action)


@router.post("/controllers", status_code=201, name="record_controller")
def control(body: Control, call: Caller) -> ControlView:
    """Record who directly controls a party; control that leads back to itself is refused."""

    def action(session: Session, at: datetime) -> ControlView:
        return _control(
            record_controller(session, body.controlled, body.controller, reason=body.reason, by=call.by, at=at)
        )

    return call.once(ControlView, body, action)


@router.get("/controllers", name="list_controllers")
def controls(call: Caller, limit: Limit = 100, after: PartyCursor = "") -> Page[ControlView]:
    """Who directly controls whom now, by the controlled party."""

    def action(session: Session) -> Page[ControlView]:
        rows = session.scalars(
            select(Controller)
            .where(Controller.controlled > after, Controller.ended_at.is_(None))
            .order_by(Controller.controlled)
            .limit(limit)
        )
        items = [_control(row) for row in rows]
        return page_of(items, limit, items[-1].controlled if items else "")

    return call.read(action)


@router.get("/controllers/history", name="list_control_history")
def control_history(call: Caller, party: PartyQuery) -> Page[ControlView]:
    """The last hundred who directly controlled a party, newest first."""

    def action(session: Session) -> Page[ControlView]:
        rows = session.scalars(
            select(Controller)
            .where(Controller.controlled == party)
            .order_by(Controller.version.desc())
            .limit(100)
        )
        return Page(items=[_control(row) for row in rows], next=None)

    return call.read(action)


@router.get("/related-parties", name="list_related")
def relations(call: Caller, party: PartyQuery) -> Page[RelationView]:
    """The first hundred parties that are related to one otherwise than by control, and why."""

    def action(session: Session) -> Page[RelationView]:
        rows = session.scalars(
            select(RelatedParty)
            .where(or_(RelatedParty.one == party, RelatedParty.other == party))
            .order_by(RelatedParty.one, RelatedParty.other)
            .limit(100)
        )
        items = [RelationView(one=row.one, other=row.other, reason=row.reason) for row in rows]
        return Page(items=items, next=None)

    return call.read(action)


@router.post("/related-parties", status_code=201, name="record_related")
def relate(body: Relation, call: Caller) -> RelationView:
    """Record that two parties are related otherwise than by control."""

    def action(session: Session, at: datetime) -> RelationView:
        record_related(session, body.one, body.other, body.reason, by=call.by, at=at)
        return RelationView(one=body.one, other=body.other, reason=body.reason)

    return call.once(RelationView, body, action)


def _view(enterprise_id: UUID, credit_code: str, row: EnterpriseVersion) -> EnterpriseView:
    return EnterpriseView(
        id=enterprise_id,
        credit_code=credit_code,
        name=row.name,
        region=row.region,
        industry=row.industry,
        size_class=row.size_class,
    )


def _detail(session: Session, tenant_id: UUID) -> EnterpriseDetail:
    credit_code, row = profile(session, tenant_id)
    return EnterpriseDetail(
        **_view(tenant_id, credit_code, row).model_dump(),
        version=row.version,
        yearly_contract_cny=format_yuan(row.yearly_contract_micros),
        clean_years=row.clean_years,
        roles=list(row.roles),
        dishonest=row.dishonest,
        actual_controller=enterprise_facts(session, tenant_id).controller,
        registered_at=session.get_one(Enterprise, tenant_id).registered_at,
    )


def _facts(row: EnterpriseVersion) -> FactsView:
    return FactsView(
        version=row.version,
        name=row.name,
        region=row.region,
        industry=row.industry,
        size_class=row.size_class,
        yearly_contract_cny=format_yuan(row.yearly_contract_micros),
        clean_years=row.clean_years,
        roles=list(row.roles),
        dishonest=row.dishonest,
        reason=row.reason,
        recorded_by=row.recorded_by,
        recorded_at=row.recorded_at,
    )


def _control(row: Controller) -> ControlView:
    return ControlView(
        controlled=row.controlled,
        controller=row.controller,
        reason=row.reason,
        recorded_by=row.recorded_by,
        recorded_at=row.recorded_at,
        ended_at=row.ended_at,
    )
