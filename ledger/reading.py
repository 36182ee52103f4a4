"""Reading the ledger: balances, the history of an account, holds. Nothing here writes or locks.

Invariant: what is returned was committed together; every list is bounded and totally ordered.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import Integer, Uuid, any_, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from kernel.prepared import Prepared
from ledger.domain.accounts import Account, Balance, Bound
from ledger.domain.transfers import Kind
from ledger.tables import AccountRow, HoldRow, TransferRow, entries

_BALANCES: Final = Prepared(
    select(
        AccountRow.id,
        AccountRow.name,
        AccountRow.asset,
        AccountRow.bound,
        AccountRow.debits_posted,
        AccountRow.credits_posted,
        AccountRow.debits_pending,
        AccountRow.credits_pending,
        AccountRow.version,
    ).where(AccountRow.id == any_(bindparam("ids", type_=ARRAY(Uuid))))
)
_DUE: Final = Prepared(
    select(*HoldRow.__table__.columns)
    .where(HoldRow.state == literal_column("'open'"), HoldRow.expires_at <= bindparam("at"))
    .order_by(HoldRow.expires_at, HoldRow.id)
    .limit(bindparam("limit", type_=Integer))
)


class Side(StrEnum):
    """Which side of a transfer an account is on."""

    DEBIT = "debit"
    CREDIT = "credit"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an account's history, counted without a gap from 1: a transfer and the totals after it."""

    account_id: UUID
    sequence: int
    transfer_id: UUID
    side: Side
    kind: Kind
    amount: int
    at: datetime
    movement: str
    cause: str
    debits_posted: int
    credits_posted: int
    debits_pending: int
    credits_pending: int


class HoldState(StrEnum):
    """An open hold is resolved exactly once, by release or by expiry."""

    OPEN = "open"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold as it stands: `held` in all, of which `captured` was posted and `freed` given back."""

    id: UUID
    debit: UUID
    credit: UUID
    held: int
    captured: int
    freed: int
    expires_at: datetime
    state: HoldState

    @property
    def remaining(self) -> int:
        """What can still be captured, if the end has not come."""
        return self.held - self.captured - self.freed


def balances(session: Session, account_ids: Collection[UUID]) -> dict[UUID, Balance]:
    """The balances of those of these accounts that exist."""
    rows = _BALANCES(session, ids=list(account_ids))
    return {
        id_: Balance(Account(id_, name, asset, Bound(bound)), *totals)
        for id_, name, asset, bound, *totals in rows
    }


def history(session: Session, account_id: UUID, *, after: int = 0, limit: int = 100) -> list[Entry]:
    """Up to `limit` entries of an account whose sequence number is greater than `after`, oldest first."""
    found = session.execute(
        select(entries)
        .where(entries.c.account_id == account_id, entries.c.sequence > after)
        .order_by(entries.c.sequence)
        .limit(limit)
    )
    return [
        Entry(
            account_id=row.account_id,
            sequence=row.sequence,
            transfer_id=row.transfer_id,
            side=Side(row.side),
            kind=Kind(row.kind),
            amount=row.amount,
            at=row.at,
            movement=row.movement,
            cause=row.cause,
            debits_posted=row.debits_posted,
            credits_posted=row.credits_posted,
            debits_pending=row.debits_pending,
            credits_pending=row.credits_pending,
        )
        for row in found
    ]


@dataclass(frozen=True, slots=True)
class Posted:
    """A transfer as it was posted."""

    debit: UUID
    credit: UUID
    amount: int
    movement: str


def transfers(session: Session, transfer_ids: Collection[UUID]) -> dict[UUID, Posted]:
    """Those of these transfers that exist."""
    rows = session.scalars(select(TransferRow).where(TransferRow.id.in_(transfer_ids)))
    return {row.id: Posted(row.debit, row.credit, row.amount, row.movement) for row in rows}


def moved_between(session: Session, debit: UUID, credit: UUID) -> int:
    """What transfers have moved straight from one account to another, in all."""
    query = select(func.coalesce(func.sum(TransferRow.amount), 0)).where(
        TransferRow.debit == debit, TransferRow.credit == credit, TransferRow.kind == Kind.POSTED
    )
    return int(session.scalars(query).one())


def holds(session: Session, hold_ids: Collection[UUID]) -> dict[UUID, Hold]:
    """Those of these holds that exist."""
    rows = session.execute(select(*HoldRow.__table__.columns).where(HoldRow.id.in_(hold_ids)))
    return {row.id: _hold(*row) for row in rows}


def due_holds(session: Session, at: datetime, *, limit: int = 100) -> list[Hold]:
    """Up to `limit` open holds whose end has come at `at`, the longest overdue first; these want `expire`."""
    return [_hold(*row) for row in _DUE(session, at=at, limit=limit)]


def _hold(
    id_: UUID,
    debit: UUID,
    credit: UUID,
    held: int,
    captured: int,
    freed: int,
    expires_at: datetime,
    state: str,
) -> Hold:
    return Hold(id_, debit, credit, held, captured, freed, expires_at, HoldState(state))


def sum_of_balances(session: Session) -> int:
    """What all accounts of all assets hold, credits less debits; double entry makes it zero."""
    net = func.sum(AccountRow.credits_posted - AccountRow.debits_posted)
    return int(session.scalar(select(func.coalesce(net, 0))) or 0)
