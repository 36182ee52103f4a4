"""Stories over the whole money side of vouchers: random steps, crashes and retries from a world in mid-life.

The world is committed once; each story is one transaction on it, whose steps are savepoints (a crash undoes one, a
retry makes another), and is undone at its end. So thousands of stories cost no more than their own steps.
"""

from collections.abc import Sized
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.vouchers.money import FACES, LOST_MS, Money
from tests.vouchers.raw import check_raw_transfers

AMOUNTS: Final = st.sampled_from(FACES[:-1])
FLAGS: Final = st.sampled_from(("once", "crash first", "once", "twice"))


class MoneyMachine(RuleBasedStateMachine):
    """Issue, deposit, hold, extend, capture, interrupt, release, expire, recall, restore, claim, pay, claw back."""

    def __init__(self, world: Money) -> None:
        super().__init__()
        self.connection = world.world.engine.connect()
        self.undo = self.connection.begin()
        self.money = world.fork(self.connection)
        self.model = self.money.model

    @rule(which=st.integers(0, 1), amount=AMOUNTS, how=FLAGS)
    def deposit(self, which: int, amount: int, how: str) -> None:
        self.money.deposit(which, amount, how)

    @precondition(lambda self: self.model.stock)
    @rule(data=st.data(), how=FLAGS)
    def issue(self, data: st.DataObject, how: str) -> None:
        self.money.issue(data.draw(_index_of(self.model.stock)), how)

    @rule(which=st.integers(0, 1), cost=AMOUNTS, how=FLAGS)
    def hold(self, which: int, cost: int, how: str) -> None:
        self.money.hold(which, cost, how)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), more=AMOUNTS, how=FLAGS)
    def extend(self, data: st.DataObject, more: int, how: str) -> None:
        self.money.extend(data.draw(_index_of(self.model.jobs)), more, how)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), cost=AMOUNTS, late=st.booleans(), how=FLAGS)
    def capture(self, data: st.DataObject, cost: int, late: bool, how: str) -> None:  # noqa: FBT001 - drawn
        self.money.capture(data.draw(_index_of(self.model.jobs)), cost, late=late, how=how)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), how=FLAGS)
    def release(self, data: st.DataObject, how: str) -> None:
        self.money.release(data.draw(_index_of(self.model.jobs)), how)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), how=FLAGS)
    def interrupt(self, data: st.DataObject, how: str) -> None:
        self.money.interrupt(data.draw(_index_of(self.model.jobs)), how)

    @rule(days=st.sampled_from((1, 10, 31)), how=FLAGS)
    def wait(self, days: int, how: str) -> None:
        self.money.wait(days, how)

    @precondition(lambda self: any(lot.active for lot in self.model.lots.values()))
    @rule(data=st.data(), how=FLAGS)
    def recall(self, data: st.DataObject, how: str) -> None:
        active = [lot for lot in self.model.lots.values() if lot.active]
        self.money.recall(data.draw(_index_of(active)), how)

    @precondition(lambda self: self.model.charges)
    @rule(data=st.data(), lost_ms=st.sampled_from((1, 333, 500, LOST_MS)), how=FLAGS)
    def restore(self, data: st.DataObject, lost_ms: int, how: str) -> None:
        self.money.restore(data.draw(_index_of(self.model.charges)), lost_ms, how)

    @rule(
        paid=st.booleans(),
        dispute=st.booleans(),
        claw=st.booleans(),
        how=st.sampled_from(("once", "crash first")),
    )
    def settle(self, paid: bool, dispute: bool, claw: bool, how: str) -> None:  # noqa: FBT001 - drawn
        self.money.settle(paid=paid, dispute=dispute, claw=claw, how=how)

    def teardown(self) -> None:
        """Each account holds what the model says, its transfers recompute to it, and it was never overdrawn."""
        try:
            self.money.check_balances()
            with self.money.step() as session:
                check_raw_transfers(session, self.money.accounts())
        finally:
            self.undo.rollback()
            self.connection.close()


def _index_of(things: Sized) -> st.SearchStrategy[int]:
    return st.integers(0, len(things) - 1)
