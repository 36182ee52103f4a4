"""The whole money side of vouchers, step by step, beside a model that knows nothing of the ledger.

Every step may crash before its commit and may be repeated after it. The model books what the use cases said they
did; `check_balances` holds it against the ledger's balances.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Self, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.ids import derived_id
from ledger.reading import balances
from tests.vouchers.world import NOW, World
from vouchers import accounts
from vouchers.afterlife import expire_vouchers, recall_voucher
from vouchers.capturing import capture_charge
from vouchers.claims import make_claim
from vouchers.clawback import claw_back_line
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import lock_payers
from vouchers.errors import (
    ChargeBeyondHold,
    NoFunding,
    NothingToClaim,
    NotRestorable,
    PeriodClosed,
    PoolExhausted,
)
from vouchers.issuing import issue_voucher
from vouchers.reading import ClaimLineView, claim_view
from vouchers.redemption import extend_hold, give_back_holds, place_hold, release_hold
from vouchers.restoration import restore_charge
from vouchers.settlement import (
    advance_reserve,
    approve_claim,
    check_claim,
    disburse_claim,
    dispute_line,
    review_claim,
)
from vouchers.tables import Application, CoverageLine, Restoration, Voucher
from vouchers.wallets import deposit

T = TypeVar("T")
POOL: Final = 1_000_000_000
RESERVE: Final = 20_000_003
LOST_MS: Final = 1_000
"""Card time of every charge, so that a thousandth of it can be lost."""
USED: Final = ChargeFacts(model="MLU370", card_ms=LOST_MS)
FACES: Final = (1, 3, 7, 999, 1_000_003, 10_000_019, 50_000_017, 90_000_001, 300_000_007, 700_000_001)


class Crash(Exception):
    """The process died before its commit."""


@dataclass
class Lot:
    """Where a voucher's face value is, by the model."""

    tenant: UUID
    expires_at: datetime
    available: int
    held: int = 0
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
    held: dict[UUID, int] = field(default_factory=dict)
    ends: list[tuple[datetime | None, int]] = field(default_factory=list)


@dataclass
class Charge:
    """What a charge still stands for: by coverage line who paid how much, and which lines stand in a claim."""

    tenant: UUID
    cost: int
    paid: dict[UUID, tuple[UUID, int]]
    restored: int = 0
    given: dict[UUID, int] = field(default_factory=dict)
    standing: dict[UUID, int] = field(default_factory=dict)
    clawed_back: set[UUID] = field(default_factory=set)


@dataclass
class Model:
    """Where all money is."""

    now: datetime = NOW
    pool: int = POOL
    reserve: int = RESERVE
    lots: dict[UUID, Lot] = field(default_factory=dict)
    purses: dict[UUID, Purse] = field(default_factory=dict)
    jobs: dict[UUID, Job] = field(default_factory=dict)
    charges: dict[UUID, Charge] = field(default_factory=dict)
    stock: list[tuple[UUID, UUID, int]] = field(default_factory=list)
    periods: set[str] = field(default_factory=set)
    count: int = 0

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

    def waiting(self, tenant: UUID) -> int:
        """What of a tenant's charges could be claimed."""
        return sum(
            amount
            for charge in self.charges.values()
            for line, (source, amount) in charge.paid.items()
            if charge.tenant == tenant and source in self.lots and line not in charge.standing
        )


