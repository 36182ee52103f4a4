"""What the database refuses, whoever asks, and what the constructors refuse before the database is asked."""

from collections.abc import Callable
from datetime import datetime

import psycopg
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from kernel.database import transaction
from kernel.errors import Invalid
from ledger.domain.accounts import CNY, Account, Bound, MalformedAccountName, MalformedAsset, card_time
from ledger.domain.outcomes import Outcome, Status
from ledger.domain.transfers import (
    AmountOutOfRange,
    MalformedReference,
    SameAccount,
    TimeWithoutZone,
    Transfer,
    hold,
    posted,
)
from ledger.errors import refusal
from ledger.posting import BATCH_MAX, BatchTooLarge, open_accounts, post
from ledger.tables import TransferRow
from tests.conftest import Database
from tests.ledger.world import (
    LATER,
    POOL,
    SPENT,
    T0,
    WORDS,
    WORLD,
    free,
    held,
    ident,
    move,
    posting,
    take,
    totals,
    undo,
)

# A view over both legs cannot be written at all, whatever one's rights.
FORBIDDEN = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.WrongObjectType,
    psycopg.errors.ObjectNotInPrerequisiteState,
)
WRITES = [
    f"{verb} {table}"
    for table in ("accounts", "transfers", "holds", "entries")
    for verb in ("DELETE FROM", "TRUNCATE", "UPDATE")
]


@pytest.mark.parametrize("write", WRITES)
def test_the_application_may_not_write_any_table_of_the_ledger(funded: Engine, write: str) -> None:
    column = "amount = amount" if write.endswith(("transfers", "entries")) else "id = id"
    statement = f"{write} SET {column}" if write.startswith("UPDATE") else write
    with pytest.raises(DBAPIError) as caught, funded.begin() as connection:
        connection.execute(text(statement))
    assert isinstance(caught.value.orig, FORBIDDEN)


@pytest.mark.parametrize("table", ["accounts", "transfers", "holds", "entries"])
def test_the_application_may_not_insert_either(funded: Engine, table: str) -> None:
    with pytest.raises(DBAPIError) as caught, funded.begin() as connection:
        connection.execute(text(f"INSERT INTO {table} SELECT * FROM {table}"))
    assert isinstance(caught.value.orig, FORBIDDEN)


CHANGES = [
    "UPDATE transfers SET amount = 1",
    "DELETE FROM transfers",
    "TRUNCATE transfers CASCADE",
    "DELETE FROM accounts",
    "TRUNCATE accounts CASCADE",
    "UPDATE accounts SET id = id",
    "DELETE FROM holds",
    "TRUNCATE holds",
]


@pytest.mark.parametrize("statement", CHANGES)
@pytest.mark.usefixtures("funded")
def test_not_even_the_owner_may_change_what_was_posted(database: Database, statement: str) -> None:
    with (
        psycopg.connect(database.owner_url.replace("+psycopg", "")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="reversal"),
    ):
        connection.execute(statement.encode())


