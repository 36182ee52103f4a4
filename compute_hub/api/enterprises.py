"""Tenants: registration, API keys, the prepaid balance."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Body, Caller, View
from compute_hub.identity.keys import issue_key
from compute_hub.identity.roles import Role
from kernel.money import format_yuan, parse_yuan
from vouchers.enterprises import register_enterprise
from vouchers.tables import Enterprise
from vouchers.wallets import deposit, wallet_balance

router = APIRouter(prefix="/v1", tags=["enterprises"])

Text = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
Yuan = Annotated[str, StringConstraints(max_length=24)]


class EnterpriseRegistration(Body):
    """Who an enterprise is, as the rules want to know it."""

    credit_code: Text
    name: Text
    region: Text
    industry: Text = "manufacturing"
    size_class: Literal["micro", "small", "medium", "large", "startup"] = "small"
    yearly_contract_cny: Yuan = "0"
    clean_years: Annotated[int, Field(ge=0, le=200)] = 0


class EnterpriseView(View):
    """An enterprise; its id is the tenant's id."""

    id: UUID
    credit_code: str
    name: str
    region: str
    industry: str
    size_class: str


class KeyRequest(Body):
    """Whom a key is for; a tenant's key names its enterprise."""

    role: Annotated[Role, Field(strict=False)]
    person: Text
    tenant_id: Annotated[UUID | None, Field(strict=False)] = None


class KeyView(View):
    """A new key; it is shown this once."""

    role: Role
    person: str
    key: str


class Deposit(Body):
    """Money that arrived at the bank."""

    amount_cny: Yuan
    reference: Text


class WalletView(View):
    """An enterprise's own money."""

    tenant_id: UUID
    prepaid_available_cny: str
    prepaid_held_cny: str
    credit_available_cny: str
    credit_held_cny: str


@router.post("/enterprises", status_code=201)
def register(body: EnterpriseRegistration, call: Caller) -> EnterpriseView:
    """Register an enterprise as a tenant."""
    call.require(Role.OPERATOR)

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
            at=at,
        )
        return enterprise_view(session.get_one(Enterprise, enterprise_id))

    return call.once(EnterpriseView, body, action)


@router.get("/enterprises")
def enterprises(call: Caller) -> list[EnterpriseView]:
    """All enterprises by credit code; for a tenant, itself."""

    def action(session: Session) -> list[EnterpriseView]:
        query = select(Enterprise).order_by(Enterprise.credit_code).limit(1000)
        if call.principal.tenant_id is not None:
            query = query.where(Enterprise.id == call.principal.tenant_id)
        return [enterprise_view(row) for row in session.scalars(query)]

    return call.read(action)


@router.post("/api-keys", status_code=201)
def make_key(body: KeyRequest, call: Caller) -> KeyView:
    """Give a person a key for one role. Repeating the request makes another key."""
    call.require(Role.OPERATOR)

    def action(session: Session, at: datetime) -> KeyView:
        key = issue_key(session, body.role, body.person, at=at, tenant_id=body.tenant_id)
        return KeyView(role=body.role, person=body.person, key=key)

    return call.act(action)


@router.post("/enterprises/{tenant_id}/deposits", status_code=201)
def book_deposit(tenant_id: UUID, body: Deposit, call: Caller) -> WalletView:
    """Book a bank transfer to an enterprise's prepaid balance; the bank's reference is booked once."""
    call.require(Role.OPERATOR)

    def action(session: Session, at: datetime) -> WalletView:
        deposit(session, tenant_id, parse_yuan(body.amount_cny, field="amount_cny"), body.reference, at)
        return _wallet(session, tenant_id)

    return call.once(WalletView, body, action)


@router.get("/wallet")
def own_wallet(call: Caller) -> WalletView:
    """The caller's own money."""
    principal = call.require(Role.TENANT)
    tenant_id = principal.tenant_id
    assert tenant_id is not None  # noqa: S101 - a tenant key always has one; the database checks it
    return call.read(lambda session: _wallet(session, tenant_id))


def enterprise_view(row: Enterprise) -> EnterpriseView:
    """An enterprise as the API shows it."""
    return EnterpriseView(
        id=row.id,
        credit_code=row.credit_code,
        name=row.name,
        region=row.region,
        industry=row.industry,
        size_class=row.size_class,
    )


def _wallet(session: Session, tenant_id: UUID) -> WalletView:
    balance = wallet_balance(session, tenant_id)
    return WalletView(
        tenant_id=tenant_id,
        prepaid_available_cny=format_yuan(balance.prepaid_available_micros),
        prepaid_held_cny=format_yuan(balance.prepaid_held_micros),
        credit_available_cny=format_yuan(balance.credit_available_micros),
        credit_held_cny=format_yuan(balance.credit_held_micros),
    )
