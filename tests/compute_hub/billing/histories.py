"""Random histories of a firm's usage: told by hypothesis, played on the real database, judged by own arithmetic.

A history is a list of steps. Whatever a step may not do at its time is refused by the hub and passed over; what may
happen at any time (a biller that is killed in the middle of a statement, a clock that steps) happens at any time.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from compute_hub.billing.corrections import correct_charge
from compute_hub.billing.domain.rate_cards import RateCard
from compute_hub.billing.invoicing import close_month, credit_invoice, tenants_to_close
from compute_hub.billing.rates import Setting, set_card
from kernel.database import transaction
from kernel.errors import HubError
from kernel.ids import new_id
from scheduler.node.protocol import UsageRecord
from tests.compute_hub.billing.house import HOUR_MS, NOW, PRICE, YUAN, House
from vouchers.claims import make_claim
from vouchers.restoration import restore_charge

DEPOSIT = 100_000 * YUAN
FACE = 3 * YUAN
MODELS = tuple(PRICE)
BY = new_id()
_instants = itertools.count(1)
_LATEST = NOW + timedelta(days=200)


class Killed(Exception):
    """The biller's process is gone."""


@dataclass
class Attempt:
    """One try of a job: its records, which of them have arrived, and what became of it."""

    model: str
    records: list[UsageRecord]
    arrived: set[int] = field(default_factory=set)
    lost: bool = False


@dataclass
class Told:
    """A job and its attempts as the history told them."""

    job_id: UUID
    attempts: list[Attempt]
    ended: bool = False


