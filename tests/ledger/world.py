"""A few accounts and short ways to say a transfer, for the ledger's tests."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Engine

from kernel.database import transaction
from kernel.ids import derived_id
from ledger.audit import audit
from ledger.domain.accounts import CNY, Account, Bound, card_time
from ledger.domain.outcomes import Outcome
from ledger.domain.transfers import Transfer, capture, expire, extend, hold, posted, release, reversal
from ledger.posting import post
from ledger.reading import balances

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LATER = T0 + timedelta(hours=1)
WORDS = {"movement": "test", "cause": "a test"}


def ident(name: str) -> UUID:
    return derived_id("test", name)


WORLD = Account(ident("world"), "world", CNY, Bound.NONE)
POOL = Account(ident("pool"), "programme/hy/2026/pool", CNY, Bound.CREDIT)
SPENT = Account(ident("spent"), "programme/hy/2026/spent", CNY, Bound.NONE)
OWED = Account(ident("owed"), "centre/owed", CNY, Bound.DEBIT)
CARDS = Account(ident("cards"), "cards", card_time("mlu370"), Bound.NONE)


def move(name: str, debit: Account, credit: Account, amount: int) -> Transfer:
    return posted(ident(name), debit=debit.id, credit=credit.id, amount=amount, **WORDS)


def held(name: str, amount: int, debit: Account = POOL, credit: Account = SPENT) -> Transfer:
    return hold(ident(name), debit=debit.id, credit=credit.id, amount=amount, expires_at=LATER, **WORDS)


def take(name: str, hold_name: str, amount: int) -> Transfer:
    return capture(ident(name), hold_id=ident(hold_name), amount=amount, **WORDS)


def more(name: str, hold_name: str, amount: int) -> Transfer:
    return extend(ident(name), hold_id=ident(hold_name), amount=amount, **WORDS)


def free(name: str, hold_name: str) -> Transfer:
    return release(ident(name), hold_id=ident(hold_name), **WORDS)


def lapse(name: str, hold_name: str) -> Transfer:
    return expire(ident(name), hold_id=ident(hold_name), **WORDS)


def undo(name: str, reversed_name: str) -> Transfer:
    return reversal(ident(name), reverses=ident(reversed_name), **WORDS)


def posting(engine: Engine, *transfers: Transfer, at: datetime = T0) -> list[Outcome]:
    with transaction(engine) as session:
        return post(session, transfers, at=at)


def totals(engine: Engine, account: Account) -> tuple[int, int, int, int]:
    with transaction(engine) as session:
        assert audit(session).differences == ()
        b = balances(session, [account.id])[account.id]
    return b.debits_posted, b.credits_posted, b.debits_pending, b.credits_pending