class Money:
    """A programme of ¥1,000 with a reserve, two tenants with money, vouchers, a running job and a charge each."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = Model()
        self.connection: Connection | None = None
        with self.step() as session:
            self.slug = world.programme(
                session,
                caps=[],
                budget={"clause": "§2", "cycle": "once", "amount": "1000.00"},
                validity={"clause": "§5", "days": 30},
                reserve={"clause": "§6", "amount": "1000.00"},
            )
            advance_reserve(session, self.slug, RESERVE, reference="1", by="o", at=NOW)
            self.model.purses = {world.enterprise(session): Purse() for _ in range(2)}
            for tenant in self.model.purses:
                self._stock(session, tenant)
        for which, amount in enumerate((900_000_001, 300_000_003)):
            self.deposit(which, amount, "once")
            for _ in range(2):
                self.issue(which * len(FACES), "once")  # what is left of the stock begins with the next one
            self.hold(which, 200_000_001, "once")
            self.capture(which, 50_000_017, late=False, how="once")

    def _stock(self, session: Session, tenant: UUID) -> None:
        """Approved applications that wait to be issued: one reviewed, the others as its reviews left it."""
        reviewed = session.get_one(Application, self.world.approved(session, tenant, self.slug, 1))
        columns = {column.name: getattr(reviewed, column.name) for column in Application.__table__.columns}
        for face in (30_000_007, 70_000_001, *FACES):
            application = self.name("application")
            changed = {"id": application, "requested": face, "granted": face}
            session.add(Application(**(columns | changed)))
            self.model.stock.append((application, tenant, face))
        session.flush()

    def fork(self, connection: Connection) -> Self:
        """The same money in a transaction of its own, for one story that will be undone."""
        story = copy.copy(self)
        story.model, story.connection = copy.deepcopy(self.model), connection
        return story

    @contextmanager
    def step(self) -> Iterator[Session]:
        """A Session for one use case: a transaction of its own, in a story a savepoint that is kept or undone."""
        if self.connection is None:
            with transaction(self.world.engine) as session:
                yield session
            return
        mode = "create_savepoint"
        with (
            Session(self.connection, join_transaction_mode=mode, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def run(self, act: Callable[[Session], T], how: str = "once") -> T:
        """Run a use case; crash before the first commit or repeat after it if asked."""
        if how == "crash first":
            with pytest.raises(Crash), self.step() as session:
                act(session)
                raise Crash
        with self.step() as session:
            first = act(session)
        if how == "twice":
            with self.step() as session:
                act(session)
        return first

    def name(self, noun: str) -> UUID:
        """A new id of this story."""
        self.model.count += 1
        return derived_id(noun, self.slug, self.model.count)

    def deposit(self, which: int, amount: int, how: str) -> None:
        tenant = list(self.model.purses)[which]
        reference = str(self.name("deposit"))
        self.run(lambda session: deposit(session, tenant, amount, reference, self.model.now), how)
        self.model.purses[tenant].available += amount

    def issue(self, which: int, how: str) -> None:
        self.model.now += timedelta(seconds=1)  # so that no two vouchers are of one age
        application, tenant, face = self.model.stock[which]

        def act(session: Session) -> tuple[UUID, datetime]:
            voucher = issue_voucher(session, application, by="officer", at=self.model.now)
            return voucher, session.get_one(Voucher, voucher).expires_at

        if face > self.model.pool:
            with pytest.raises(PoolExhausted):
                self.run(act)
            return
        voucher, expires_at = self.run(act, how)
        del self.model.stock[which]
        self.model.lots[voucher] = Lot(tenant, expires_at, face)
        self.model.pool -= face

    def hold(self, which: int, cost: int, how: str) -> None:
        tenant = list(self.model.purses)[which]
        job = self.name("job")
        self.model.jobs[job] = Job(tenant)
        at = self.model.now
        if not self._set_aside(
            job, cost, lambda session: place_hold(session, job, tenant, cost, USED, None, at), how
        ):
            del self.model.jobs[job]

    def extend(self, which: int, more: int, how: str) -> None:
        job = list(self.model.jobs)[which]
        total, at = self.model.jobs[job].total + more, self.model.now
        self._set_aside(job, more, lambda session: extend_hold(session, job, total, USED, at), how)

    def _set_aside(self, job: UUID, cost: int, act: Callable[[Session], Coverage], how: str) -> bool:
        """Check a hold against what the model says is there, and book it."""
        entry, now = self.model.jobs[job], self.model.now
        usable = [
            lot.available
            for lot in self.model.lots.values()
            if lot.tenant == entry.tenant and lot.active and now < lot.expires_at
        ]
        own = cost - min(cost * 3 // 10, sum(usable))
        if own > self.model.purses[entry.tenant].available:
            with pytest.raises(NoFunding):
                self.run(act)
            return False
        coverage = self.run(act, how)
        assert coverage.tenant_micros == own
        assert sum(line.amount_micros for line in coverage.lines) == cost
        ends = [self.model.lots[UUID(line.voucher)].expires_at for line in coverage.lines if line.voucher]
        for line in coverage.lines:
            if line.voucher or line.payer:
                source = UUID(line.voucher or line.payer)
                place = self.model.place(source)
                place.available, place.held = place.available - line.quantity, place.held + line.quantity
                entry.held[source] = entry.held.get(source, 0) + line.quantity
        entry.total += cost
        entry.ends.append((min(ends, default=None), cost))
        return True

    def capture(self, which: int, cost: int, *, late: bool, how: str) -> None:
        job = list(self.model.jobs)[which]
        entry, now = self.model.jobs[job], self.model.now
        used = now - timedelta(days=20) if late else now
        room = sum(left for end, left in entry.ends if end is None or used <= end)
        charge = self.name("charge")

        def act(session: Session) -> list[tuple[UUID, UUID | None, int, int]]:
            capture_charge(session, job, charge, cost, USED, now, used_until=used)
            lines = session.scalars(select(CoverageLine).where(CoverageLine.charge_id == charge))
            return [
                (line.id, line.voucher_id or line.payer_id, line.quantity, line.amount_micros) for line in lines
            ]

        if cost > room:
            with pytest.raises(ChargeBeyondHold):
                self.run(act)
            return
        lines = self.run(act, how)
        assert sum(amount for _, _, _, amount in lines) == cost
        paid = {line: (source, quantity) for line, source, quantity, _ in lines if source is not None}
        for source, amount in paid.values():
            entry.held[source] -= amount
            assert entry.held[source] >= 0
            self.model.place(source).held -= amount
        self.model.charges[charge] = Charge(entry.tenant, cost, paid)
        for index, (end, left) in enumerate(entry.ends):
            if end is None or used <= end:
                part = min(left, cost)
                entry.ends[index] = (end, left - part)
                cost -= part

    def release(self, which: int, how: str) -> None:
        job = list(self.model.jobs)[which]
        self.run(lambda session: release_hold(session, job, self.model.now), how)
        for source, amount in self.model.jobs.pop(job).held.items():
            self.model.place(source).held -= amount
            self.model.give_back(source, amount)

    def interrupt(self, which: int, how: str) -> None:
        """The job waits to run again: what was captured is all that stays set aside for it."""
        job = list(self.model.jobs)[which]
        entry, at = self.model.jobs[job], self.model.now

        def act(session: Session) -> int:
            lock_payers(session, [entry.tenant])
            return give_back_holds(session, [job], at)[job].cost_micros

        entry.total -= sum(left for _, left in entry.ends)
        assert self.run(act, how) == entry.total
        for source, amount in entry.held.items():
            self.model.place(source).held -= amount
            self.model.give_back(source, amount)
        entry.held, entry.ends = {}, []

    def wait(self, days: int, how: str) -> None:
        self.model.now += timedelta(days=days)

        def act(session: Session) -> None:
            while expire_vouchers(session, self.model.now):
                pass

        self.run(act, how)
        for lot in self.model.lots.values():
            if lot.active and lot.expires_at <= self.model.now:
                self.model.end(lot)

    def recall(self, which: int, how: str) -> None:
        voucher = [voucher for voucher, lot in self.model.lots.items() if lot.active][which]
        at = self.model.now
        self.run(lambda session: recall_voucher(session, voucher, by="o", reason="r", at=at), how)
        self.model.end(self.model.lots[voucher])

    def restore(self, which: int, lost_ms: int, how: str) -> None:
        """Lose a part of a charge; what each source got is read back, and must add up to the part."""
        charge, entry = list(self.model.charges.items())[which]

        def act(session: Session) -> int:
            at = self.model.now
            return restore_charge(session, charge, reason="r", by="hub", at=at, lost_ms=lost_ms)

        until = max(-(-entry.cost * lost_ms // LOST_MS), entry.restored)
        if entry.clawed_back and until > entry.restored:
            with pytest.raises(NotRestorable):
                self.run(act)
            return
        assert self.run(act, how) == until
        if until == entry.restored:
            return
        entry.restored = until
        for line, given in self._given_back(charge).items():
            source, outstanding = entry.paid[line]
            entry.paid[line] = (source, outstanding - given)
            assert outstanding >= given
            self.model.give_back(source, given)
        assert until < entry.cost or not any(amount for _, amount in entry.paid.values())
        self.model.reserve += sum(entry.standing.values())
        entry.standing.clear()

    def _given_back(self, charge: UUID) -> dict[UUID, int]:
        """By line what the newest restoration of a charge gave back."""
        query = (
            select(Restoration.line_id, Restoration.quantity)
            .join(CoverageLine, CoverageLine.id == Restoration.line_id)
            .where(CoverageLine.charge_id == charge, Restoration.kind == "restored")
            .order_by(Restoration.number)
        )
        with self.step() as session:
            totals: dict[UUID, int] = {}
            for line, quantity in session.execute(query):
                totals[line] = totals.get(line, 0) + quantity
        booked = self.model.charges[charge].given
        news = {line: total - booked.get(line, 0) for line, total in totals.items()}
        booked.update(totals)
        return news

    def settle(self, *, paid: bool, dispute: bool, claw: bool, how: str) -> None:
        """Claim everything captured, take a line out, approve and pay the rest, and take a line back."""
        model, at, period = self.model, self.model.now, f"{self.model.now:%Y-%m}"
        worth = sum(model.waiting(tenant) for tenant in model.purses)

        def act(session: Session) -> tuple[list[ClaimLineView], ClaimLineView | None]:
            claim = make_claim(session, self.slug, period, by="centre", at=at)
            view = claim_view(session, claim)
            assert view.amount == worth
            lines = list(view.lines)
            if dispute and len(lines) > 1:
                taken_out = max(lines, key=self._age)
                lines.remove(taken_out)
                dispute_line(session, claim, taken_out.line, reason="r", by="a", at=at)
            check_claim(session, claim, centre_code="CENTRE", at=at)
            review_claim(session, claim, by="a", at=at)
            assert approve_claim(session, claim, by="b", at=at) == sum(line.amount for line in lines)
            if paid:
                disburse_claim(session, claim, bank_reference=str(claim), by="c", at=at)
            clawed = min(lines, key=self._age) if claw else None
            if clawed is not None:
                claw_back_line(session, claim, clawed.line, reason="r", by="d", at=at)
            return lines, clawed

        refused = PeriodClosed if period in model.periods else NothingToClaim if not worth else None
        if refused is not None:
            with pytest.raises(refused):
                self.run(act)
            return
        lines, clawed = self.run(act, how)
        model.periods.add(period)
        model.now += timedelta(
            seconds=1
        )  # what is captured at a claim's own instant counts as left over from it
        for line in lines:
            drawn = min(model.reserve, line.amount) if paid else 0
            model.reserve -= drawn
            model.charges[line.charge_id].standing[line.coverage_line_id] = drawn
        if clawed is not None:
            charge = model.charges[clawed.charge_id]
            charge.clawed_back.add(clawed.coverage_line_id)
            model.reserve += charge.standing[clawed.coverage_line_id]
            charge.standing[clawed.coverage_line_id] = 0
            model.pool += clawed.amount

    def _age(self, line: ClaimLineView) -> tuple[int, int]:
        """Place of a line by when its charge and its voucher came to be, the same in every replay."""
        charges, lots = list(self.model.charges), list(self.model.lots)
        return charges.index(line.charge_id), lots.index(line.voucher_id) if line.voucher_id else -1

    def accounts(self) -> list[UUID]:
        """The accounts of the programme, its vouchers and its tenants."""
        named = [accounts.pool(self.slug, "once", "CNY"), accounts.disbursed(self.slug, accounts.CENTRE, "CNY")]
        of_programme = (accounts.claimed, accounts.payable, accounts.reserve, accounts.reserve_used)
        named += [account(self.slug, "CNY") for account in of_programme]
        for tenant in self.model.purses:
            named += [accounts.wallet(tenant), accounts.revenue(tenant)]
            named.append(accounts.claimable(self.slug, tenant, "CNY"))
        named += [accounts.voucher(voucher, "CNY") for voucher in self.model.lots]
        return [account.id for account in named]

    def check_balances(self) -> None:
        """Each voucher and purse, the pool, the reserve and what can be claimed hold what the model says."""
        model = self.model
        expected = {accounts.pool(self.slug, "once", "CNY").id: (model.pool, 0)}
        expected[accounts.reserve(self.slug, "CNY").id] = (model.reserve, 0)
        for voucher, lot in model.lots.items():
            expected[accounts.voucher(voucher, "CNY").id] = (lot.available, lot.held)
        for tenant, purse in model.purses.items():
            expected[accounts.wallet(tenant).id] = (purse.available, purse.held)
            expected[accounts.claimable(self.slug, tenant, "CNY").id] = (model.waiting(tenant), 0)
        with self.step() as session:
            found = balances(session, list(expected))
        for account, (available, held) in expected.items():
            if account not in found:
                assert (available, held) == (0, 0)
                continue
            assert (found[account].available, found[account].debits_pending) == (available, held)
