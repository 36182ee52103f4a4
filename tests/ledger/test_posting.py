from dataclasses import replace
from datetime import datetime, timedelta
from itertools import permutations

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.errors import Conflict, Invalid, NotFound, Unfunded
from ledger.domain.accounts import CNY, Account, Balance, Bound, card_time
from ledger.domain.outcomes import Status
from ledger.domain.transfers import Kind, Transfer, extend, posted
from ledger.errors import AccountDiffers, AccountNameTaken, InsufficientFunds
from ledger.posting import BATCH_MAX, open_accounts, post_all
from ledger.reading import (
    Entry,
    HoldState,
    Side,
    balances,
    due_holds,
    history,
    holds,
    sum_of_balances,
)
from tests.ledger.world import (
    CARDS,
    LATER,
    OWED,
    POOL,
    SPENT,
    T0,
    WORDS,
    WORLD,
    free,
    held,
    ident,
    lapse,
    more,
    move,
    posting,
    take,
    totals,
    undo,
)

# Each row: what is posted in order at which time, and the status of the last one.
REFUSALS = [
    ([move("x", POOL, SPENT, 101)], T0, Status.INSUFFICIENT_FUNDS),
    ([move("x", WORLD, OWED, 1)], T0, Status.INSUFFICIENT_FUNDS),
    ([held("h", 60), held("x", 41)], T0, Status.INSUFFICIENT_FUNDS),
    ([held("h", 60), move("x", POOL, SPENT, 41)], T0, Status.INSUFFICIENT_FUNDS),
    (
        [move("o", OWED, WORLD, 9), held("h", 2, WORLD, OWED), move("x", WORLD, OWED, 8)],
        T0,
        Status.INSUFFICIENT_FUNDS,
    ),
    ([move("o", OWED, WORLD, 9), held("x", 10, WORLD, OWED)], T0, Status.INSUFFICIENT_FUNDS),
    ([held("h", 60), more("x", "h", 41)], T0, Status.INSUFFICIENT_FUNDS),
    ([move("m", POOL, SPENT, 100), undo("x", "fund")], T0, Status.INSUFFICIENT_FUNDS),
    ([held("h", 60), take("x", "h", 61)], T0, Status.HOLD_EXHAUSTED),
    ([held("h", 60), take("c", "h", 20), take("x", "h", 41)], T0, Status.HOLD_EXHAUSTED),
    ([held("h", 60), free("r", "h"), take("x", "h", 1)], T0, Status.HOLD_RESOLVED),
    ([held("h", 60), free("r", "h"), free("x", "h")], T0, Status.HOLD_RESOLVED),
    ([held("h", 60), free("r", "h"), more("x", "h", 1)], T0, Status.HOLD_RESOLVED),
    ([held("h", 60), lapse("e", "h"), free("x", "h")], LATER, Status.HOLD_RESOLVED),
    ([held("h", 60), take("x", "h", 1)], LATER, Status.HOLD_EXPIRED),
    ([held("h", 60), more("x", "h", 1)], LATER, Status.HOLD_EXPIRED),
    ([held("h", 60), lapse("x", "h")], LATER - timedelta(microseconds=1), Status.HOLD_NOT_YET_EXPIRED),
    ([held("h", 101), take("x", "h", 1)], T0, Status.UNKNOWN_HOLD),
    ([move("m", POOL, SPENT, 1), take("x", "m", 1)], T0, Status.UNKNOWN_HOLD),
    ([undo("x", "nothing")], T0, Status.UNKNOWN_TRANSFER),
    ([held("h", 60), undo("x", "h")], T0, Status.NOT_REVERSIBLE),
    ([held("h", 60), free("r", "h"), undo("x", "r")], T0, Status.NOT_REVERSIBLE),
    ([undo("r", "fund"), undo("x", "r")], T0, Status.NOT_REVERSIBLE),
    ([undo("r", "fund"), undo("x", "fund")], T0, Status.ALREADY_REVERSED),
    ([move("x", POOL, Account(ident("no"), "no", CNY, Bound.NONE), 1)], T0, Status.UNKNOWN_ACCOUNT),
    ([move("x", POOL, CARDS, 1)], T0, Status.ASSET_MISMATCH),
    ([move("x", POOL, SPENT, 1), move("x", POOL, SPENT, 2)], T0, Status.ID_REUSED_WITH_OTHER_CONTENT),
    ([held("x", 1), move("x", POOL, SPENT, 1)], T0, Status.ID_REUSED_WITH_OTHER_CONTENT),
]


