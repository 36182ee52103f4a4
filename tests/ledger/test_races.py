"""Sixty-four clients at once on the real database: nothing is lost, doubled or deadlocked."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
from sqlalchemy import Engine

from kernel.database import open_engine, transaction
from ledger.audit import audit
from ledger.domain.accounts import CNY, Account, Bound
from ledger.domain.outcomes import Outcome, Status
from ledger.domain.transfers import Transfer
from ledger.posting import open_accounts, post
from ledger.reading import balances, holds
from tests.conftest import IDLE_MS, Database
from tests.ledger.world import (
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

pytestmark = pytest.mark.slow

CLIENTS = 64


@pytest.fixture
def crowd(database: Database, funded: Engine) -> Iterator[Engine]:
    """An engine with a connection for each client, on the funded ledger."""
    engine = open_engine(database.url, pool_size=CLIENTS, idle_ms=IDLE_MS)
    assert engine.url == funded.url
    yield engine
    engine.dispose()


def at_once(engine: Engine, wishes: Callable[[int], list[Transfer]]) -> list[Outcome]:
    """Every client posts its wishes, each in a transaction of its own, starting together."""
    gate = Barrier(CLIENTS)

    def client(number: int) -> list[Outcome]:
        asked = wishes(number)
        gate.wait()
        return [outcome for wish in asked for outcome in posting(engine, wish)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [outcome for outcomes in pool.map(client, range(CLIENTS)) for outcome in outcomes]


def statuses(outcomes: list[Outcome]) -> Counter[Status]:
    return Counter(outcome.status for outcome in outcomes)


def test_64_clients_take_no_more_from_one_account_than_it_has(crowd: Engine) -> None:
    outcomes = at_once(crowd, lambda n: [move(f"m{n}", POOL, SPENT, 3)])
    assert statuses(outcomes) == {Status.POSTED: 33, Status.INSUFFICIENT_FUNDS: 31}
    assert totals(crowd, POOL) == (99, 100, 0, 0)


def test_64_clients_hold_no_more_than_is_there(crowd: Engine) -> None:
    outcomes = at_once(crowd, lambda n: [held(f"h{n}", 3), more(f"e{n}", f"h{n}", 1)])
    kept = sum(outcome.amount or 0 for outcome in outcomes if outcome.accepted)
    assert totals(crowd, POOL) == (0, 100, kept, 0)
    assert 97 <= kept <= 100


def test_64_captures_of_one_hold_take_no_more_than_was_held(crowd: Engine) -> None:
    posting(crowd, held("h", 50))
    outcomes = at_once(crowd, lambda n: [take(f"c{n}", "h", 3)])
    assert statuses(outcomes) == {Status.POSTED: 16, Status.HOLD_EXHAUSTED: 48}
    assert totals(crowd, POOL) == (48, 100, 2, 0)


def test_captures_racing_the_release_of_their_hold_come_wholly_before_or_not_at_all(crowd: Engine) -> None:
    posting(crowd, held("h", 100))
    outcomes = at_once(crowd, lambda n: [free("r", "h") if n == 31 else take(f"c{n}", "h", 1)])
    captured = sum(outcome.accepted for outcome in outcomes) - 1
    with transaction(crowd) as session:
        kept = holds(session, [ident("h")])[ident("h")]
    assert (kept.captured, kept.freed) == (captured, 100 - captured)
    assert totals(crowd, POOL) == (captured, 100, 0, 0)


def test_64_reversals_of_one_transfer_undo_it_once(crowd: Engine) -> None:
    posting(crowd, move("m", POOL, SPENT, 40))
    outcomes = at_once(crowd, lambda n: [undo(f"u{n}", "m")])
    assert statuses(outcomes) == {Status.POSTED: 1, Status.ALREADY_REVERSED: 63}
    assert totals(crowd, POOL) == (40, 140, 0, 0)


def test_64_clients_sending_the_same_transfer_post_it_once(crowd: Engine) -> None:
    outcomes = at_once(crowd, lambda _: [move("m", POOL, SPENT, 40)])
    assert statuses(outcomes) == {Status.POSTED: 1, Status.REPLAYED: 63}
    assert totals(crowd, POOL) == (40, 100, 0, 0)


def test_one_id_between_64_pairs_of_accounts_is_posted_once(crowd: Engine) -> None:
    sides = [
        (
            Account(ident(f"a{n}"), f"a/{n}", CNY, Bound.NONE),
            Account(ident(f"b{n}"), f"b/{n}", CNY, Bound.NONE),
        )
        for n in range(CLIENTS)
    ]
    with transaction(crowd) as session:
        open_accounts(session, [account for pair in sides for account in pair], at=T0)
    outcomes = at_once(crowd, lambda n: [move("same", *sides[n], 1)])
    assert statuses(outcomes) == {Status.POSTED: 1, Status.ID_REUSED_WITH_OTHER_CONTENT: 63}
    assert totals(crowd, POOL) == (0, 100, 0, 0)


def test_one_id_in_64_batches_between_other_accounts_is_posted_once(crowd: Engine) -> None:
    spare = [Account(ident(f"a{n}"), f"a/{n}", CNY, Bound.NONE) for n in range(2 * CLIENTS)]
    with transaction(crowd) as session:
        open_accounts(session, spare, at=T0)
    gate = Barrier(CLIENTS)

    def client(n: int) -> list[Outcome]:
        gate.wait()
        pair = spare[2 * n : 2 * n + 2]
        return posting(crowd, move(f"own{n}", *pair, 1), move("same", *pair, 1))

    with ThreadPoolExecutor(CLIENTS) as pool:
        outcomes = [outcome for outcomes in pool.map(client, range(CLIENTS)) for outcome in outcomes]
    assert statuses(outcomes) == {Status.POSTED: 65, Status.ID_REUSED_WITH_OTHER_CONTENT: 63}
    assert totals(crowd, POOL) == (0, 100, 0, 0)


def test_the_first_postings_to_a_new_account_race_without_loss(crowd: Engine) -> None:
    fresh = Account(ident("fresh"), "fresh", CNY, Bound.CREDIT)
    gate = Barrier(CLIENTS)

    def client(n: int) -> Status:
        gate.wait()
        with transaction(crowd) as session:
            open_accounts(session, [fresh], at=T0)
            return post(session, [move(f"m{n}", WORLD, fresh, 1)], at=T0)[0].status

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert set(pool.map(client, range(CLIENTS))) == {Status.POSTED}
    assert totals(crowd, fresh) == (0, CLIENTS, 0, 0)


def test_two_accounts_guarding_each_other_show_no_write_skew(crowd: Engine) -> None:
    # Each client moves the whole of one account through the other; under write skew both would see the money.
    left = Account(ident("left"), "left", CNY, Bound.CREDIT)
    right = Account(ident("right"), "right", CNY, Bound.CREDIT)
    with transaction(crowd) as session:
        open_accounts(session, [left, right], at=T0)
        post(session, [move("seed", WORLD, left, 1)], at=T0)
    outcomes = at_once(crowd, lambda n: [move(f"m{n}", *((left, right) if n % 2 else (right, left)), 1)])
    accepted = [outcome for outcome in outcomes if outcome.accepted]
    with transaction(crowd) as session:
        found = balances(session, [left.id, right.id])
        assert audit(session).differences == ()
    assert found[left.id].net + found[right.id].net == 1
    assert found[left.id].version + found[right.id].version == 2 * len(accepted) + 1


def test_batches_over_the_same_accounts_in_any_order_never_deadlock(crowd: Engine) -> None:
    ring = [Account(ident(f"ring{n}"), f"ring/{n}", CNY, Bound.NONE) for n in range(8)]
    with transaction(crowd) as session:
        open_accounts(session, ring, at=T0)
    gate = Barrier(CLIENTS)

    def client(number: int) -> int:
        chance = random.Random(number)  # noqa: S311 - an order of accounts is no secret
        gate.wait()
        for round_ in range(5):
            pairs = [chance.sample(ring, 2) for _ in range(10)]
            posting(crowd, *(move(f"{number}/{round_}/{k}", *pair, 1) for k, pair in enumerate(pairs)))
        return 50

    with ThreadPoolExecutor(CLIENTS) as pool:
        done = sum(pool.map(client, range(CLIENTS)))
    with transaction(crowd) as session:
        report = audit(session)
    assert report.differences == ()
    assert report.transfers == done + 1


def test_an_audit_while_others_post_sees_no_false_difference(crowd: Engine) -> None:
    stop = Event()

    def client(number: int) -> int:
        count = 0
        while not stop.is_set() and count < 500:
            hold_name = f"h{number}/{count}"
            captured = f"c{number}/{count}"
            posting(crowd, held(hold_name, 1), take(captured, hold_name, 1), undo(f"u{captured}", captured))
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        for _ in range(10):
            with transaction(crowd) as session:
                assert audit(session).differences == ()
        stop.set()
        assert sum(done.result() for done in clients) > 0
