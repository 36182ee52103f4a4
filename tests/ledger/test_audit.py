"""The audit finds whatever somebody with every right has changed behind the ledger's back, and says what."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from kernel.database import transaction
from ledger.audit import audit
from tests.ledger.world import (
    LATER,
    POOL,
    SPENT,
    WORLD,
    free,
    held,
    ident,
    lapse,
    more,
    move,
    posting,
    take,
    undo,
)


@pytest.fixture
def busy(funded: Engine) -> Engine:
    """Every kind of transfer once, and one open hold."""
    posting(funded, held("h", 30), more("e", "h", 5), take("c", "h", 10), undo("u", "c"), free("r", "h"))
    posting(funded, held("h2", 30), lapse("x", "h2"), held("open", 7), move("m", POOL, SPENT, 1), at=LATER)
    posting(funded, held("later", 7))
    return funded


@contextmanager
def tampered(root: Engine, statement: str) -> Iterator[Session]:
    """A session that sees what somebody with every right has done; it is undone in the end."""
    with root.connect() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for constraint in ("ck_accounts_bound", "ck_accounts_totals"):
            connection.execute(text(f"ALTER TABLE accounts DROP CONSTRAINT {constraint}"))
        connection.execute(text(statement))
        yield Session(connection)


def test_an_honest_ledger_has_no_differences(busy: Engine) -> None:
    with transaction(busy) as session:
        seen = audit(session)
    assert seen.clean
    assert (seen.accounts, seen.transfers, seen.holds) == (5, 11, 4)


# Each row: what is changed, the check that finds it, and a part of what it says.
TAMPERINGS = [
    ("UPDATE accounts SET credits_posted = 99 WHERE id = '{pool}'", "balances", "99 credited"),
    ("UPDATE accounts SET debits_pending = 1 WHERE id = '{pool}'", "balances", "its transfers give"),
    ("UPDATE accounts SET version = version + 1 WHERE id = '{pool}'", "balances", "after"),
    ("UPDATE accounts SET credits_posted = 99 WHERE id = '{pool}'", "zero_sum", "instead of zero"),
    ("UPDATE accounts SET debits_pending = 99 WHERE id = '{pool}'", "zero_sum", "on hold instead"),
    ("DELETE FROM transfers WHERE id = '{m}'", "histories", "carries number"),
    ("UPDATE transfers SET amount = 2 WHERE id = '{m}'", "histories", "the transfers up to it give"),
    ("UPDATE transfers SET debit_credits_posted = 7 WHERE id = '{m}'", "histories", "the history says"),
    ("UPDATE transfers SET credit_sequence = 77 WHERE id = '{m}'", "histories", "carries number 77"),
    ("UPDATE accounts SET bound = 'credit' WHERE id = '{world}'", "histories", "overdrawn by transfer {fund}"),
    ("UPDATE accounts SET bound = 'debit' WHERE id = '{spent}'", "histories", "was overdrawn"),
    ("UPDATE holds SET captured = 9, freed = 26 WHERE id = '{h}'", "holds", "says held 35, captured 9"),
    ("UPDATE holds SET expires_at = now() WHERE id = '{h}'", "holds", "until"),
    ("DELETE FROM holds WHERE id = '{h}'", "holds", "but no record"),
    ("UPDATE holds SET id = '{m}' WHERE id = '{h}'", "holds", "but no transfers"),
    ("UPDATE transfers SET debit_sequence = 90 WHERE id = '{c}'", "holds", "after it was resolved"),
    ("UPDATE transfers SET amount = 9 WHERE id = '{u}'", "links", "does not mirror"),
    ("UPDATE transfers SET reverses = '{h}' WHERE id = '{u}'", "links", "does not mirror"),
    ("UPDATE transfers SET credit = '{world}' WHERE id = '{c}'", "links", "accounts of its hold"),
    ("UPDATE transfers SET hold_id = '{m}' WHERE id = '{c}'", "links", "accounts of its hold {m}"),
    ("UPDATE accounts SET asset = 'card_ms:a' WHERE id = '{spent}'", "assets", "moves CNY to an account"),
]


@pytest.mark.parametrize(("statement", "check", "words"), TAMPERINGS)
@pytest.mark.usefixtures("busy")
def test_each_tampering_is_found_and_explained(root: Engine, statement: str, check: str, words: str) -> None:
    names = {name: ident(name) for name in ("h", "c", "u", "m", "fund")} | {
        "pool": POOL.id,
        "world": WORLD.id,
        "spent": SPENT.id,
    }
    with tampered(root, statement.format(**names)) as session:
        found = [difference for difference in audit(session).differences if difference.check == check]
    assert any(words.format(**names) in difference.explanation for difference in found)


@pytest.mark.usefixtures("busy")
def test_a_report_lists_no_more_differences_than_asked_and_says_so(root: Engine) -> None:
    with tampered(root, "UPDATE accounts SET version = version + 1") as session:
        assert not audit(session).truncated
        cut = audit(session, differences_max=2)
    assert len(cut.differences) == 2
    assert cut.truncated