class History:
    """One firm with a voucher of ¥3 and much money, in a house that others used before it.

    Args:
        house: nodes and prices; its tenant becomes this firm.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.at = NOW
        self.jobs: list[Told] = []
        self.closed = 0
        with transaction(house.engine) as session:
            house.tenant = house.world.enterprise(session)
            house.world.fund(session, house.tenant, DEPOSIT // YUAN)
            self.slug = house.world.programme(session)
            self.voucher = house.world.voucher(session, house.tenant, self.slug, FACE)

    def step(self, kind: str, number: int, amount: int) -> None:
        """One step; what it does depends on two free numbers."""
        getattr(self, f"_{kind}")(number, amount)

    def _begin(self, number: int, amount: int) -> None:
        """A job starts; its meter will cut so many records, with lengths drawn from the numbers."""
        model = MODELS[number % len(MODELS)]
        job_id = self.house.submit(vouchers=None)
        assert self._admit(job_id, model)
        self.jobs.append(Told(job_id, [Attempt(model, self._records(job_id, 1, number, amount))]))

    def _admit(self, job_id: UUID, model: str) -> bool:
        """At an instant of its own, because the house has one card of a model and sells it once at a time."""
        return self.house.admit(job_id, model, self.at + timedelta(microseconds=next(_instants))) is None

    def _records(self, job_id: UUID, attempt: int, number: int, amount: int) -> list[UsageRecord]:
        lengths = [1 + (amount * (k + 3) + number * 7919) % 600_011 for k in range(1 + number % 4)]
        step_ms = (number % 3 - 1) * HOUR_MS  # the node's wall clock is an hour early or late
        offsets = [sum(lengths[:k]) for k in range(len(lengths))]
        return [
            self.house.record(
                job_id,
                k,
                length,
                attempt=attempt,
                offset_ms=offset,
                started_unix_ms=int(self.at.timestamp() * 1000) + step_ms,
                final=k == len(lengths) - 1,
            )
            for k, (length, offset) in enumerate(zip(lengths, offsets, strict=True))
        ]

    def _deliver(self, number: int, amount: int) -> None:
        """Some record arrives, perhaps again, in any order."""
        waiting = [attempt for told in self.jobs for attempt in told.attempts]
        if waiting:
            attempt = waiting[number % len(waiting)]
            k = amount % len(attempt.records)
            self._meter(attempt, k)

    def _meter(self, attempt: Attempt, k: int) -> None:
        self.house.meter(attempt.records[k], attempt.records[k], at=self.at)
        attempt.arrived.add(k)

    def _lose(self, number: int, amount: int) -> None:
        """The node is lost and the job starts again."""
        going = [told for told in self.jobs if not told.ended]
        if not going:
            return
        told = going[number % len(going)]
        self.house.lose(told.job_id)
        told.attempts[-1].lost = True
        model = MODELS[amount % len(MODELS)]
        assert self._admit(told.job_id, model)
        records = self._records(told.job_id, len(told.attempts) + 1, number, amount)
        told.attempts.append(Attempt(model, records))

    def _end(self, number: int, _amount: int) -> None:
        going = [told for told in self.jobs if not told.ended]
        if going:
            told = going[number % len(going)]
            self.house.end(told.job_id, self.at)
            told.ended = True

    def _bill(self, _number: int, _amount: int) -> None:
        self.house.bill(self.at)

    def _kill(self, number: int, _amount: int) -> None:
        """A biller dies at its n-th statement; its database connection with it."""
        try:
            with dying_at(self.house, 1 + number % 120):
                self.house.bill(self.at)
        except Killed:
            return

    def _wait(self, number: int, amount: int) -> None:
        """Time passes, up to ten days; the hub's clock may step an hour back."""
        self.at = min(_LATEST, self.at + timedelta(minutes=amount % 14_400))
        if number % 3 == 0:
            self.at -= timedelta(hours=1)

    def _correct(self, number: int, amount: int) -> None:
        """A charge is rated anew by an agreement signed late."""
        charge = self._some_charge(number)
        if charge is None:
            return
        model = self._one("SELECT model FROM charges WHERE id = :x", charge)
        card = RateCard.from_json({"price_cny_per_card_hour": f"{1 + amount % 30}.{number % 1000:03d}001"})
        with transaction(self.house.engine) as session:
            setting = Setting(
                model,
                card,
                _LATEST + timedelta(days=number % 400),
                tenant_id=self.house.tenant,
                agreement="late",
            )
            try:
                rate_id = set_card(session, setting, by=BY, at=self.at).id
            except HubError:
                session.rollback()
                return
        with transaction(self.house.engine) as session:
            try:
                correct_charge(session, charge, rate_id, reason="signed late", by=BY, at=self.at)
            except HubError:
                session.rollback()

    def _restore(self, number: int, amount: int) -> None:
        charge = self._some_charge(number)
        if charge is None:
            return
        with transaction(self.house.engine) as session:
            try:
                restore_charge(
                    session, charge, reason="a fault", by="operator", at=self.at, lost_ms=1 + amount % 60_000
                )
            except HubError:
                session.rollback()

    def _claim(self, _number: int, _amount: int) -> None:
        with transaction(self.house.engine) as session:
            try:
                make_claim(session, self.slug, f"{self.at:%Y-%m}", by="operator", at=self.at)
            except HubError:
                session.rollback()

    def _close(self, _number: int, _amount: int) -> None:
        """The month before this one is closed."""
        month = f"{self.at.replace(day=1) - timedelta(days=1):%Y-%m}"
        with transaction(self.house.engine) as session:
            try:
                close_month(session, self.house.tenant, month, by=BY, at=self.at)
            except HubError:
                session.rollback()

    def _credit(self, number: int, _amount: int) -> None:
        invoices = self._ids(
            "SELECT id FROM invoices WHERE tenant_id = :x AND kind = 'invoice' ORDER BY number"
        )
        if not invoices:
            return
        with transaction(self.house.engine) as session:
            try:
                credit_invoice(
                    session, invoices[number % len(invoices)], reason="given back", by=BY, at=self.at
                )
            except HubError:
                session.rollback()

    def finish(self) -> None:
        """Everything arrives in the end, is billed, invoiced and credited."""
        for told in self.jobs:
            for attempt in told.attempts:
                for k in range(len(attempt.records)):
                    self._meter(attempt, k)
            if not told.ended:
                self.house.end(told.job_id, self.at)
                told.ended = True
        for _ in range(2):
            self.at += timedelta(days=1)
            self.house.bill(self.at)
        self.at = _LATEST + timedelta(days=40)
        with transaction(self.house.engine) as session:
            tenants = tenants_to_close(session, "2026-10")
            if self.house.tenant in tenants:
                close_month(session, self.house.tenant, "2026-10", by=BY, at=self.at)
        for invoice in self._ids("SELECT id FROM invoices WHERE tenant_id = :x AND kind = 'invoice'"):
            with transaction(self.house.engine) as session:
                try:
                    credit_invoice(session, invoice, reason="given back", by=BY, at=self.at)
                except HubError:
                    session.rollback()

    def _some_charge(self, number: int) -> UUID | None:
        charges = self._ids("SELECT id FROM charges WHERE tenant_id = :x ORDER BY job_id, n")
        return charges[number % len(charges)] if charges else None

    def _ids(self, query: str) -> list[UUID]:
        with Session(self.house.engine) as session:
            return list(session.scalars(text(query), {"x": self.house.tenant}))

    def _one(self, query: str, value: object) -> Any:  # noqa: ANN401 - whatever the query asks for
        with Session(self.house.engine) as session:
            return session.scalars(text(query), {"x": value}).one()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows about this firm; `:x` is its tenant."""
        with Session(self.house.engine) as session:
            return [tuple(row) for row in session.execute(text(query), {"x": self.house.tenant})]


@contextmanager
def dying_at(house: House, statement: int) -> Iterator[None]:
    """Raise Killed before the n-th statement from here on, and roll its transaction back."""
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            raise Killed

    event.listen(house.engine, "before_cursor_execute", count)
    try:
        yield
    finally:
        event.remove(house.engine, "before_cursor_execute", count)
