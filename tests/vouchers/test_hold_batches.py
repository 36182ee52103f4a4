"""Many holds in one call: each on what those before it left, each refused by itself, few statements, never too much."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import Engine, event

from kernel.database import transaction
from kernel.errors import HubError
from kernel.ids import derived_id
from ledger.audit import audit
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers.afterlife import recall_voucher
from vouchers.capturing import Capture, release_rest, take_charges
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import lock_payers
from vouchers.holding import HoldRequest, place_holds
from vouchers.open_holds import open_holds, write_holds
from vouchers.redemption import held_coverage, place_hold, quote
from vouchers.wallets import set_budget

MOULDS = ChargeFacts(model="MLU370", project="moulds")


def ask(
    place: Place, number: int, yuan: int, facts: ChargeFacts = FACTS, *, extends: bool = False
) -> HoldRequest:
    return HoldRequest(
        job_id=place.job(number),
        tenant_id=place.tenant,
        cost_micros=yuan * YUAN,
        facts=facts,
        voucher_ids=None,
        usage_until=NOW,
        extends=extends,
    )


def codes(outcomes: list[Coverage | HubError]) -> list[str]:
    return [outcome.code if isinstance(outcome, HubError) else "ok" for outcome in outcomes]


@contextmanager
def counted_statements(engine: Engine) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def place(world: World) -> Place:
    with transaction(world.engine) as session:
        return world.place(session, yuan=100)


def limit(place: Place, yuan: int) -> None:
    with transaction(place.world.engine) as session:
        set_budget(
            session,
            place.tenant,
            "moulds",
            starts_at=NOW,
            ends_at=NOW + timedelta(days=1),
            amount_micros=yuan * YUAN,
            reference="1",
            by="boss",
            at=NOW,
        )


def test_a_batch_gives_each_job_what_it_would_get_alone_after_those_before_it(world: World) -> None:
    found = []
    for together in (True, False):
        with transaction(world.engine) as session:
            place = world.place(session, yuan=100)
            place.voucher(session, 9)
        asked = [ask(place, number, yuan) for number, yuan in ((1, 20), (2, 20), (3, 200), (4, 50), (5, 20))]
        with transaction(world.engine) as session:
            if together:
                outcomes = place_holds(session, asked, NOW)
            else:
                outcomes = [place_holds(session, [one], NOW)[0] for one in asked]
        parts = [
            (entry.cost_micros, entry.public_micros, entry.tenant_micros)
            if isinstance(entry, Coverage)
            else entry.facts
            for entry in outcomes
        ]
        found.append((codes(outcomes), parts))
    assert found[0] == found[1]
    assert found[0][0] == ["ok", "ok", "no_funding", "ok", "no_funding"]


def test_one_refusal_of_each_kind_leaves_the_others_of_the_batch_alone(place: Place) -> None:
    stranger = HoldRequest(place.job(7), place.job(7), YUAN, FACTS, None, NOW, extends=False)
    named = HoldRequest(place.job(8), place.tenant, YUAN, FACTS, [place.job(8)], NOW, extends=False)
    with transaction(place.world.engine) as session:
        place_hold(session, place.job(1), place.tenant, YUAN, FACTS, None, NOW)
        outcomes = place_holds(
            session,
            [
                stranger,
                ask(place, 1, 1),
                ask(place, 2, 10),
                ask(place, 3, 0),
                named,
                ask(place, 4, 10, extends=True),
                ask(place, 5, 1000),
                ask(place, 6, 89),
            ],
            NOW,
        )
    refused = ["enterprise_not_found", "hold_differs", "ok", "cost_out_of_range"]
    assert codes(outcomes) == [*refused, "voucher_not_found", "hold_not_found", "no_funding", "ok"]
    with transaction(place.world.engine) as session:
        assert held_coverage(session, place.job(6), segment=0).tenant_micros == 89 * YUAN
        assert place.prepaid(session) == 0
        assert audit(session).differences == ()


def test_first_holds_and_extensions_of_one_batch_count_against_the_same_budget(place: Place) -> None:
    limit(place, 30)
    with transaction(place.world.engine) as session:
        place_holds(session, [ask(place, 1, 5, MOULDS)], NOW)
    with transaction(place.world.engine) as session:
        outcomes = place_holds(
            session,
            [ask(place, 1, 15, MOULDS, extends=True), ask(place, 2, 16, MOULDS), ask(place, 3, 15, MOULDS)],
            NOW,
        )
    assert codes(outcomes) == ["ok", "budget_spent", "ok"]


def test_a_hundred_holds_take_as_many_statements_as_two(world: World) -> None:
    counts = []
    for many in (2, 100):
        places = []
        with transaction(world.engine) as session:
            for _ in range(4):
                places.append(world.place(session, yuan=1000))
                places[-1].voucher(session, 90)
                quote(session, places[-1].tenant, YUAN, FACTS, None, NOW)
        with transaction(world.engine) as session, counted_statements(world.engine) as seen:
            asked = [ask(places[number % 4 if many > 2 else 0], number, 3) for number in range(many)]
            assert set(codes(place_holds(session, asked, NOW))) == {"ok"}
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 10


@pytest.mark.slow
def test_batches_of_many_sessions_against_one_budget_and_crossed_tenants_never_spend_more_and_never_lock_up(
    world: World,
) -> None:
    with transaction(world.engine) as session:
        first, second = world.place(session, yuan=10_000), world.place(session, yuan=10_000)
    for place in (first, second):
        limit(place, 105)
    start = Barrier(16)

    def client(number: int) -> Counter[str]:
        start.wait(timeout=30)
        mixed = [
            ask(place, 10 * number + index, 1 + index, MOULDS)
            for index in range(5)
            for place in ((first, second) if number % 2 else (second, first))
        ]
        with transaction(world.engine) as session:
            return Counter(codes(place_holds(session, mixed, NOW)))

    with ThreadPoolExecutor(16) as pool:
        outcomes = sum(pool.map(client, range(16)), Counter[str]())
    assert sum(outcomes.values()) == 160
    assert set(outcomes) == {"ok", "budget_spent"}
    for place in (first, second):
        with transaction(world.engine) as session:
            held = 10_000 - place.prepaid(session)
            assert 100 < held <= 105
            assert audit(session).differences == ()


@pytest.mark.slow
def test_batches_of_captures_and_releases_race_with_a_recall_and_lose_nothing(world: World) -> None:
    with transaction(world.engine) as session:
        first, second = world.place(session, yuan=1000), world.place(session, yuan=1000)
        vouchers = [place.voucher(session, 90) for place in (first, second)]
        jobs = [ask(place, number, 10) for number in range(20) for place in (first, second)]
        assert set(codes(place_holds(session, jobs, NOW))) == {"ok"}
    start = Barrier(6)

    def capture(number: int) -> None:
        start.wait(timeout=30)
        mine = [request for n, request in enumerate(jobs) if n // 2 % 4 == number]
        with transaction(world.engine) as session:
            lock_payers(session, [place.tenant for place in (first, second)])
            holds = open_holds(session, [], releasing=[request.job_id for request in mine])
            for request in mine:
                charge = Capture(derived_id("charge", request.job_id), 7 * YUAN, FACTS, NOW)
                take_charges(holds, request.job_id, [charge], NOW)
                release_rest(holds, request.job_id)
            write_holds(session, holds, NOW)

    def recall(number: int) -> None:
        start.wait(timeout=30)
        with transaction(world.engine) as session:
            recall_voucher(session, vouchers[number], by="officer", reason="race", at=NOW)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: capture(n) if n < 4 else recall(n - 4), range(6)))
    with transaction(world.engine) as session:
        assert audit(session).differences == ()
        for place, voucher in zip((first, second), vouchers, strict=True):
            state, held, captured, remaining = place.left(session, voucher)
            assert (state, held, remaining) == ("recalled", 0, 0)
            assert captured * YUAN + (1000 - place.prepaid(session)) * YUAN == 20 * 7 * YUAN