# Each row: what a broken writer with the owner's rights might do, and the constraint that stops it.
BREAKS = [
    ("UPDATE accounts SET debits_posted = 101 WHERE bound = 'credit'", "ck_accounts_bound"),
    ("UPDATE accounts SET debits_pending = 101 WHERE bound = 'credit'", "ck_accounts_bound"),
    ("UPDATE accounts SET credits_posted = 1 WHERE bound = 'debit'", "ck_accounts_bound"),
    ("UPDATE accounts SET debits_pending = -1 WHERE name = 'world'", "account_total_check"),
    ("UPDATE accounts SET asset = 'USD'", "asset_check"),
    ("UPDATE accounts SET name = 'two words'", "account_name_check"),
    ("UPDATE accounts SET bound = 'both'", "ck_accounts_bound"),
    ("UPDATE holds SET captured = held + 1", "ck_holds_amounts"),
    ("UPDATE holds SET state = 'released'", "ck_holds_state"),
    ("UPDATE holds SET freed = 1", "ck_holds_state"),
    ("INSERT INTO transfers SELECT * FROM transfers", "pk_transfers"),
    (("amount = 0",), "ck_transfers_amount"),
    (("amount = 9007199254740993",), "transfer_amount_check"),
    (("credit = debit",), "ck_transfers_legs"),
    (("credit = gen_random_uuid()",), "transfers_name_accounts"),
    (("kind = 'gift'",), "transfer_kind_check"),
    (("hold_id = id",), "ck_transfers_hold_id"),
    (("kind = 'capture'",), "ck_transfers_hold_id"),
    (("kind = 'reversal'",), "ck_transfers_reverses"),
    (("reverses = id",), "ck_transfers_reverses"),
    (("kind = 'hold'",), "ck_transfers_expires_at"),
    (("expires_at = at",), "ck_transfers_expires_at"),
    (("kind = 'release'", "hold_id = '{h}'", "expires_at = at"), "ck_transfers_expires_at"),
    (("debit = gen_random_uuid()",), "transfers_name_accounts"),
    (("movement = ''",), "transfer_movement_check"),
    (("movement = repeat('m', 101)",), "transfer_movement_check"),
    (("cause = ''",), "transfer_cause_check"),
    (("cause = repeat('c', 401)",), "transfer_cause_check"),
    (("debit_sequence = 0",), "entry_sequence_check"),
    ("UPDATE accounts SET version = -1", "account_version_check"),
    (("kind = 'reversal'", "reverses = '{m}'"), "uq_transfers_reverses"),
    (("kind = 'release'", "amount = 0", "hold_id = '{h}'"), "uq_transfers_resolution"),
    ((), "uq_transfers_debit_debit_sequence"),
]


@pytest.mark.parametrize(("broken", "constraint"), BREAKS)
def test_the_database_holds_each_invariant_without_the_code(
    funded: Engine, database: Database, broken: str | tuple[str, ...], constraint: str
) -> None:
    posting(funded, move("m", POOL, SPENT, 5), undo("u", "m"), held("h", 7), free("r", "h"), held("h2", 7))
    with (
        psycopg.connect(database.owner_url.replace("+psycopg", "")) as connection,
        pytest.raises(psycopg.errors.IntegrityError) as caught,
    ):
        if isinstance(broken, str):
            connection.execute(broken.encode())
        else:
            _insert_altered(connection, broken)
    assert caught.value.diag.constraint_name == constraint


def _insert_altered(connection: psycopg.Connection, changes: tuple[str, ...]) -> None:
    """A copy of the posting `m` under a fresh id, with some columns changed."""
    fields = [column.name for column in TransferRow.__table__.columns]
    values = dict.fromkeys(fields, "")
    for name in fields:
        values[name] = name
    values["id"] = "gen_random_uuid()"
    sequences = {"debit_sequence": "debit_sequence + 900", "credit_sequence": "credit_sequence + 900"}
    values |= sequences if changes else {}
    for change in changes:
        name, _, value = change.format(m=ident("m"), h=ident("h")).partition(" = ")
        values[name] = value
    connection.execute(
        f"INSERT INTO transfers SELECT {', '.join(values.values())} FROM transfers WHERE id = %s".encode(),
        [ident("m")],
    )


def worded(movement: str, cause: str) -> Transfer:
    return posted(ident("x"), debit=POOL.id, credit=SPENT.id, amount=1, movement=movement, cause=cause)


def ending(at: datetime) -> Transfer:
    return hold(ident("x"), debit=POOL.id, credit=SPENT.id, amount=1, expires_at=at, **WORDS)