@pytest.mark.parametrize(("transfers", "at", "expected"), REFUSALS, ids=lambda v: getattr(v, "value", None))
@pytest.mark.parametrize("apart", [False, True], ids=["one batch", "one by one"])
def test_each_refusal_has_its_code_and_writes_nothing(
    funded: Engine, transfers: list[Transfer], at: datetime, expected: Status, *, apart: bool
) -> None:
    *earlier, last = transfers
    if apart:
        for transfer in earlier:
            posting(funded, transfer, at=at)
        before = totals(funded, POOL)
        outcomes = posting(funded, last, at=at)
        assert totals(funded, POOL) == before
    else:
        outcomes = posting(funded, *transfers, at=at)
    assert outcomes[-1].status is expected
    assert totals(funded, POOL)[0] <= 100


def test_a_transfer_is_posted_and_its_replay_returns_the_first_result(funded: Engine) -> None:
    first, again = (posting(funded, move("m", POOL, SPENT, 30))[0] for _ in range(2))
    assert (first.status, again.status) == (Status.POSTED, Status.REPLAYED)
    assert first.amount == again.amount == 30
    assert totals(funded, POOL) == (30, 100, 0, 0)
    assert totals(funded, SPENT) == (0, 30, 0, 0)


@pytest.mark.parametrize("together", [False, True])
def test_every_kind_is_replayed_with_its_first_amount(funded: Engine, *, together: bool) -> None:
    wishes = [held("h", 50), more("e", "h", 20), take("c", "h", 30), undo("u", "c"), free("r", "h")]
    again = posting(funded, *wishes, *wishes)[5:]
    if not together:
        again = posting(funded, *wishes)
    assert {outcome.status for outcome in again} == {Status.REPLAYED}
    assert [outcome.amount for outcome in again] == [50, 20, 30, 30, 40]
    assert totals(funded, POOL) == (30, 130, 0, 0)


def test_a_single_transfer_moves_between_its_own_accounts_whichever_id_comes_first(funded: Engine) -> None:
    accounts = (OWED, WORLD, SPENT, POOL)
    pairs = list(permutations(accounts, 2))
    for amount, (debit, credit) in zip(range(len(pairs), 0, -1), pairs, strict=True):
        assert posting(funded, move(f"m{amount}", debit, credit, amount))[0].status is Status.POSTED
    assert [totals(funded, account)[:2] for account in accounts] == [(33, 18), (124, 19), (15, 20), (6, 121)]


def test_a_hold_is_extended_captured_in_parts_and_released(funded: Engine) -> None:
    outcomes = posting(
        funded, held("h", 50), more("e", "h", 20), take("c1", "h", 30), take("c2", "h", 5), free("r", "h")
    )
    assert [o.amount for o in outcomes] == [50, 20, 30, 5, 35]
    assert totals(funded, POOL) == (35, 100, 0, 0)
    with transaction(funded) as session:
        kept = holds(session, [ident("h")])[ident("h")]
        lines = history(session, POOL.id)
    assert (kept.held, kept.captured, kept.freed, kept.state) == (70, 35, 35, HoldState.RELEASED)
    assert [line.sequence for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line.debits_pending for line in lines] == [0, 50, 70, 40, 35, 0]


def test_holds_of_one_batch_keep_their_own_accounts_beside_one_that_was_there(funded: Engine) -> None:
    posting(funded, held("h", 50))
    posting(
        funded, more("e", "h", 1), held("k", 7, SPENT, POOL), held("l", 3), take("c", "h", 2), take("d", "k", 1)
    )
    with transaction(funded) as session:
        found = holds(session, [ident(name) for name in "hkl"])
    kept = [(one.debit, one.credit, one.held, one.captured) for one in (found[ident(name)] for name in "hkl")]
    pool, spent = POOL.id, SPENT.id
    assert kept == [(pool, spent, 51, 2), (spent, pool, 7, 1), (pool, spent, 3, 0)]
    assert totals(funded, POOL) == (2, 101, 52, 6)


