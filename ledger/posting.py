"""Writing the ledger: open accounts, post a batch. Each is one round trip to a database function.

The functions lock the accounts of the batch in the order of their ids before anything is written, so batches
cannot deadlock and no check reads a stale balance. Post once per transaction, or put everything into one batch.
Both may be repeated with the same ids for ever: the first result is returned.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, cast

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from kernel.errors import Invalid
from ledger.domain.accounts import Account
from ledger.domain.outcomes import Outcome, Status
from ledger.domain.transfers import TimeWithoutZone, Transfer
from ledger.errors import AccountDiffers, AccountNameTaken, refusal

BATCH_MAX: Final = 10_000
"""Room for the largest claim, and for the end of a job that was extended every hour for months."""

_OPEN = text("SELECT id, reason FROM ledger_open_accounts(CAST(:wanted AS jsonb), :at)")
_POST: Final = b"""
    SELECT status, amount, account_id, available
      FROM ledger_post(%s::uuid[], %s::text[], %s::uuid[], %s::uuid[], %s::bigint[], %s::uuid[], %s::uuid[],
                       %s::timestamptz[], %s::text[], %s::text[], %s, %s)
"""


class BatchTooLarge(Invalid):
    """More transfers or accounts at once than one transaction should hold locks for."""

    sentence = "{field}: {count} at once; at most {count_max} are allowed."


def open_accounts(session: Session, accounts: Sequence[Account], *, at: datetime) -> None:
    """Make these accounts exist. Opening one again with the same content does nothing.

    Raises:
        AccountDiffers: its id was opened with other content.
        AccountNameTaken: its name belongs to another account.
    """
    _check_request(len(accounts), "accounts", at)
    wanted = [{"id": str(a.id), "name": a.name, "asset": a.asset, "bound": a.bound.value} for a in accounts]
    for row in session.execute(_OPEN, {"wanted": json.dumps(wanted), "at": at}):
        account = next(a for a in accounts if a.id == row.id)
        error = AccountNameTaken if row.reason == "name_taken" else AccountDiffers
        raise error(account=account.id, name=account.name, asset=account.asset, bound=account.bound.value)


def post(session: Session, transfers: Sequence[Transfer], *, at: datetime) -> list[Outcome]:
    """Post each transfer or refuse it alone; later ones see the effects of earlier ones.

    Args:
        session: whose transaction the batch belongs to.
        transfers: at most BATCH_MAX, in the order in which they are to take effect.
        at: when this happens; decides whether holds have come to their end.

    Returns:
        One outcome per transfer, in order.
    """
    return _post(session, transfers, at, linked=False)


def post_all(session: Session, transfers: Sequence[Transfer], *, at: datetime) -> list[Outcome]:
    """Post all of these transfers or none of them.

    Raises:
        HubError: of the first refusal, as an Unfunded, Conflict, Invalid or NotFound of `ledger.errors`.
            Nothing of the batch was written, and the transaction can go on.
    """
    outcomes = _post(session, transfers, at, linked=True)
    for outcome in outcomes:
        if not outcome.accepted:
            raise refusal(outcome)
    return outcomes


def _post(session: Session, transfers: Sequence[Transfer], at: datetime, *, linked: bool) -> list[Outcome]:
    _check_request(len(transfers), "transfers", at)
    if not transfers:
        return []
    rows = _call(session, (*_columns(transfers), at, linked))
    return [
        Outcome(transfer, Status(status), amount, account_id, available)
        for transfer, (status, amount, account_id, available) in zip(transfers, rows, strict=False)
    ]


def _call(session: Session, arguments: tuple[object, ...]) -> list[tuple[Any, ...]]:
    # On the session's own connection and in its transaction, but past SQLAlchemy's statement machinery, which
    # costs the client more than everything else here together. Errors are wrapped as SQLAlchemy wraps them.
    connection = session.connection()
    driver: psycopg.Connection[tuple[Any, ...]] = cast(
        "psycopg.Connection[tuple[Any, ...]]", connection.connection.driver_connection
    )
    try:
        return driver.execute(_POST, arguments, prepare=True).fetchall()
    except psycopg.Error as error:
        broken = driver.closed
        if broken:
            connection.invalidate(error)
        raise DBAPIError.instance(
            _POST.decode(), None, error, psycopg.Error, connection_invalidated=broken
        ) from error


def _columns(transfers: Sequence[Transfer]) -> tuple[str, ...]:
    # PostgreSQL's text form of arrays, written here because adapting each element costs several times more.
    return (
        _plain([t.id for t in transfers]),
        _plain([t.kind for t in transfers]),
        _plain([t.debit for t in transfers]),
        _plain([t.credit for t in transfers]),
        _plain([t.amount for t in transfers]),
        _plain([t.hold_id for t in transfers]),
        _plain([t.reverses for t in transfers]),
        _quoted([None if t.expires_at is None else t.expires_at.isoformat() for t in transfers]),
        _quoted([t.movement for t in transfers]),
        _quoted([t.cause for t in transfers]),
    )


def _plain(values: Iterable[object]) -> str:
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _quoted(values: Iterable[str | None]) -> str:
    return "{" + ",".join(["NULL" if value is None else _quote(value) for value in values]) + "}"


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _check_request(count: int, field: str, at: datetime) -> None:
    if count > BATCH_MAX:
        raise BatchTooLarge(field=field, count=count, count_max=BATCH_MAX)
    if at.tzinfo is None:
        raise TimeWithoutZone(field="at", value=at)
