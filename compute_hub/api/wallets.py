"""The tenant's own money: prepaid balance, credit line, budgets of projects, and who pays for whom."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.call import Call, Caller
from compute_hub.api.ledger import EntryView, account_history
from compute_hub.api.shapes import After, Body, Id, Instant, Limit, Page, Project, Text, View, Yuan, page_of
from kernel.money import format_yuan, parse_yuan
from vouchers import accounts
from vouchers.enterprises import enterprise_facts
from vouchers.tables import GroupMember, ProjectBudget
from vouchers.wallets import (
    bind_affiliate,
    deposit,
    grant_credit,
    repay_credit,
    set_budget,
    unbind_affiliate,
    wallet_balance,
    withdraw_credit,
)

router = APIRouter(prefix="/v1", tags=["wallets"])


class Booking(Body):
    """Money that arrived at the bank, or a change of a credit line; a reference is booked once."""

    amount_cny: Yuan
    reference: Text


class WalletView(View):
    """An enterprise's own money, who pays besides it, and for whom it pays."""

    tenant_id: UUID
    prepaid_available_cny: str
    prepaid_held_cny: str
    credit_available_cny: str
    credit_held_cny: str
    payer_id: UUID | None
    affiliate_ids: list[UUID]


class Affiliate(Body):
    """An enterprise of the same group."""

    affiliate_id: Id


class BudgetChange(Body):
    """By how much to raise or lower what the enterprise itself may spend on a project in a period."""

    project: Project
    starts_at: Instant
    ends_at: Instant
    amount_cny: Yuan
    reference: Text


class BudgetView(View):
    """What may still be spent on a project in a period."""

    id: UUID
    project: str
    starts_at: datetime
    ends_at: datetime
    available_cny: str


@router.get("/wallet", name="own_wallet")
def own_wallet(call: Caller) -> WalletView:
    """The caller's own money."""
    return call.read(lambda session: _wallet(session, call.tenant_id))


@router.get("/wallet/history", name="own_wallet_history")
def own_history(
    call: Caller,
    limit: Limit = 100,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    of: Annotated[
        Literal["prepaid", "credit"], Query(description="The balance or the credit line.")
    ] = "prepaid",
) -> Page[EntryView]:
    """Every movement of the caller's prepaid balance or credit line, oldest first, with the balance after it."""
    account = accounts.wallet(call.tenant_id) if of == "prepaid" else accounts.credit_line(call.tenant_id)
    return call.read(lambda session: account_history(session, account.id, after=after, limit=limit))


@router.get("/enterprises/{tenant_id}/wallet", name="show_wallet")
def wallet(tenant_id: UUID, call: Caller) -> WalletView:
    """An enterprise's own money."""
    return call.read(lambda session: _wallet(session, tenant_id))


@router.post("/enterprises/{tenant_id}/deposits", status_code=201, name="book_deposit")
def book_deposit(tenant_id: UUID, body: Booking, call: Caller) -> WalletView:
    """Book a bank transfer to an enterprise's prepaid balance; the bank's reference is booked once."""
    return _book(tenant_id, body, call, deposit)


@router.post("/enterprises/{tenant_id}/credit:grant", status_code=201, name="grant_credit")
def grant(tenant_id: UUID, body: Booking, call: Caller) -> WalletView:
    """Raise an enterprise's postpaid credit line by an amount."""
    return _book(tenant_id, body, call, grant_credit)


@router.post("/enterprises/{tenant_id}/credit:withdraw", status_code=201, name="withdraw_credit")
def withdraw(tenant_id: UUID, body: Booking, call: Caller) -> WalletView:
    """Lower a credit line by an amount that is neither used nor set aside."""
    return _book(tenant_id, body, call, withdraw_credit)


@router.post("/enterprises/{tenant_id}/credit:repay", status_code=201, name="repay_credit")
def repay(tenant_id: UUID, body: Booking, call: Caller) -> WalletView:
    """Book a bank transfer for what was used before paying; what it brings beyond goes to the prepaid balance."""
    return _book(tenant_id, body, call, repay_credit)