def test_a_hold_captured_to_the_end_is_still_released_once(funded: Engine) -> None:
    outcomes = posting(funded, held("h", 50), take("c", "h", 50), free("r", "h"), free("r2", "h"))
    assert outcomes[2].amount == 0
    assert outcomes[3].status is Status.HOLD_RESOLVED


def test_a_due_hold_is_listed_and_expires(funded: Engine) -> None:
    posting(funded, held("h", 50), take("c", "h", 20))
    with transaction(funded) as session:
        assert due_holds(session, LATER - timedelta(microseconds=1)) == []
        assert [due.id for due in due_holds(session, LATER)] == [ident("h")]
    assert posting(funded, lapse("x", "h"), at=LATER)[0].amount == 30
    with transaction(funded) as session:
        assert due_holds(session, LATER) == []
    assert totals(funded, POOL) == (20, 100, 0, 0)


def test_what_is_left_of_a_hold_is_what_was_neither_captured_nor_freed(funded: Engine) -> None:
    posting(funded, held("h", 50), take("c", "h", 20), held("h2", 50), take("c2", "h2", 1), free("r", "h2"))
    with transaction(funded) as session:
        found = holds(session, [ident("h"), ident("h2"), ident("c")])
    assert {id_: kept.remaining for id_, kept in found.items()} == {ident("h"): 30, ident("h2"): 0}


def test_an_extension_may_move_the_end_of_a_hold(funded: Engine) -> None:
    much_later = LATER + timedelta(hours=1)
    longer = extend(ident("e"), hold_id=ident("h"), amount=1, expires_at=much_later, **WORDS)
    posting(funded, held("h", 50), longer)
    assert posting(funded, take("c", "h", 51), at=LATER)[0].accepted
    assert posting(funded, take("d", "h", 1), at=much_later)[0].status is Status.HOLD_EXPIRED
    assert totals(funded, POOL) == (51, 100, 0, 0)


def test_reversals_mirror_what_was_posted_and_captured(funded: Engine) -> None:
    outcomes = posting(
        funded, held("h", 50), take("c", "h", 20), undo("rc", "c"), move("m", POOL, SPENT, 7), undo("rm", "m")
    )
    assert [o.amount for o in outcomes] == [50, 20, 20, 7, 7]
    assert totals(funded, POOL) == (27, 127, 30, 0)
    assert totals(funded, SPENT) == (27, 27, 0, 30)


@pytest.mark.parametrize("transfer", [move("x", POOL, SPENT, 1), held("x", 1)])
def test_a_posting_that_begins_its_transaction_is_undone_with_it(funded: Engine, transfer: Transfer) -> None:
    with Session(funded) as session:
        assert post_all(session, [transfer], at=T0)[0].status is Status.POSTED
        session.rollback()
    assert totals(funded, POOL) == (0, 100, 0, 0)


def test_a_linked_batch_is_posted_whole_or_not_at_all(funded: Engine) -> None:
    with transaction(funded) as session:
        with pytest.raises(InsufficientFunds) as caught:
            wishes = [move("a", POOL, SPENT, 60), move("b", POOL, SPENT, 41), move("c", POOL, SPENT, 1)]
            post_all(session, wishes, at=T0)
        assert caught.value.facts["available"] == 40
        assert caught.value.facts["required"] == 41
        assert balances(session, [POOL.id])[POOL.id] == Balance(POOL, 0, 100, 0, 0, 1)
        post_all(session, [move("a", POOL, SPENT, 60)], at=T0)
        both = post_all(session, [move("a", POOL, SPENT, 60), move("b", POOL, SPENT, 40)], at=T0)
        assert [outcome.status for outcome in both] == [Status.REPLAYED, Status.POSTED]
    assert totals(funded, POOL) == (100, 100, 0, 0)