BAD_TRANSFERS = [
    (lambda: move("x", POOL, SPENT, 0), AmountOutOfRange),
    (lambda: move("x", POOL, SPENT, -1), AmountOutOfRange),
    (lambda: move("x", POOL, SPENT, 2**53 + 1), AmountOutOfRange),
    (lambda: move("x", POOL, SPENT, 1.5), AmountOutOfRange),
    (lambda: move("x", POOL, SPENT, bool(1)), AmountOutOfRange),
    (lambda: take("x", "h", 0), AmountOutOfRange),
    (lambda: move("x", POOL, POOL, 1), SameAccount),
    (lambda: worded("", "c"), MalformedReference),
    (lambda: worded("m" * 101, "c"), MalformedReference),
    (lambda: worded("m", ""), MalformedReference),
    (lambda: worded("m", "c" * 401), MalformedReference),
    (lambda: worded("m", "\0"), MalformedReference),
    (lambda: worded("m", "\ud800"), MalformedReference),
    (lambda: ending(LATER.replace(tzinfo=None)), TimeWithoutZone),
    (lambda: Account(ident("x"), "x", "USD", Bound.NONE), MalformedAsset),
    (lambda: Account(ident("x"), "x", "card_ms:", Bound.NONE), MalformedAsset),
    (lambda: Account(ident("x"), "x", "card_ms:a b", Bound.NONE), MalformedAsset),
    (lambda: card_time("m" * 193), MalformedAsset),
    (lambda: Account(ident("x"), "", CNY, Bound.NONE), MalformedAccountName),
    (lambda: Account(ident("x"), "a//b", CNY, Bound.NONE), MalformedAccountName),
    (lambda: Account(ident("x"), "a/b ", CNY, Bound.NONE), MalformedAccountName),
    (lambda: Account(ident("x"), "a" * 401, CNY, Bound.NONE), MalformedAccountName),
]


@pytest.mark.parametrize(("build", "error"), BAD_TRANSFERS)
def test_what_could_never_be_posted_cannot_be_built(build: Callable[[], object], error: type[Invalid]) -> None:
    with pytest.raises(error) as caught:
        build()
    assert caught.value.facts["field"] in str(caught.value)


def test_the_largest_amount_is_posted_exactly(funded: Engine) -> None:
    assert posting(funded, move("x", WORLD, POOL, 2**53))[0].accepted
    assert totals(funded, POOL) == (0, 100 + 2**53, 0, 0)


def on_hold(name: str, debit: Account, credit: Account, amount: int) -> Transfer:
    return held(name, amount, debit, credit)


# Each row: the total that stands two below its limit, whose it is, and what adds to it.
FULL = [
    ("debits_posted", WORLD, move),
    ("credits_posted", SPENT, move),
    ("debits_pending", WORLD, on_hold),
    ("credits_pending", SPENT, on_hold),
]


@pytest.mark.parametrize(("column", "account", "wish"), FULL)
def test_a_total_reaches_its_limit_and_never_passes_it(
    funded: Engine,
    database: Database,
    column: str,
    account: Account,
    wish: Callable[[str, Account, Account, int], Transfer],
) -> None:
    with psycopg.connect(database.owner_url.replace("+psycopg", "")) as connection:
        statement = f"UPDATE accounts SET {column} = 2::numeric^62 - 2 WHERE id = %s"
        connection.execute(statement.encode(), [account.id])
    singly = [posting(funded, wish(name, WORLD, SPENT, n))[0] for name, n in (("a", 3), ("b", 1))]
    together = posting(funded, *(wish(name, WORLD, SPENT, n) for name, n in (("c", 2), ("d", 1), ("e", 1))))
    refused, taken = Status.BALANCE_OUT_OF_RANGE, Status.POSTED
    assert [outcome.status for outcome in singly] == [refused, taken]
    assert [outcome.status for outcome in together] == [refused, taken, refused]
    assert together[0].account_id == account.id


