"""Writing the ledger: open accounts, post a batch. Each is one round trip to a database function.

The functions lock the accounts of the batch in the order of their ids before anything is written, so batches
cannot deadlock and no check reads a stale balance. Post once per transaction, or put everything into one batch.
Both may be repeated with the same ids for ever: the first result is returned.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from kernel.bulk import array, array_of_text, driver
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
    with driver(session, _POST.decode()) as connection:
        return connection.execute(_POST, arguments, prepare=True).fetchall()


def _columns(transfers: Sequence[Transfer]) -> tuple[str, ...]:
    return (
        array([t.id for t in transfers]),
        array([t.kind for t in transfers]),
        array([t.debit for t in transfers]),
        array([t.credit for t in transfers]),
        array([t.amount for t in transfers]),
        array([t.hold_id for t in transfers]),
        array([t.reverses for t in transfers]),
        array_of_text([None if t.expires_at is None else t.expires_at.isoformat() for t in transfers]),
        array_of_text([t.movement for t in transfers]),
        array_of_text([t.cause for t in transfers]),
    )


def _check_request(count: int, field: str, at: datetime) -> None:
    if count > BATCH_MAX:
        raise BatchTooLarge(field=field, count=count, count_max=BATCH_MAX)
    if at.tzinfo is None:
        raise TimeWithoutZone(field="at", value=at)
