"""Enterprises: registration, profile, who controls whom, who is related, who is on the list of dishonest ones."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field
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
    enterprise_facts,
    mark_dishonest,
    record_controller,
    record_related,
    register_enterprise,
)
from vouchers.errors import EnterpriseNotFound
from vouchers.tables import Controller, Enterprise, RelatedParty

router = APIRouter(prefix="/v1", tags=["enterprises"])

PartyQuery = Annotated[str, Query(pattern=PARTY_PATTERN)]
PartyCursor = Annotated[str, Query(pattern=rf"{PARTY_PATTERN}|^$")]
Role = Annotated[Text, Field(pattern=r"^[a-z][a-z_-]{0,62}$")]


class EnterpriseRegistration(Body):
    """Who an enterprise is, as the rules want to know it."""

    credit_code: Text
    name: Text
    region: Text
    industry: Text = "manufacturing"
    size_class: Literal["micro", "small", "medium", "large", "startup"] = "small"
    yearly_contract_cny: Yuan = "0"
    clean_years: Annotated[int, Field(ge=0, le=200)] = 0
    roles: Annotated[list[Role], Field(max_length=20)] = Field(default_factory=list)


class EnterpriseView(View):
    """An enterprise; its id is the tenant's id."""

    id: UUID
    credit_code: str
    name: str
    region: str
    industry: str
    size_class: str


class EnterpriseDetail(EnterpriseView):
    """An enterprise with all that the rules look at."""

    yearly_contract_cny: str
    clean_years: int
    roles: list[str]
    dishonest: bool
    actual_controller: str
    registered_at: datetime


class Dishonesty(Body):
    """Whether an enterprise is on the list of dishonest ones."""

    dishonest: bool


class Control(Body):
    """Who directly controls a party, by credit codes or persons' references; replaces what was recorded."""

    controlled: Party
    controller: Party


class Relation(Body):
    """Two parties that are related otherwise than by control, such as by family."""

    one: Party
    other: Party
    reason: NeededReason


class ControlView(View):
    """A party, who directly controls it."""

    controlled: str
    controller: str


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
            at=at,
        )
        return _view(session.get_one(Enterprise, enterprise_id))

    return call.once(EnterpriseView, body, action)


@router.get("/enterprises", name="list_enterprises")
def enterprises(
    call: Caller, limit: Limit = 100, after: Annotated[str, Query(pattern=r"^[0-9A-Z]{0,18}$")] = ""
) -> Page[EnterpriseView]:
    """All enterprises by credit code; for a tenant, itself."""

    def action(session: Session) -> Page[EnterpriseView]:
        query = (
            select(Enterprise)
            .where(Enterprise.credit_code > after)
            .order_by(Enterprise.credit_code)
            .limit(limit)
        )
        if call.scope is not None:
            query = query.where(Enterprise.id == call.scope)
        items = [_view(row) for row in session.scalars(query)]
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


@router.post("/enterprises/{tenant_id}:mark-dishonest", name="set_dishonesty")
def set_dishonesty(tenant_id: UUID, body: Dishonesty, call: Caller) -> EnterpriseDetail:
    """Put an enterprise on the list of dishonest ones, or take it off."""

    def action(session: Session, _at: datetime) -> EnterpriseDetail:
        mark_dishonest(session, tenant_id, dishonest=body.dishonest)
        return _detail(session, tenant_id)

    return call.once(EnterpriseDetail, body, action)


@router.post("/controllers", status_code=201, name="record_controller")
def control(body: Control, call: Caller) -> ControlView:
    """Record who directly controls a party; control that leads back to itself is refused."""

    def action(session: Session, at: datetime) -> ControlView:
        record_controller(session, body.controlled, body.controller, by=call.by, at=at)
        return ControlView(controlled=body.controlled, controller=body.controller)

    return call.once(ControlView, body, action)


@router.get("/controllers", name="list_controllers")
def controls(call: Caller, limit: Limit = 100, after: PartyCursor = "") -> Page[ControlView]:
    """Who directly controls whom, by the controlled party."""

    def action(session: Session) -> Page[ControlView]:
        rows = session.scalars(
            select(Controller).where(Controller.controlled > after).order_by(Controller.controlled).limit(limit)
        )
        items = [ControlView(controlled=row.controlled, controller=row.controller) for row in rows]
        return page_of(items, limit, items[-1].controlled if items else "")

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


def _view(row: Enterprise) -> EnterpriseView:
    return EnterpriseView(
        id=row.id,
        credit_code=row.credit_code,
        name=row.name,
        region=row.region,
        industry=row.industry,
        size_class=row.size_class,
    )


def _detail(session: Session, tenant_id: UUID) -> EnterpriseDetail:
    facts = enterprise_facts(session, tenant_id)
    row = session.get_one(Enterprise, tenant_id)
    return EnterpriseDetail(
        **_view(row).model_dump(),
        yearly_contract_cny=format_yuan(row.yearly_contract_micros),
        clean_years=row.clean_years,
        roles=list(facts.roles),
        dishonest=row.dishonest,
        actual_controller=facts.controller,
        registered_at=row.registered_at,
    )