@router.post("/enterprises/{tenant_id}/affiliates:bind", status_code=201, name="bind_affiliate")
def bind(tenant_id: UUID, body: Affiliate, call: Caller) -> WalletView:
    """Let an enterprise pay for another one of its group: at most six, each bound once."""

    def action(session: Session, at: datetime) -> WalletView:
        bind_affiliate(session, tenant_id, body.affiliate_id, by=call.by, at=at)
        return _wallet(session, tenant_id)

    return call.once(WalletView, body, action)


@router.post("/enterprises/{tenant_id}/affiliates:unbind", status_code=201, name="unbind_affiliate")
def unbind(tenant_id: UUID, body: Affiliate, call: Caller) -> WalletView:
    """Stop paying for an affiliate; what is set aside for its running jobs stays set aside."""

    def action(session: Session, _at: datetime) -> WalletView:
        unbind_affiliate(session, tenant_id, body.affiliate_id)
        return _wallet(session, tenant_id)

    return call.once(WalletView, body, action)


@router.post("/budgets:raise", status_code=201, name="raise_budget")
def raise_(body: BudgetChange, call: Caller) -> BudgetView:
    """Raise what the enterprise itself may spend on a project in a period; without a budget there is no limit."""
    return _budget(body, call, lower=False)


@router.post("/budgets:lower", status_code=201, name="lower_budget")
def lower(body: BudgetChange, call: Caller) -> BudgetView:
    """Lower a budget by an amount that is neither spent nor set aside."""
    return _budget(body, call, lower=True)


@router.get("/budgets", name="list_budgets")
def budgets(call: Caller, limit: Limit = 100, after: After = None) -> Page[BudgetView]:
    """The caller's budgets by id."""

    def action(session: Session) -> Page[BudgetView]:
        query = (
            select(ProjectBudget)
            .where(ProjectBudget.enterprise_id == call.tenant_id)
            .order_by(ProjectBudget.id)
            .limit(limit)
        )
        rows = session.scalars(query if after is None else query.where(ProjectBudget.id > after)).all()
        items = [_budget_view(session, row) for row in rows]
        return page_of(items, limit, items[-1].id if items else "")

    return call.read(action)


def _book(
    tenant_id: UUID, body: Booking, call: Call, booking: Callable[[Session, UUID, int, str, datetime], None]
) -> WalletView:
    def action(session: Session, at: datetime) -> WalletView:
        booking(session, tenant_id, parse_yuan(body.amount_cny, field="amount_cny"), body.reference, at)
        return _wallet(session, tenant_id)

    return call.once(WalletView, body, action)


def _wallet(session: Session, tenant_id: UUID) -> WalletView:
    enterprise_facts(session, tenant_id)
    balance = wallet_balance(session, tenant_id)
    affiliates = session.scalars(
        select(GroupMember.affiliate_id).where(GroupMember.payer_id == tenant_id).order_by(GroupMember.place)
    )
    return WalletView(
        tenant_id=tenant_id,
        prepaid_available_cny=format_yuan(balance.prepaid_available_micros),
        prepaid_held_cny=format_yuan(balance.prepaid_held_micros),
        credit_available_cny=format_yuan(balance.credit_available_micros),
        credit_held_cny=format_yuan(balance.credit_held_micros),
        payer_id=balance.payer_id,
        affiliate_ids=list(affiliates),
    )


def _budget(body: BudgetChange, call: Call, *, lower: bool) -> BudgetView:
    def action(session: Session, at: datetime) -> BudgetView:
        budget_id = set_budget(
            session,
            call.tenant_id,
            body.project,
            starts_at=body.starts_at,
            ends_at=body.ends_at,
            amount_micros=parse_yuan(body.amount_cny, field="amount_cny"),
            reference=body.reference,
            by=call.by,
            at=at,
            lower=lower,
        )
        return _budget_view(session, session.get_one(ProjectBudget, budget_id))

    return call.once(BudgetView, body, action)


def _budget_view(session: Session, row: ProjectBudget) -> BudgetView:
    account = accounts.project_budget(row.id)
    return BudgetView(
        id=row.id,
        project=row.project,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        available_cny=format_yuan(accounts.available(session, [account])[account.id]),
    )