def test_the_last_single_posting_fills_a_total_exactly(funded: Engine, database: Database) -> None:
    with psycopg.connect(database.owner_url.replace("+psycopg", "")) as connection:
        connection.execute("UPDATE accounts SET debits_posted = 2::numeric^62 - 2 WHERE name = 'world'")
    assert [posting(funded, move(name, WORLD, SPENT, n))[0].status for name, n in (("a", 2), ("b", 1))] == [
        Status.POSTED,
        Status.BALANCE_OUT_OF_RANGE,
    ]


@pytest.mark.parametrize(
    "words", ['quote " and \\ backslash', "{a,b}", "NULL", "x", "算力券 一号", "comma, and 'single'"]
)
def test_words_arrive_as_they_were_sent(funded: Engine, words: str) -> None:
    wish = posted(ident("x"), debit=POOL.id, credit=SPENT.id, amount=1, movement=words, cause=words)
    assert [o.status for o in posting(funded, wish, wish)] == [Status.POSTED, Status.REPLAYED]
    with funded.connect() as connection:
        row = connection.execute(text("SELECT movement, cause FROM transfers WHERE id = :id"), {"id": wish.id})
        assert tuple(row.one()) == (words, words)


def test_batches_are_bounded_and_may_be_empty(funded: Engine) -> None:
    with transaction(funded) as session:
        assert post(session, [], at=T0) == []
        with pytest.raises(BatchTooLarge):
            post(session, [move("x", POOL, SPENT, 1)] * (BATCH_MAX + 1), at=T0)
        with pytest.raises(TimeWithoutZone):
            open_accounts(session, [POOL], at=T0.replace(tzinfo=None))


def test_raw_callers_are_checked_for_syntax_too(funded: Engine) -> None:
    wild = move("x", WORLD, SPENT, 1)
    object.__setattr__(wild, "amount", 2**53 + 1)
    selfish = move("y", POOL, SPENT, 1)
    object.__setattr__(selfish, "credit", POOL.id)
    for outcomes in (posting(funded, wild, selfish), posting(funded, wild) + posting(funded, selfish)):
        assert [o.status for o in outcomes] == [Status.AMOUNT_OUT_OF_RANGE, Status.SAME_ACCOUNT]
        assert [o.account_id for o in outcomes] == [None, POOL.id]
    assert totals(funded, POOL) == (0, 100, 0, 0)


@pytest.mark.parametrize("status", [s for s in Status if s not in {Status.POSTED, Status.REPLAYED}])
def test_every_refusal_becomes_an_error_of_the_same_name(status: Status) -> None:
    error = refusal(Outcome(move("x", POOL, SPENT, 1), status, 1, POOL.id, 0))
    assert error.code == status.value


def test_an_error_of_the_database_comes_wrapped_and_frees_the_connection(
    funded: Engine, database: Database
) -> None:
    with pytest.raises(DBAPIError) as caught, transaction(funded) as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with database.server.superuser() as root:
            root.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        post(session, [held("h", 1)], at=T0)
    assert caught.value.connection_invalidated
    assert posting(funded, held("h", 1), at=T0)[0].status is Status.POSTED


@pytest.mark.parametrize(
    "transfers", [[move("x", POOL, SPENT, 1)], [held("h", 1)], [move("x", POOL, SPENT, 1)] * 2]
)
def test_what_cannot_be_written_after_three_looks_is_an_error_and_never_called_posted(
    funded: Engine, root: Engine, transfers: list[Transfer]
) -> None:
    # A history that is ahead of its account meets the next entry at every look.
    with root.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE accounts SET version = 0 WHERE id = :pool"), {"pool": POOL.id})
        connection.execute(text("UPDATE transfers SET debit = credit, credit = debit, debit_sequence = 1"))
    with pytest.raises(DBAPIError, match="uq_transfers_debit_debit_sequence"):
        posting(funded, *transfers)
    with funded.connect() as connection:
        assert connection.execute(select(func.count()).select_from(TransferRow)).scalar_one() == 1