@pytest.mark.parametrize(
    ("transfer", "kind"),
    [
        (move("x", POOL, SPENT, 101), Unfunded),
        (undo("x", "nothing"), NotFound),
        (move("x", POOL, CARDS, 1), Invalid),
        (move("fund", WORLD, POOL, 99), Conflict),
    ],
)
def test_a_refused_linked_batch_raises_the_kind_that_says_why(
    funded: Engine, transfer: Transfer, kind: type[Exception]
) -> None:
    with transaction(funded) as session, pytest.raises(kind):
        post_all(session, [transfer], at=T0)


# Each row: what is posted first, what is then refused, the account it rests on and what it could have moved.
FACTS = [
    ([held("h", 30)], move("x", POOL, SPENT, 71), POOL, 70),
    ([move("m", POOL, SPENT, 10), held("h", 30)], held("x", 61), POOL, 60),
    ([move("o", OWED, WORLD, 9), held("h", 2, WORLD, OWED)], move("x", WORLD, OWED, 8), OWED, 7),
    (
        [move("o", OWED, WORLD, 9), move("b", WORLD, OWED, 2), held("h", 3, WORLD, OWED)],
        held("x", 5, WORLD, OWED),
        OWED,
        4,
    ),
    ([held("h", 30), take("c", "h", 10)], take("x", "h", 21), POOL, 20),
    ([held("h", 30), take("c", "h", 10)], more("x", "h", 71), POOL, 70),
]


@pytest.mark.parametrize(("earlier", "refused", "account", "available"), FACTS)
def test_a_refusal_for_lack_of_money_says_what_there_is(
    funded: Engine, earlier: list[Transfer], refused: Transfer, account: Account, available: int
) -> None:
    outcome = posting(funded, *earlier, refused)[-1]
    assert (outcome.account_id, outcome.available, outcome.amount) == (account.id, available, refused.amount)
    assert posting(funded, replace(refused, amount=available))[0].accepted


NOBODY = Account(ident("nobody"), "nobody", CNY, Bound.NONE)


@pytest.mark.parametrize(
    ("refused", "account"),
    [
        (move("x", POOL, NOBODY, 1), NOBODY),
        (move("x", NOBODY, POOL, 1), NOBODY),
        (held("x", 1, POOL, CARDS), CARDS),
        (undo("x", "fund"), POOL),
    ],
)
def test_a_refusal_names_the_account_it_rests_on(funded: Engine, refused: Transfer, account: Account) -> None:
    posting(funded, held("h", 60))
    assert posting(funded, refused)[0].account_id == account.id


def test_a_refusal_says_nothing_of_the_one_before_it(funded: Engine) -> None:
    wishes = [move("x", POOL, SPENT, 101), take("y", "none", 1), move("z", POOL, CARDS, 1), undo("u", "none")]
    found = [(outcome.account_id, outcome.available) for outcome in posting(funded, *wishes)]
    assert found == [(POOL.id, 100), (None, None), (CARDS.id, None), (None, None)]


def test_opening_again_with_other_content_is_refused(funded: Engine) -> None:
    with transaction(funded) as session:
        open_accounts(session, [POOL], at=LATER)
        with pytest.raises(AccountDiffers):
            open_accounts(session, [Account(POOL.id, POOL.name, CNY, Bound.NONE)], at=T0)
        with pytest.raises(AccountNameTaken):
            open_accounts(session, [Account(ident("other"), POOL.name, CNY, Bound.CREDIT)], at=T0)


def test_of_several_accounts_that_differ_the_one_of_the_lowest_id_is_named(funded: Engine) -> None:
    changed = [replace(account, bound=Bound.CREDIT) for account in (SPENT, OWED)]
    for order in (changed, changed[::-1]):
        with transaction(funded) as session, pytest.raises(AccountDiffers) as caught:
            open_accounts(session, order, at=T0)
        assert caught.value.facts["account"] == OWED.id


@pytest.fixture
def various(funded: Engine) -> Engine:
    """POOL and OWED with four different totals each."""
    posting(funded, held("h", 30), move("s", POOL, SPENT, 5), held("k", 7, WORLD, POOL))
    posting(funded, move("o", OWED, WORLD, 9), move("b", WORLD, OWED, 2), held("l", 3, WORLD, OWED))
    posting(funded, held("m", 1, OWED, WORLD))
    return funded


