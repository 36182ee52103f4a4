"""Two postings at once, step by step: the second decides on what the first has done, and waits for nobody else."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from kernel.database import open_engine, transaction
from ledger.domain.outcomes import Outcome, Status
from ledger.domain.transfers import Transfer
from ledger.posting import post
from ledger.reading import holds
from tests.conftest import IDLE_MS
from tests.ledger.world import (
    CARDS,
    OWED,
    POOL,
    SPENT,
    T0,
    WORLD,
    free,
    held,
    ident,
    more,
    move,
    posting,
    take,
    totals,
    undo,
)


@pytest.fixture
def other(funded: Engine) -> Iterator[Engine]:
    """A second client, who can be told from the first."""
    engine = open_engine(str(funded.url), pool_size=1, idle_ms=IDLE_MS)
    posting(funded, held("open", 10), move("owe", OWED, WORLD, 9), move("paid", POOL, SPENT, 5))
    yield engine
    engine.dispose()


# Each row: what is under way, what is asked meanwhile, and what becomes of it once the first is committed.
# POOL can pay 85, OWED takes 9 back.
TURNS = [
    (move("a", POOL, SPENT, 60), move("b", POOL, WORLD, 60), Status.INSUFFICIENT_FUNDS, 60),
    (move("a", WORLD, POOL, 60), move("b", POOL, SPENT, 145), Status.POSTED, 145),
    (move("a", WORLD, OWED, 5), move("b", SPENT, OWED, 5), Status.INSUFFICIENT_FUNDS, 5),
    (move("a", OWED, WORLD, 5), held("b", 14, SPENT, OWED), Status.POSTED, 14),
    (move("a", WORLD, POOL, 60), move("b", WORLD, SPENT, 5), Status.POSTED, 5),
    (move("a", SPENT, POOL, 60), move("b", OWED, POOL, 5), Status.POSTED, 5),
    (move("a", WORLD, POOL, 60), held("b", 145), Status.POSTED, 145),
    (held("a", 60), held("b", 60), Status.INSUFFICIENT_FUNDS, 60),
    (take("a", "open", 4), free("b", "open"), Status.POSTED, 6),
    (take("a", "open", 4), take("b", "open", 7), Status.HOLD_EXHAUSTED, 7),
    (more("a", "open", 4), take("b", "open", 14), Status.POSTED, 14),
    (free("a", "open"), take("b", "open", 1), Status.HOLD_RESOLVED, 1),
    (undo("a", "paid"), undo("b", "paid"), Status.ALREADY_REVERSED, 5),
    (undo("a", "paid"), move("b", POOL, SPENT, 90), Status.POSTED, 90),
    (move("a", POOL, SPENT, 1), move("a", POOL, SPENT, 1), Status.REPLAYED, 1),
    (move("a", POOL, SPENT, 1), move("a", WORLD, OWED, 1), Status.ID_REUSED_WITH_OTHER_CONTENT, 1),
    (held("a", 1), held("a", 1), Status.REPLAYED, 1),
    (held("a", 1), held("a", 1, WORLD, OWED), Status.ID_REUSED_WITH_OTHER_CONTENT, 1),
]


@pytest.mark.parametrize(("first", "second", "status", "amount"), TURNS)
def test_who_comes_second_waits_and_decides_on_what_the_first_has_done(
    funded: Engine, other: Engine, root: Engine, first: Transfer, second: Transfer, status: Status, amount: int
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transaction(funded) as session:
            assert post(session, [first], at=T0)[0].accepted
            waiting = pool.submit(posting, other, second)
            await_a_waiter(root, waiting)
        outcome: Outcome = waiting.result()[0]
    assert (outcome.status, outcome.amount) == (status, amount)
    totals(funded, POOL)


def await_a_waiter(root: Engine, waiting: Future[list[Outcome]]) -> None:
    """Return once some backend waits for another's rows, or has not waited."""
    asked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with root.connect() as connection:
        while not waiting.done() and not connection.execute(asked).scalar_one():
            connection.rollback()


@pytest.mark.parametrize(
    "second", [move("b", OWED, CARDS, 1), move("b", OWED, WORLD, 1), held("b", 1, WORLD, OWED)]
)
def test_nobody_waits_for_a_posting_between_other_accounts(
    funded: Engine, other: Engine, second: Transfer
) -> None:
    with transaction(funded) as session, transaction(other) as unhurried:
        post(session, [move("a", POOL, SPENT, 1)], at=T0)
        unhurried.execute(text("SET LOCAL lock_timeout = '2s'"))
        assert post(unhurried, [second], at=T0)[0].status in {Status.POSTED, Status.ASSET_MISMATCH}


def test_a_batch_of_which_one_id_is_taken_meanwhile_sets_the_rest_aside_between_the_right_accounts(
    funded: Engine, other: Engine, root: Engine
) -> None:
    batch = [held("a", 1), held("b", 2, SPENT, POOL), take("c", "b", 1)]
    with ThreadPoolExecutor(1) as pool:
        with transaction(funded) as session:
            assert post(session, [move("a", WORLD, OWED, 1)], at=T0)[0].accepted
            waiting = pool.submit(posting, other, *batch)
            await_a_waiter(root, waiting)
        statuses = [outcome.status for outcome in waiting.result()]
    assert statuses == [Status.ID_REUSED_WITH_OTHER_CONTENT, Status.POSTED, Status.POSTED]
    with transaction(funded) as session:
        kept = holds(session, [ident("b")])[ident("b")]
    assert (kept.debit, kept.credit, kept.held, kept.captured) == (SPENT.id, POOL.id, 2, 1)
    assert totals(funded, POOL) == (5, 101, 10, 1)


def test_a_reversal_is_posted_though_another_id_of_its_batch_is_taken_meanwhile(
    funded: Engine, other: Engine, root: Engine
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transaction(funded) as session:
            assert post(session, [move("a", WORLD, OWED, 1)], at=T0)[0].accepted
            waiting = pool.submit(posting, other, undo("u", "paid"), move("a", SPENT, POOL, 1))
            await_a_waiter(root, waiting)
        statuses = [outcome.status for outcome in waiting.result()]
    assert statuses == [Status.POSTED, Status.ID_REUSED_WITH_OTHER_CONTENT]
    assert totals(funded, POOL) == (5, 105, 10, 0)
