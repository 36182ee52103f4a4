"""The books, for those who check them: the audit, accounts with their totals, each account's history."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import Text, select, type_coerce
from sqlalchemy.orm import Session

from compute_hub.api.amounts import in_units
from compute_hub.api.call import Caller
from compute_hub.api.shapes import Limit, Page, View, page_of
from ledger.audit import audit
from ledger.errors import UnknownAccount
from ledger.reading import history, sum_of_balances
from ledger.tables import AccountRow

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])

NamePrefix = Annotated[str, Query(max_length=200, pattern=r"^[A-Za-z0-9/:._-]*$")]


class AuditView(View):
    """Whether the ledger's balances follow from its transfers, and each difference in words."""

    audit: str
    transfers: int
    sum_micros: int
    differences: list[str]


class AccountView(View):
    """An account with its totals; `net` is credits less debits, `held` is set aside on the debit side."""

    id: UUID
    name: str
    asset: str
    entries: int
    net_cny: str | None
    net_card_ms: int | None
    held_cny: str | None
    held_card_ms: int | None


class EntryView(View):
    """One line of an account's history, counted without a gap from 1, with the balance after it."""

    sequence: int
    transfer_id: UUID
    at: datetime
    side: str
    kind: str
    movement: str
    cause: str
    amount_cny: str | None
    amount_card_ms: int | None
    net_cny: str | None
    net_card_ms: int | None
    held_cny: str | None
    held_card_ms: int | None


@router.get("/audit", name="audit_ledger")
def ledger_audit(call: Caller) -> AuditView:
    """Recompute every balance from the raw transfers."""

    def action(session: Session) -> AuditView:
        report = audit(session)
        return AuditView(
            audit="ok" if report.clean else "failed",
            transfers=report.transfers,
            sum_micros=sum_of_balances(session),
            differences=[difference.explanation for difference in report.differences],
        )

    return call.read(action)


@router.get("/accounts", name="list_ledger_accounts")
def ledger_accounts(
    call: Caller, limit: Limit = 100, prefix: NamePrefix = "", after: NamePrefix = ""
) -> Page[AccountView]:
    """Accounts by name, of those that begin with a prefix."""

    def action(session: Session) -> Page[AccountView]:
        name = type_coerce(AccountRow.name, Text)
        rows = session.scalars(
            select(AccountRow)
            .where(name.startswith(prefix, autoescape=True), name > after)
            .order_by(name)
            .limit(limit)
        ).all()
        items = [_account(row) for row in rows]
        return page_of(items, limit, items[-1].name if items else "")

    return call.read(action)


@router.get("/accounts/{account_id}/history", name="ledger_account_history")
def ledger_history(
    account_id: UUID, call: Caller, limit: Limit = 100, after: Annotated[int, Query(ge=0, le=2**53)] = 0
) -> Page[EntryView]:
    """Every movement of an account, oldest first; `after` is the number of an entry."""

    def action(session: Session) -> Page[EntryView]:
        if session.get(AccountRow, account_id) is None:
            raise UnknownAccount(movement="history", cause="reading", account=account_id)
        return account_history(session, account_id, after=after, limit=limit)

    return call.read(action)


def account_history(session: Session, account_id: UUID, *, after: int, limit: int) -> Page[EntryView]:
    """A part of an account's history; nothing for an account that is not opened yet."""
    row = session.get(AccountRow, account_id)
    if row is None:
        return Page(items=[], next=None)
    items = [
        EntryView.model_validate(
            {
                "sequence": entry.sequence,
                "transfer_id": entry.transfer_id,
                "at": entry.at,
                "side": entry.side.value,
                "kind": entry.kind.value,
                "movement": entry.movement,
                "cause": entry.cause,
                **in_units(
                    row.asset,
                    amount=entry.amount,
                    net=entry.credits_posted - entry.debits_posted,
                    held=entry.debits_pending,
                ),
            }
        )
        for entry in history(session, account_id, after=after, limit=limit)
    ]
    return page_of(items, limit, items[-1].sequence if items else "")


def _account(row: AccountRow) -> AccountView:
    return AccountView.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "asset": row.asset,
            "entries": row.version,
            **in_units(row.asset, net=row.credits_posted - row.debits_posted, held=row.debits_pending),
        }
    )
