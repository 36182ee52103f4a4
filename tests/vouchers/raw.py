"""Recomputing accounts from nothing but the kinds, legs, amounts and hold references of their transfers."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session


def check_raw_transfers(session: Session, accounts: Sequence[UUID]) -> None:
    """The raw transfers recompute to the balances, without gaps, and no bounded account was ever overdrawn."""
    legs: dict[UUID, list[Row[Any]]] = defaultdict(list)
    for row in session.execute(_LEGS, {"accounts": accounts}):
        legs[row.account].append(row)
    for account in session.execute(_ACCOUNTS, {"accounts": accounts}):
        _check_account(account, legs[account.id])


def _check_account(account: Row[Any], legs: Sequence[Row[Any]]) -> None:
    posted, pending = {"debit": 0, "credit": 0}, {"debit": 0, "credit": 0}
    open_holds: dict[UUID, int] = defaultdict(int)
    for number, row in enumerate(legs, start=1):
        hold = row.hold_id or row.id
        posts, pends = _effect(row.kind, row.amount, open_holds[hold])
        open_holds[hold] += pends
        posted[row.side] += posts
        pending[row.side] += pends
        assert row.sequence == number
        assert open_holds[hold] >= 0
        assert account.bound != "credit" or posted["debit"] + pending["debit"] <= posted["credit"], account.name
    recomputed = (posted["debit"], posted["credit"], pending["debit"], pending["credit"])
    cached = (account.debits_posted, account.credits_posted, account.debits_pending, account.credits_pending)
    assert recomputed == cached, account.name


def _effect(kind: str, amount: int, held: int) -> tuple[int, int]:
    """What a transfer posts, and by how much it changes what its hold has pending."""
    if kind in {"posted", "reversal"}:
        return amount, 0
    if kind in {"hold", "extend"}:
        return 0, amount
    if kind == "capture":
        return amount, -amount
    return 0, -held


_ACCOUNTS: Final = text("SELECT * FROM accounts WHERE id = ANY (:accounts) ORDER BY id")
_LEGS: Final = text(
    "SELECT debit AS account, id, kind, amount, hold_id, 'debit' AS side, debit_sequence AS sequence"
    " FROM transfers WHERE debit = ANY (:accounts)"
    " UNION ALL SELECT credit, id, kind, amount, hold_id, 'credit', credit_sequence"
    " FROM transfers WHERE credit = ANY (:accounts) ORDER BY sequence"
)
