"""The ledger against a model that knows only the accepted transfers and recomputes everything from them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import permutations
from uuid import UUID

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.errors import HubError
from kernel.ids import derived_id, new_id
from ledger.audit import audit
from ledger.domain.accounts import CNY, Account, Bound, card_time
from ledger.domain.outcomes import Status
from ledger.domain.transfers import (
    Kind,
    Transfer,
    capture,
    expire,
    extend,
    hold,
    posted,
    release,
    reversal,
)
from ledger.posting import open_accounts, post, post_all
from tests.ledger.world import T0, WORDS
from tests.side_by_side import side_by_side

BOUNDS = [Bound.NONE, Bound.CREDIT, Bound.CREDIT, Bound.DEBIT]
HOURS = 4
HOLDS = st.integers(0, 2)
"""Few ids make holds, so that most references to a hold find one."""
OTHERS = st.integers(0, 24)
BALANCES = text(
    "SELECT id, debits_posted, credits_posted, debits_pending, credits_pending FROM accounts WHERE id = ANY(:ids)"
)
HISTORIES = text(
    "SELECT account_id, sequence, transfer_id FROM entries WHERE account_id = ANY(:ids) ORDER BY 1, 2"
)
amounts = st.integers(1, 20)


PAIRS = 3 * list(permutations(range(4), 2)) + list(permutations(range(6), 2))
"""Sides of a transfer: mostly within one asset."""


class Names:
    """The ids and accounts of one story, by the numbers that the strategies draw."""

    def __init__(self, run: UUID, accounts: list[UUID]) -> None:
        self.ids = [derived_id("model", run, number) for number in range(25)]
        self.sides = {(d, c): {"debit": accounts[d], "credit": accounts[c]} for d, c in PAIRS}
        self.ends = [None] + [T0 + timedelta(hours=hour) for hour in range(1, HOURS + 1)]


def asked() -> st.SearchStrategy[Callable[[Names], Transfer]]:
    """Any transfer over two dozen ids, so that replays, reuse and references to anything are common."""
    sides = st.sampled_from(PAIRS)
    either = HOLDS | OTHERS
    return st.one_of(
        st.builds(
            lambda i, s, a: lambda n: posted(n.ids[i], amount=a, **n.sides[s], **WORDS), OTHERS, sides, amounts
        ),
        st.builds(
            lambda i, s, a, e: lambda n: hold(n.ids[i], amount=a, expires_at=n.ends[e], **n.sides[s], **WORDS),
            HOLDS,
            sides,
            amounts,
            st.integers(1, HOURS),
        ),
        st.builds(
            lambda i, h, a, e: (
                lambda n: extend(n.ids[i], hold_id=n.ids[h], amount=a, expires_at=n.ends[e], **WORDS)
            ),
            OTHERS,
            HOLDS,
            amounts,
            st.integers(0, HOURS),
        ),
        st.builds(
            lambda i, h, a: lambda n: capture(n.ids[i], hold_id=n.ids[h], amount=a, **WORDS),
            OTHERS,
            HOLDS,
            amounts,
        ),
        st.builds(lambda i, h: lambda n: release(n.ids[i], hold_id=n.ids[h], **WORDS), OTHERS, either),
        st.builds(lambda i, h: lambda n: expire(n.ids[i], hold_id=n.ids[h], **WORDS), OTHERS, HOLDS),
        st.builds(lambda i, r: lambda n: reversal(n.ids[i], reverses=n.ids[r], **WORDS), OTHERS, OTHERS),
    )


FEW = st.lists(asked(), min_size=1, max_size=4)
SOME = st.lists(asked(), min_size=1, max_size=8)


@dataclass
class Book:
    """All accepted transfers in order, each completed with the accounts and amount that it really had."""

    accounts: dict[UUID, Account]
    lines: list[Transfer] = field(default_factory=list)
    requests: dict[UUID, Transfer] = field(default_factory=dict)

    def line(self, id_: UUID | None) -> Transfer | None:
        return next((line for line in self.lines if line.id == id_), None)

    def left(self, hold_id: UUID) -> int:
        """What of a hold is neither captured nor freed."""
        sign = {Kind.HOLD: 1, Kind.EXTEND: 1, Kind.CAPTURE: -1, Kind.RELEASE: -1, Kind.EXPIRE: -1}
        return sum(sign[x.kind] * (x.amount or 0) for x in self.lines if hold_id in {x.id, x.hold_id})

    def totals(self, account: UUID) -> tuple[int, int, int, int]:
        """Debits and credits posted, then debits and credits on hold."""
        moved = [x for x in self.lines if x.kind in {Kind.POSTED, Kind.CAPTURE, Kind.REVERSAL}]
        made = [x for x in self.lines if x.kind is Kind.HOLD]
        return (
            sum(x.amount or 0 for x in moved if x.debit == account),
            sum(x.amount or 0 for x in moved if x.credit == account),
            sum(self.left(x.id) for x in made if x.debit == account),
            sum(self.left(x.id) for x in made if x.credit == account),
        )

    def overdrawn(self) -> bool:
        for id_, account in self.accounts.items():
            dp, cp, dn, cn = self.totals(id_)
            if account.bound is Bound.CREDIT and dp + dn > cp:
                return True
            if account.bound is Bound.DEBIT and cp + cn > dp:
                return True
        return False

    def judge(self, wish: Transfer, hour: int) -> tuple[Status, int | None]:
        """Take the wish into the book or say why not; the amount is of an accepted one."""
        if wish.id in self.requests:
            if self.requests[wish.id] != wish:
                return Status.ID_REUSED_WITH_OTHER_CONTENT, None
            first = self.line(wish.id)
            assert first is not None
            return Status.REPLAYED, first.amount
        refusal, line = self._complete(wish, hour)
        if refusal is not None:
            return refusal, None
        self.lines.append(line)
        if self.overdrawn():
            self.lines.pop()
            return Status.INSUFFICIENT_FUNDS, None
        self.requests[wish.id] = wish
        return Status.POSTED, line.amount

    def _complete(self, wish: Transfer, hour: int) -> tuple[Status | None, Transfer]:
        if wish.kind in {Kind.POSTED, Kind.HOLD}:
            assert wish.debit is not None
            assert wish.credit is not None
            same = self.accounts[wish.debit].asset == self.accounts[wish.credit].asset
            return None if same else Status.ASSET_MISMATCH, wish
        if wish.kind is Kind.REVERSAL:
            return self._mirror(wish)
        return self._on_hold(wish, hour)

    def _mirror(self, wish: Transfer) -> tuple[Status | None, Transfer]:
        first = self.line(wish.reverses)
        if first is None:
            return Status.UNKNOWN_TRANSFER, wish
        if first.kind not in {Kind.POSTED, Kind.CAPTURE}:
            return Status.NOT_REVERSIBLE, wish
        if any(x.reverses == first.id for x in self.lines):
            return Status.ALREADY_REVERSED, wish
        return None, replace(wish, debit=first.credit, credit=first.debit, amount=first.amount)

    def _on_hold(self, wish: Transfer, hour: int) -> tuple[Status | None, Transfer]:
        first = self.line(wish.hold_id)
        if first is None or first.kind is not Kind.HOLD:
            return Status.UNKNOWN_HOLD, wish
        parts = [x for x in self.lines if x.hold_id == first.id]
        if any(x.kind in {Kind.RELEASE, Kind.EXPIRE} for x in parts):
            return Status.HOLD_RESOLVED, wish
        ended = max(x.expires_at for x in [first, *parts] if x.expires_at) <= T0 + timedelta(hours=hour)
        if wish.kind in {Kind.EXTEND, Kind.CAPTURE} and ended:
            return Status.HOLD_EXPIRED, wish
        if wish.kind is Kind.EXPIRE and not ended:
            return Status.HOLD_NOT_YET_EXPIRED, wish
        if wish.kind is Kind.CAPTURE and (wish.amount or 0) > self.left(first.id):
            return Status.HOLD_EXHAUSTED, wish
        amount = wish.amount if wish.kind in {Kind.EXTEND, Kind.CAPTURE} else self.left(first.id)
        # A transfer of nothing cannot be asked for, so the amount of an empty release goes in from behind.
        line = replace(wish, debit=first.debit, credit=first.credit)
        object.__setattr__(line, "amount", amount)
        return None, line


class Crash(Exception):
    """The client dies before its transaction is committed."""


class LedgerMachine(RuleBasedStateMachine):
    """Every step is one transaction on the real database; `engine` and `session` are set by the test.

    The session's connection commits each statement by itself, as each is a transaction of its own here.
    """

    engine: Engine
    session: Session

    def __init__(self) -> None:
        super().__init__()
        run = new_id()
        # Four accounts in yuan and two in card time, so that asset mismatches happen.
        kinds = [(bound, CNY) for bound in BOUNDS]
        kinds += [(Bound.NONE, card_time("mlu370")), (Bound.CREDIT, card_time("mlu370"))]
        accounts = [
            Account(derived_id("model account", run, n), f"model/{run}/{n}", asset, bound)
            for n, (bound, asset) in enumerate(kinds)
        ]
        self.book = Book({account.id: account for account in accounts})
        self.names = Names(run, [account.id for account in accounts])
        self.hour = 0
        source, *others = [account.id for account in accounts[:4]]
        funding = [
            posted(derived_id("model funding", run, n), debit=debit, credit=credit, amount=30, **WORDS)
            for n, (debit, credit) in enumerate([(source, others[0]), (source, others[1]), (others[2], source)])
        ]
        for wish in funding:
            assert self.book.judge(wish, 0)[0] is Status.POSTED
        open_accounts(self.session, accounts, at=T0)
        post_all(self.session, funding, at=T0)

    @contextmanager
    def crashing(self) -> Iterator[None]:
        with pytest.raises(Crash):
            yield

    @rule(hour=st.integers(0, HOURS))
    def time_passes(self, hour: int) -> None:
        self.hour = max(self.hour, hour)

    @rule(batch=SOME, crash=st.integers(0, 3).map(lambda chance: chance == 3))
    def a_batch_is_posted(self, batch: list[Callable[[Names], Transfer]], *, crash: bool) -> None:
        wishes = [wish(self.names) for wish in batch]
        at = T0 + timedelta(hours=self.hour)
        if crash:
            with self.crashing(), transaction(self.engine) as session:
                post(session, wishes, at=at)
                raise Crash
        outcomes = post(self.session, wishes, at=at)
        expected = [self.book.judge(wish, self.hour) for wish in wishes]
        assert [(o.status, o.amount if o.accepted else None) for o in outcomes] == expected, wishes
        self.balances_follow_from_the_accepted_transfers()

    @rule(batch=FEW)
    def a_linked_batch_is_posted(self, batch: list[Callable[[Names], Transfer]]) -> None:
        wishes = [wish(self.names) for wish in batch]
        trial = Book(self.book.accounts, list(self.book.lines), dict(self.book.requests))
        verdicts = [trial.judge(wish, self.hour)[0] for wish in wishes]
        refusals = [v for v in verdicts if v not in {Status.POSTED, Status.REPLAYED}]
        if refusals:
            with pytest.raises(HubError) as caught:
                post_all(self.session, wishes, at=T0 + timedelta(hours=self.hour))
            assert caught.value.code == refusals[0].value, wishes
        else:
            post_all(self.session, wishes, at=T0 + timedelta(hours=self.hour))
            self.book = trial
        self.balances_follow_from_the_accepted_transfers()

    def balances_follow_from_the_accepted_transfers(self) -> None:
        found = self.session.execute(BALANCES, {"ids": list(self.book.accounts)})
        seen = {id_: tuple(figures) for id_, *figures in found}
        assert seen == {id_: self.book.totals(id_) for id_ in self.book.accounts}

    def teardown(self) -> None:
        lines: dict[UUID, list[tuple[int, UUID]]] = {id_: [] for id_ in self.book.accounts}
        for account_id, *line in self.session.execute(HISTORIES, {"ids": list(lines)}):
            lines[account_id].append((line[0], line[1]))
        for id_, seen in lines.items():
            touching = [x.id for x in self.book.lines if id_ in {x.debit, x.credit}]
            assert seen == list(enumerate(touching, start=1))


def run_machine(engine: Engine, examples: int, number: int | None = None) -> None:
    class Machine(LedgerMachine):
        pass

    Machine.engine = engine
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        Machine.session = Session(connection)
        run_state_machine_as_test(
            Machine if number is None else seed(number)(Machine),
            settings=settings(
                max_examples=examples,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def check_audit(engine: Engine) -> None:
    with transaction(engine) as session:
        assert audit(session).differences == ()


def test_the_ledger_agrees_with_a_model_of_raw_transfers(engine: Engine) -> None:
    run_machine(engine, 60)
    check_audit(engine)


@pytest.mark.slow
def test_the_ledger_agrees_with_the_model_over_thousands_of_stories(engine: Engine) -> None:
    def stories(number: int) -> None:
        engine.dispose(close=False)
        run_machine(engine, 1_000, number)

    side_by_side(stories)
    check_audit(engine)