def test_available_counts_holds_against_the_bounded_side(various: Engine) -> None:
    with transaction(various) as session:
        seen = balances(session, [POOL.id, OWED.id, WORLD.id, ident("none")])
        assert sum_of_balances(session) == 0
    assert {b.account: (b.available, b.net) for b in seen.values()} == {
        POOL: (65, 95),
        OWED: (4, -7),
        WORLD: (None, -93),
    }
    assert seen[POOL.id] == Balance(POOL, 5, 100, 30, 7, 4)
    assert seen[OWED.id] == Balance(OWED, 9, 2, 1, 3, 4)


def test_an_entry_carries_the_transfer_and_the_totals_after_it(various: Engine) -> None:
    with transaction(various) as session:
        *_, pool = history(session, POOL.id)
        *_, owed = history(session, OWED.id)
    words = (T0, WORDS["movement"], WORDS["cause"])
    assert pool == Entry(POOL.id, 4, ident("k"), Side.CREDIT, Kind.HOLD, 7, *words, 5, 100, 30, 7)
    assert owed == Entry(OWED.id, 4, ident("m"), Side.DEBIT, Kind.HOLD, 1, *words, 9, 2, 1, 3)


def test_the_longest_words_and_names_are_kept_whole(funded: Engine) -> None:
    account = Account(ident("long"), "a" * 400, card_time("m" * 192), Bound.NONE)
    words = {"movement": "m" * 100, "cause": "c" * 400}
    with transaction(funded) as session:
        open_accounts(session, [account], at=T0)
        assert balances(session, [account.id])[account.id].account == account
    posting(funded, posted(ident("x"), debit=POOL.id, credit=SPENT.id, amount=1, **words))
    with transaction(funded) as session:
        line = history(session, SPENT.id)[-1]
    assert {"movement": line.movement, "cause": line.cause} == words


def test_due_holds_are_listed_from_the_longest_overdue_and_no_more_than_asked(funded: Engine) -> None:
    ends = {name: LATER - timedelta(minutes=n) for n, name in enumerate(("a", "b", "c"))}
    posting(funded, *(replace(held(name, 1), expires_at=end) for name, end in ends.items()))
    with transaction(funded) as session:
        assert [due.id for due in due_holds(session, LATER, limit=2)] == [ident("c"), ident("b")]


def test_every_transfer_stands_in_the_histories_of_both_its_accounts(funded: Engine) -> None:
    posting(funded, held("h", 30), take("c", "h", 10), undo("u", "c"), move("m", POOL, SPENT, 1))
    posting(funded, lapse("x", "h"), at=LATER)
    with transaction(funded) as session:
        pool, spent = history(session, POOL.id, after=1), history(session, SPENT.id)
    assert [(line.transfer_id, line.kind, line.amount) for line in pool] == [
        (line.transfer_id, line.kind, line.amount) for line in spent
    ]
    assert [line.kind for line in pool] == [Kind.HOLD, Kind.CAPTURE, Kind.REVERSAL, Kind.POSTED, Kind.EXPIRE]
    assert [line.side for line in pool] == [Side.DEBIT, Side.DEBIT, Side.CREDIT, Side.DEBIT, Side.DEBIT]
    assert pool[-1].at == LATER


def test_history_is_read_in_pages(funded: Engine) -> None:
    posting(funded, *(move(f"m{n}", POOL, SPENT, 1) for n in range(5)))
    with transaction(funded) as session:
        pages = [history(session, POOL.id, after=after, limit=2) for after in (0, 2, 4, 6)]
    assert [[line.sequence for line in page] for page in pages] == [[1, 2], [3, 4], [5, 6], []]


def test_a_batch_of_the_largest_size_is_posted(funded: Engine) -> None:
    outcomes = posting(funded, *(move(f"m{n}", WORLD, SPENT, 1) for n in range(BATCH_MAX)))
    assert {outcome.status for outcome in outcomes} == {Status.POSTED}
    assert totals(funded, SPENT) == (0, BATCH_MAX, 0, 0)
