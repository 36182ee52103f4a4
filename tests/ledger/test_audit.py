"""The audit finds whatever somebody with every right has changed behind the ledger's back, and says what."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from kernel.database import transaction
from ledger.audit import audit
from ledger.reading import sum_of_balances
from tests.ledger.world import (
    CARDS,
    LATER,
    OWED,
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
        connection.execute(text("ALTER TABLE accounts DROP CONSTRAINT ck_accounts_bound"))
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
    (
        "UPDATE accounts SET id = '{h}' WHERE id = '{pool}'",
        "histories",
        "{m} names account {pool}, which does not",
    ),
    ("UPDATE accounts SET bound = 'credit' WHERE id = '{world}'", "histories", "overdrawn by transfer {fund}"),
    ("UPDATE accounts SET bound = 'debit' WHERE id = '{spent}'", "histories", "was overdrawn"),
    ("UPDATE holds SET captured = 9, freed = 26 WHERE id = '{h}'", "holds", "says held 35, captured 9"),
    ("UPDATE holds SET expires_at = now() WHERE id = '{h}'", "holds", "until"),
    ("DELETE FROM holds WHERE id = '{h}'", "holds", "but no record"),
    ("UPDATE holds SET id = '{m}' WHERE id = '{h}'", "holds", "but no transfers"),
    ("UPDATE transfers SET debit_sequence = 90 WHERE id = '{c}'", "holds", "after it was resolved"),
    (
        "UPDATE transfers SET debit_sequence = 90 WHERE id = '{h2}'",
        "holds",
        "{h2} was used after it was resolved",
    ),
    ("UPDATE transfers SET amount = 9 WHERE id = '{u}'", "links", "does not mirror"),
    ("UPDATE transfers SET reverses = '{h}' WHERE id = '{u}'", "links", "does not mirror"),
    ("UPDATE transfers SET credit = '{world}' WHERE id = '{c}'", "links", "accounts of its hold"),
    ("UPDATE transfers SET hold_id = '{m}' WHERE id = '{c}'", "links", "accounts of its hold {m}"),
    ("UPDATE accounts SET asset = 'card_ms:a' WHERE id = '{spent}'", "assets", "moves CNY to an account"),
]


@pytest.mark.parametrize(("statement", "check", "words"), TAMPERINGS)
@pytest.mark.usefixtures("busy")
def test_each_tampering_is_found_and_explained(root: Engine, statement: str, check: str, words: str) -> None:
    names = {name: ident(name) for name in ("h", "h2", "c", "u", "m", "fund")} | {
        "pool": POOL.id,
        "world": WORLD.id,
        "spent": SPENT.id,
    }
    with tampered(root, statement.format(**names)) as session:
        found = [difference for difference in audit(session).differences if difference.check == check]
    assert any(words.format(**names) in difference.explanation for difference in found)


# Each row: what is changed, the check that finds it, and the whole of what it says.
SENTENCES = [
    (
        "UPDATE accounts SET credits_pending = 1 WHERE id = '{owed}'",
        "balances",
        (
            "account centre/owed says 0 debited, 0 credited, 0 debits and 1 credits on hold after 0"
            " transfers; its transfers give 0, 0, 0, 0 after 0"
        ),
    ),
    (
        (
            "UPDATE accounts SET debits_posted = 3, credits_posted = 99, debits_pending = 5, credits_pending = 6,"
            " version = 77 WHERE id = '{pool}'"
        ),
        "balances",
        (
            "account programme/hy/2026/pool says 3 debited, 99 credited, 5 debits and 6 credits on hold after 77"
            " transfers; its transfers give 11, 110, 14, 0 after 11"
        ),
    ),
    (
        "UPDATE accounts SET credits_posted = 99, debits_pending = 16 WHERE id = '{pool}'",
        "zero_sum",
        "the balances of CNY sum to -11 posted and -2 on hold instead of zero",
    ),
    (
        (
            "UPDATE transfers SET debit_debits_posted = 21, debit_credits_posted = 22, debit_debits_pending = 23,"
            " debit_credits_pending = 24 WHERE id = '{m}'"
        ),
        "histories",
        (
            "account programme/hy/2026/pool: after transfer {m} (entry 10) the history says 21/22/23/24,"
            " the transfers up to it give 11/110/7/0"
        ),
    ),
    (
        "UPDATE transfers SET credit_sequence = 77 WHERE id = '{m}'",
        "histories",
        "account programme/hy/2026/spent: entry 10 of its history carries number 77 (transfer {m})",
    ),
    (
        "UPDATE accounts SET bound = 'credit' WHERE id = '{world}'",
        "histories",
        "account world was overdrawn by transfer {fund} (entry 1)",
    ),
    (
        "UPDATE holds SET captured = 9, freed = 26, expires_at = '2026-01-02' WHERE id = '{h}'",
        "holds",
        (
            "hold {h} says held 35, captured 9, freed 26, released until 2026-01-02 00:00:00+00;"
            " its transfers give 35, 10, 25, released until 2026-01-01 01:00:00+00"
        ),
    ),
    ("UPDATE transfers SET amount = 9 WHERE id = '{u}'", "links", "reversal {u} does not mirror transfer {c}"),
    (
        "UPDATE transfers SET credit = '{world}' WHERE id = '{c}'",
        "links",
        "capture {c} does not run between the accounts of its hold {h}",
    ),
]


@pytest.mark.parametrize(("statement", "check", "sentence"), SENTENCES)
@pytest.mark.usefixtures("busy")
def test_a_difference_is_told_in_a_sentence(root: Engine, statement: str, check: str, sentence: str) -> None:
    names = {name: ident(name) for name in ("h", "c", "u", "m", "fund")} | {
        "pool": POOL.id,
        "world": WORLD.id,
        "owed": OWED.id,
    }
    with tampered(root, statement.format(**names)) as session:
        found = {(difference.check, difference.explanation) for difference in audit(session).differences}
    assert (check, sentence.format(**names)) in found


@pytest.mark.usefixtures("busy")
def test_a_report_lists_no_more_differences_than_asked_and_says_so(root: Engine) -> None:
    with tampered(root, "UPDATE accounts SET version = version + 1") as session:
        assert not audit(session).truncated
        cut = audit(session, differences_max=2)
        whole = audit(session, differences_max=5)
    assert len(cut.differences) == 2
    assert cut.truncated
    assert (len(whole.differences), whole.truncated) == (5, False)


@pytest.mark.parametrize(
    ("check", "statement"),
    [
        ("balances", "UPDATE accounts SET version = version + 1"),
        ("histories", "UPDATE transfers SET debit_debits_posted = 1000"),
        ("holds", "UPDATE holds SET expires_at = now()"),
        ("links", "UPDATE transfers SET debit = '{cards}' WHERE hold_id IS NOT NULL"),
        ("assets", "UPDATE accounts SET asset = 'card_ms:a' WHERE id = '{world}' OR id = '{spent}'"),
        ("zero_sum", "UPDATE accounts SET debits_posted = debits_posted + 1"),
    ],
)
@pytest.mark.usefixtures("busy")
def test_the_differences_of_a_check_are_told_in_one_order(root: Engine, check: str, statement: str) -> None:
    names = {"cards": CARDS.id, "world": WORLD.id, "spent": SPENT.id}
    with tampered(root, statement.format(**names)) as session:
        found = [difference.subject for difference in audit(session).differences if difference.check == check]
    assert len(found) > 1
    assert found == sorted(found, key=str)


def test_a_hold_that_nothing_covered_is_told_as_overdrawn(root: Engine, funded: Engine) -> None:
    posting(funded, held("h", 5, SPENT, WORLD))
    with tampered(root, f"UPDATE accounts SET bound = 'credit' WHERE id = '{SPENT.id}'") as session:
        (found,) = audit(session).differences
    assert found.explanation.endswith(f"spent was overdrawn by transfer {ident('h')} (entry 1)")


@pytest.mark.parametrize(
    ("column", "total"), [("credits_posted", 5), ("debits_posted", -5), ("debits_pending", 0)]
)
@pytest.mark.usefixtures("busy")
def test_the_sum_of_all_balances_is_what_was_made_or_lost(root: Engine, column: str, total: int) -> None:
    with tampered(root, f"UPDATE accounts SET {column} = {column} + 1") as session:
        assert sum_of_balances(session) == total


def test_the_balances_of_an_empty_ledger_sum_to_nothing(engine: Engine) -> None:
    with transaction(engine) as session:
        assert sum_of_balances(session) == 0
