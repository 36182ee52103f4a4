"""Writing the ledger: open accounts, post a batch. Each is one round trip to a database function.

A single plain transfer that cannot be posted takes a second one, which says why.
The functions lock the accounts of the batch in the order of their ids before anything is written, so batches
cannot deadlock and no check reads a stale balance. Post once per transaction, or put everything into one batch.
Both may be repeated with the same ids for ever: the first result is returned.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from kernel.bulk import array, array_of_text, call
from kernel.errors import Invalid
from ledger.domain.accounts import Account
from ledger.domain.outcomes import Outcome, Status
from ledger.domain.transfers import Kind, TimeWithoutZone, Transfer
from ledger.errors import AccountDiffers, AccountNameTaken, refusal

BATCH_MAX: Final = 10_000
"""Room for the largest claim, and for the end of a job that was extended every hour for months."""

_OPEN = text("SELECT id, reason FROM ledger_open_accounts(CAST(:wanted AS jsonb), :at)")
_POST: Final = b"SELECT * FROM ledger_post($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
_POST_PLAIN: Final = b"SELECT ledger_post_plain($1, $2, $3, $4, $5, $6, $7)"


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
    if len(transfers) == 1 and transfers[0].kind is Kind.POSTED and _post_plain(session, transfers[0], at):
        return [Outcome(transfers[0], Status.POSTED, transfers[0].amount)]
    arguments = [*_columns(transfers), at.isoformat(), "true" if linked else "false"]
    rows = call(session, _POST, [argument.encode() for argument in arguments])
    return [
        Outcome(
            transfer,
            Status(str(status)),
            None if amount is None else int(amount),
            None if account_id is None else UUID(account_id),
            None if available is None else int(available),
        )
        for transfer, (status, amount, account_id, available) in zip(transfers, rows, strict=False)
    ]


def _post_plain(session: Session, transfer: Transfer, at: datetime) -> bool:
    """Whether the short cut posted it; if not, nothing was written, and the general function knows why."""
    arguments = (
        transfer.id,
        transfer.debit,
        transfer.credit,
        transfer.amount,
        transfer.movement,
        transfer.cause,
    )
    ((done,),) = call(session, _POST_PLAIN, [str(value).encode() for value in (*arguments, at)])
    return bool(done == "t")


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
