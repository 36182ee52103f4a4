"""A state machine over the whole money side of vouchers, with a model that knows nothing of the ledger.

Every step is a transaction of its own, may crash before its commit, and may be repeated after it. The model books
what the use cases said they did; the balances must agree after every step, and at the end the raw transfers must
recompute to them without any bounded account ever having been overdrawn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import text
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.ids import derived_id
from ledger.reading import balances
from tests.vouchers.world import FACTS, NOW, World
from vouchers import accounts
from vouchers.afterlife import expire_vouchers, recall_voucher
from vouchers.capturing import capture_charge
from vouchers.claims import make_claim
from vouchers.clawback import claw_back_line
from vouchers.domain.explanation import Coverage
from vouchers.errors import ChargeBeyondHold, NoFunding, NothingToClaim, PeriodClosed, PoolExhausted
from vouchers.reading import ClaimLineView, claim_view
from vouchers.redemption import extend_hold, place_hold, release_hold
from vouchers.restoration import restore_charge
from vouchers.settlement import approve_claim, check_claim, disburse_claim, dispute_line, review_claim
from vouchers.tables import Voucher
from vouchers.wallets import deposit

T = TypeVar("T")
POOL: Final = 1_000_000_000
AMOUNTS: Final = st.sampled_from((1, 3, 7, 999, 1_000_003, 10_000_019, 50_000_017, 90_000_001, 300_000_007))
FLAGS: Final = st.sampled_from(("once", "crash first", "twice"))


class Crash(Exception):
    """The process died before its commit."""


@dataclass
class Lot:
    """Where a voucher's face value is, by the model."""

    tenant: UUID
    expires_at: datetime
    available: int
    held: int = 0
    captured: int = 0
    active: bool = True


@dataclass
class Purse:
    """A tenant's prepaid balance, by the model."""

    available: int = 0
    held: int = 0


@dataclass
class Job:
    """What is set aside for a job, by source, and the cost it covers."""

    tenant: UUID
    total: int = 0
    left: int = 0
    held: dict[UUID, int] = field(default_factory=dict)
    ends: list[tuple[datetime | None, int]] = field(default_factory=list)


@dataclass
class Charge:
    """What each source paid; how many of its voucher lines, worth how much, stand in a claim."""

    paid: dict[UUID, int]
    lines: int
    worth: int
    restored: bool = False
    standing_lines: int = 0
    standing_worth: int = 0


