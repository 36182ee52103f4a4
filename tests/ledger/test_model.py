"""The ledger against a model that knows only the accepted transfers and recomputes everything from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine

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
from ledger.reading import balances, history
from tests.ledger.world import T0, WORDS

BOUNDS = [Bound.NONE, Bound.CREDIT, Bound.CREDIT, Bound.DEBIT]
HOURS = 4
HOLDS = st.integers(0, 2)
"""Few ids make holds, so that most references to a hold find one."""
OTHERS = st.integers(0, 24)
amounts = st.integers(1, 20)
hours = st.integers(1, HOURS)


def asked(run: UUID, accounts: list[UUID]) -> st.SearchStrategy[Transfer]:
    """Any transfer over two dozen ids, so that replays, reuse and references to anything are common."""

    def named(names: st.SearchStrategy[int]) -> st.SearchStrategy[UUID]:
        return names.map(lambda name: derived_id("model", run, name))

    ids, refs, made = named(OTHERS), named(OTHERS), named(HOLDS)
    within_one_asset = st.permutations(accounts[:4])
    sides = st.one_of(within_one_asset, within_one_asset, within_one_asset, st.permutations(accounts)).map(
        lambda order: {"debit": order[0], "credit": order[1]}
    )
    ends = hours.map(lambda hour: T0 + timedelta(hours=hour))
    return st.one_of(
        st.builds(lambda i, s, a: posted(i, amount=a, **s, **WORDS), ids, sides, amounts),
        st.builds(lambda i, s, a, e: hold(i, amount=a, expires_at=e, **s, **WORDS), made, sides, amounts, ends),
        st.builds(
            lambda i, h, a, e: extend(i, hold_id=h, amount=a, expires_at=e, **WORDS),
            ids,
            made,
            amounts,
            st.none() | ends,
        ),
        st.builds(lambda i, h, a: capture(i, hold_id=h, amount=a, **WORDS), ids, made, amounts),
        st.builds(lambda i, h: release(i, hold_id=h, **WORDS), ids, made | refs),
        st.builds(lambda i, h: expire(i, hold_id=h, **WORDS), ids, made),
        st.builds(lambda i, r: reversal(i, reverses=r, **WORDS), ids, refs),
    )


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
    """Every step is one transaction on the real database; `engine` is set by the test."""

    engine: Engine

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
        self.wishes = asked(run, [account.id for account in accounts])
        self.hour = 0
        source, *others = [account.id for account in accounts[:4]]
        funding = [
            posted(derived_id("model funding", run, n), debit=debit, credit=credit, amount=30, **WORDS)
            for n, (debit, credit) in enumerate([(source, others[0]), (source, others[1]), (others[2], source)])
        ]
        for wish in funding:
            assert self.book.judge(wish, 0)[0] is Status.POSTED
        with transaction(self.engine) as session:
            open_accounts(session, accounts, at=T0)
            post_all(session, funding, at=T0)

    @contextmanager
    def crashing(self) -> Iterator[None]:
        with pytest.raises(Crash):
            yield

    @rule(hour=st.integers(0, HOURS))
    def time_passes(self, hour: int) -> None:
        self.hour = max(self.hour, hour)

    @rule(data=st.data(), crash=st.booleans())
    def a_batch_is_posted(self, data: st.DataObject, *, crash: bool) -> None:
        wishes = data.draw(st.lists(self.wishes, min_size=1, max_size=8))
        at = T0 + timedelta(hours=self.hour)
        if crash:
            with self.crashing(), transaction(self.engine) as session:
                post(session, wishes, at=at)
                raise Crash
        with transaction(self.engine) as session:
            outcomes = post(session, wishes, at=at)
        expected = [self.book.judge(wish, self.hour) for wish in wishes]
        assert [(o.status, o.amount if o.accepted else None) for o in outcomes] == expected

    @rule(data=st.data())
    def a_linked_batch_is_posted(self, data: st.DataObject) -> None:
        wishes = data.draw(st.lists(self.wishes, min_size=1, max_size=4))
        trial = Book(self.book.accounts, list(self.book.lines), dict(self.book.requests))
        verdicts = [trial.judge(wish, self.hour)[0] for wish in wishes]
        refusals = [v for v in verdicts if v not in {Status.POSTED, Status.REPLAYED}]
        with transaction(self.engine) as session:
            if not refusals:
                post_all(session, wishes, at=T0 + timedelta(hours=self.hour))
                self.book = trial
                return
            with pytest.raises(HubError) as caught:
                post_all(session, wishes, at=T0 + timedelta(hours=self.hour))
        assert caught.value.code == refusals[0].value

    @invariant()
    def balances_follow_from_the_accepted_transfers(self) -> None:
        with transaction(self.engine) as session:
            found = balances(session, self.book.accounts)
        for id_ in self.book.accounts:
            b = found[id_]
            seen = (b.debits_posted, b.credits_posted, b.debits_pending, b.credits_pending)
            assert seen == self.book.totals(id_)

    def teardown(self) -> None:
        with transaction(self.engine) as session:
            for id_ in self.book.accounts:
                lines = history(session, id_, limit=1000)
                assert [line.sequence for line in lines] == list(range(1, len(lines) + 1))
                touching = [x.id for x in self.book.lines if id_ in {x.debit, x.credit}]
                assert [line.transfer_id for line in lines] == touching


def run_machine(engine: Engine, examples: int) -> None:
    class Machine(LedgerMachine):
        pass

    Machine.engine = engine
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with transaction(engine) as session:
        assert audit(session).differences == ()


def test_the_ledger_agrees_with_a_model_of_raw_transfers(engine: Engine) -> None:
    run_machine(engine, 60)


@pytest.mark.slow
def test_the_ledger_agrees_with_the_model_over_a_thousand_stories(engine: Engine) -> None:
    run_machine(engine, 1000)