class MoneyMachine(RuleBasedStateMachine):
    """Issue, deposit, hold, extend, capture, release, expire, recall, restore, claim, pay, claw back."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.now = NOW
        self.pool = POOL
        self.lots: dict[UUID, Lot] = {}
        self.purses: dict[UUID, Purse] = {}
        self.jobs: dict[UUID, Job] = {}
        self.charges: dict[UUID, Charge] = {}
        self.periods: set[str] = set()
        self.count = 0

    def run(self, act: Callable[[Session], T], how: str = "once") -> T:
        """Run a use case in a transaction; crash before the first commit or repeat after it if asked."""
        if how == "crash first":
            with pytest.raises(Crash), transaction(self.world.engine) as session:
                act(session)
                raise Crash
        with transaction(self.world.engine) as session:
            first = act(session)
        if how == "twice":
            with transaction(self.world.engine) as session:
                act(session)
        return first

    def name(self, noun: str) -> UUID:
        """A new id of this run."""
        self.count += 1
        return derived_id(noun, self.slug, self.count)

    @initialize()
    def begin(self) -> None:
        """A programme of ¥1,000 whose vouchers last 30 days, two tenants with money, vouchers and a running job."""

        def act(session: Session) -> None:
            self.slug = self.world.programme(
                session,
                caps=[],
                budget={"clause": "§2", "cycle": "once", "amount": "1000.00"},
                validity={"clause": "§5", "days": 30},
            )
            self.purses = {self.world.enterprise(session): Purse() for _ in range(2)}

        self.run(act)
        for which, amount in enumerate((900_000_001, 300_000_003)):
            self.deposit(which, amount, "once")
            self.issue(which, 30_000_007)
            self.issue(which, 70_000_001)
            self.hold(which, 200_000_001, "once")

    @rule(which=st.integers(0, 1), amount=AMOUNTS, how=FLAGS)
    def deposit(self, which: int, amount: int, how: str) -> None:
        tenant = list(self.purses)[which]
        reference = str(self.name("deposit"))
        self.run(lambda session: deposit(session, tenant, amount, reference, self.now), how)
        self.purses[tenant].available += amount

    @rule(which=st.integers(0, 1), face=AMOUNTS)
    def issue(self, which: int, face: int) -> None:
        self.tick()
        tenant = list(self.purses)[which]

        def act(session: Session) -> tuple[UUID, datetime]:
            voucher = self.world.voucher(session, tenant, self.slug, face, self.now)
            return voucher, session.get_one(Voucher, voucher).expires_at

        if face > self.pool:
            with pytest.raises(PoolExhausted):
                self.run(act)
            return
        voucher, expires_at = self.run(act)
        self.lots[voucher] = Lot(tenant, expires_at, face)
        self.pool -= face

    @rule(which=st.integers(0, 1), cost=AMOUNTS, how=FLAGS)
    def hold(self, which: int, cost: int, how: str) -> None:
        tenant = list(self.purses)[which]
        job = self.name("job")
        self.jobs[job] = Job(tenant)
        if not self.set_aside(
            job, cost, lambda session: place_hold(session, job, tenant, cost, FACTS, None, self.now), how
        ):
            del self.jobs[job]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), more=AMOUNTS, how=FLAGS)
    def extend(self, data: st.DataObject, more: int, how: str) -> None:
        job = data.draw(st.sampled_from(list(self.jobs)))
        total = self.jobs[job].total + more
        self.set_aside(job, more, lambda session: extend_hold(session, job, total, FACTS, self.now), how)

    def set_aside(self, job: UUID, cost: int, act: Callable[[Session], Coverage], how: str) -> bool:
        """Check a hold against what the model says is there, and book it."""
        entry = self.jobs[job]
        usable = [lot.available for lot in self.lots.values() if lot.tenant == entry.tenant and self.pays(lot)]
        own = cost - min(cost * 3 // 10, sum(usable))
        if own > self.purses[entry.tenant].available:
            with pytest.raises(NoFunding):
                self.run(act)
            return False
        coverage = self.run(act, how)
        assert coverage.tenant_micros == own
        assert sum(line.amount_micros for line in coverage.lines) == cost
        ends = []
        for line in coverage.lines:
            if line.voucher:
                lot = self.lots[UUID(line.voucher)]
                lot.available, lot.held = lot.available - line.quantity, lot.held + line.quantity
                ends.append(lot.expires_at)
            elif line.payer:
                purse = self.purses[entry.tenant]
                purse.available, purse.held = purse.available - line.quantity, purse.held + line.quantity
            source = UUID(line.voucher or line.payer) if line.voucher or line.payer else None
            if source is not None:
                entry.held[source] = entry.held.get(source, 0) + line.quantity
        entry.total += cost
        entry.ends.append((min(ends, default=None), cost))
        return True

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), cost=AMOUNTS, late=st.booleans(), how=FLAGS)
    def capture(self, data: st.DataObject, cost: int, late: bool, how: str) -> None:  # noqa: FBT001 - drawn
        job = data.draw(st.sampled_from(list(self.jobs)))
        entry = self.jobs[job]
        used = self.now - timedelta(days=20) if late else self.now
        room = sum(left for end, left in entry.ends if end is None or used <= end)
        charge = self.name("charge")

        def act(session: Session) -> Coverage:
            return capture_charge(session, job, charge, cost, FACTS, self.now, used_until=used)

        if cost > room:
            with pytest.raises(ChargeBeyondHold):
                self.run(act)
            return
        coverage = self.run(act, how)
        assert sum(line.amount_micros for line in coverage.lines) == cost
        paid: dict[UUID, int] = {}
        for line in coverage.lines:
            if line.voucher or line.payer:
                source = UUID(line.voucher or line.payer)
                paid[source] = paid.get(source, 0) + line.quantity
        for source, amount in paid.items():
            entry.held[source] -= amount
            assert entry.held[source] >= 0
            self.place(source).held -= amount
            if source in self.lots:
                self.lots[source].captured += amount
        public = [line.quantity for line in coverage.lines if line.voucher and line.quantity]
        self.charges[charge] = Charge(paid, len(public), sum(public))
        for index, (end, left) in enumerate(entry.ends):
            if end is None or used <= end:
                part = min(left, cost)
                entry.ends[index] = (end, left - part)
                cost -= part

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), how=FLAGS)
    def release(self, data: st.DataObject, how: str) -> None:
        job = data.draw(st.sampled_from(list(self.jobs)))
        self.run(lambda session: release_hold(session, job, self.now), how)
        for source, amount in self.jobs.pop(job).held.items():
            self.place(source).held -= amount
            self.give_back(source, amount)

    @rule(days=st.sampled_from((1, 10, 31)), how=FLAGS)
    def wait(self, days: int, how: str) -> None:
        self.now += timedelta(days=days)

        def act(session: Session) -> None:
            while expire_vouchers(session, self.now):
                pass

        self.run(act, how)
        for lot in self.lots.values():
            if lot.active and lot.expires_at <= self.now:
                self.end(lot)

    @precondition(lambda self: any(lot.active for lot in self.lots.values()))
    @rule(data=st.data(), how=FLAGS)
    def recall(self, data: st.DataObject, how: str) -> None:
        active = [voucher for voucher, lot in self.lots.items() if lot.active]
        voucher = data.draw(st.sampled_from(active))
        self.run(lambda session: recall_voucher(session, voucher, by="o", reason="r", at=self.now), how)
        self.end(self.lots[voucher])

    @precondition(lambda self: any(not c.standing_lines and not c.restored for c in self.charges.values()))
    @rule(data=st.data(), how=FLAGS)
    def restore(self, data: st.DataObject, how: str) -> None:
        free = [name for name, c in self.charges.items() if not c.standing_lines and not c.restored]
        charge = data.draw(st.sampled_from(free))
        self.run(lambda session: restore_charge(session, charge, reason="r", by="hub", at=self.now), how)
        self.charges[charge].restored = True
        for source, amount in self.charges[charge].paid.items():
            if source in self.lots:
                self.lots[source].captured -= amount
            self.give_back(source, amount)

    @rule(paid=st.booleans(), dispute=st.booleans(), claw=st.booleans(), crash=st.booleans())
    def settle(self, paid: bool, dispute: bool, claw: bool, crash: bool) -> None:  # noqa: FBT001 - drawn
        """Claim everything captured, take a line out, approve and pay the rest, and take a line back."""
        period = f"{self.now:%Y-%m}"
        waiting = [charge for charge in self.charges.values() if not charge.restored]
        worth = sum(charge.worth - charge.standing_worth for charge in waiting)

        def act(session: Session) -> tuple[list[ClaimLineView], ClaimLineView | None]:
            claim = make_claim(session, self.slug, period, by="centre", at=self.now)
            view = claim_view(session, claim)
            assert view.amount == worth
            lines = sorted(view.lines, key=self.age)
            if dispute and len(lines) > 1:
                dispute_line(session, claim, lines.pop().line, reason="r", by="a", at=self.now)
            check_claim(session, claim, centre_code="CENTRE", at=self.now)
            review_claim(session, claim, by="a", at=self.now)
            assert approve_claim(session, claim, by="b", at=self.now) == sum(line.amount for line in lines)
            if paid:
                disburse_claim(session, claim, bank_reference=str(claim), by="c", at=self.now)
            if claw:
                claw_back_line(session, claim, lines[0].line, reason="r", by="d", at=self.now)
            return lines, lines[0] if claw else None

        refused = PeriodClosed if period in self.periods else NothingToClaim if not worth else None
        if refused is not None:
            with pytest.raises(refused):
                self.run(act)
            return
        lines, clawed = self.run(act, "crash first" if crash else "once")
        self.periods.add(period)
        for line in lines:
            self.charges[line.charge_id].standing_lines += 1
            self.charges[line.charge_id].standing_worth += line.amount
        if clawed is not None and clawed.voucher_id is not None:
            self.lots[clawed.voucher_id].captured -= clawed.amount
            self.pool += clawed.amount

    def age(self, line: ClaimLineView) -> tuple[int, int]:
        """Place of a line by when its charge and its voucher came to be, the same in every replay."""
        charges, lots = list(self.charges), list(self.lots)
        return charges.index(line.charge_id), lots.index(line.voucher_id) if line.voucher_id else -1

    def tick(self) -> None:
        """A second passes, so that no two vouchers are of one age."""
        self.now += timedelta(seconds=1)

    def pays(self, lot: Lot) -> bool:
        """Whether a lot can be set aside now."""
        return lot.active and self.now < lot.expires_at

    def place(self, source: UUID) -> Lot | Purse:
        """The lot or purse with this id."""
        return self.lots[source] if source in self.lots else self.purses[source]

    def give_back(self, source: UUID, amount: int) -> None:
        """Money that returns to a lot or purse; what returns to an ended lot goes to the pool."""
        place = self.place(source)
        if isinstance(place, Lot) and not place.active:
            self.pool += amount
        else:
            place.available += amount

    def end(self, lot: Lot) -> None:
        """A lot ends: what is available goes to the pool."""
        self.pool, lot.available, lot.active = self.pool + lot.available, 0, False

    @invariant()
    def balances_are_the_models(self) -> None:
        """After every step each voucher, purse and the pool hold what the model says."""
        if not self.purses:
            return
        expected = {accounts.pool(self.slug, "once", "CNY").id: (self.pool, 0)}
        for voucher, lot in self.lots.items():
            expected[accounts.voucher(voucher, "CNY").id] = (lot.available, lot.held)
        for tenant, purse in self.purses.items():
            expected[accounts.wallet(tenant).id] = (purse.available, purse.held)
        with transaction(self.world.engine) as session:
            found = balances(session, list(expected))
        for account, (available, held) in expected.items():
            if account not in found:
                assert (available, held) == (0, 0)
                continue
            assert (found[account].available, found[account].debits_pending) == (available, held)

    def teardown(self) -> None:
        """The raw transfers recompute to the balances, and no bounded account was ever overdrawn."""
        if not self.purses:
            return
        with transaction(self.world.engine) as session:
            check_raw_transfers(session, self.slug, [*self.purses, *self.lots])


def check_raw_transfers(session: Session, slug: str, owners: list[UUID]) -> None:
    """Recompute accounts from nothing but the kinds, legs, amounts and hold references of their transfers."""
    prefixes = [f"programme/{slug}/%", *(f"enterprise/{owner}/%" for owner in owners)]
    prefixes += [f"voucher/{owner}%" for owner in owners]
    for account in session.execute(_ACCOUNTS, {"prefixes": prefixes}):
        posted, pending = {"debit": 0, "credit": 0}, {"debit": 0, "credit": 0}
        open_holds: dict[UUID, int] = {}
        for number, row in enumerate(session.execute(_RAW, {"account": account.id}), start=1):
            hold = row.hold_id or row.id
            posts, pends = _effect(row.kind, row.amount, open_holds.get(hold, 0))
            open_holds[hold] = open_holds.get(hold, 0) + pends
            posted[row.side] += posts
            pending[row.side] += pends
            assert row.sequence == number
            assert open_holds[hold] >= 0
            assert account.bound != "credit" or posted["debit"] + pending["debit"] <= posted["credit"]
        recomputed = (posted["debit"], posted["credit"], pending["debit"], pending["credit"])
        cached = (
            account.debits_posted,
            account.credits_posted,
            account.debits_pending,
            account.credits_pending,
        )
        assert recomputed == cached, account.name


def _effect(kind: str, amount: int, held: int) -> tuple[int, int]:
    """What a transfer posts, and by how much it changes what its hold has pending."""
    if kind in {"posted", "reversal"}:
        return amount, 0
    if kind in {"hold", "extend"}:
        return 0, amount
    if kind == "capture":
        return amount, -amount
    return 0, -held


_ACCOUNTS: Final = text("SELECT * FROM accounts WHERE name LIKE ANY (:prefixes) ORDER BY id")
_RAW: Final = text(
    "SELECT id, kind, amount, hold_id, 'debit' AS side, debit_sequence AS sequence"
    " FROM transfers WHERE debit = :account"
    " UNION ALL SELECT id, kind, amount, hold_id, 'credit', credit_sequence"
    " FROM transfers WHERE credit = :account ORDER BY sequence"
)
