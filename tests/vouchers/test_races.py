"""Many clients at once on the real database: one voucher, one budget, one hold, one pool, one charge, one claim."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.errors import HubError
from kernel.ids import derived_id
from ledger.reading import balances
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers import accounts
from vouchers.afterlife import expire_vouchers, recall_voucher
from vouchers.capturing import capture_charge
from vouchers.claims import make_claim
from vouchers.clawback import claw_back_line
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import enterprise_facts, record_controller
from vouchers.issuing import issue_voucher
from vouchers.reading import claim_view, list_vouchers
from vouchers.redemption import extend_hold, place_hold, release_hold
from vouchers.restoration import restore_charge
from vouchers.settlement import approve_claim, check_claim, review_claim
from vouchers.tables import Claim, Voucher
from vouchers.wallets import allot_part, set_budget, wallet_balance

pytestmark = pytest.mark.slow

CLIENTS = 64
AT_ONCE = 32
"""Connections; the other clients queue for one, as behind a pool in production."""


def race(world: World, act: Callable[[Session, int], object], clients: int = CLIENTS) -> Counter[str]:
    """Run an act in that many clients at once; how often each outcome came: `ok` or the refusal's code."""
    start = Barrier(min(clients, AT_ONCE))

    def client(number: int) -> str:
        if number < AT_ONCE:
            start.wait(timeout=30)
        try:
            with transaction(world.engine) as session:
                act(session, number)
        except HubError as refused:
            return refused.code
        return "ok"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(client, range(clients)))


@pytest.fixture
def place(world: World) -> Place:
    with transaction(world.engine) as session:
        return world.place(session, yuan=1_000)


def test_64_clients_on_one_voucher_and_one_purse_hold_no_more_than_there_is(place: Place) -> None:
    # Each job costs ¥10: the voucher's ¥90 pay ¥3 for 30 jobs, ¥7 each come from ¥350; then ¥10 each: 14 jobs.
    with transaction(place.world.engine) as session:
        voucher = place.voucher(session, 90)
        place_hold(session, place.job(99), place.tenant, 650 * YUAN, FACTS, [], NOW)
    outcomes = race(
        place.world,
        lambda session, number: place_hold(
            session, place.job(number), place.tenant, 10 * YUAN, FACTS, None, NOW
        ),
    )
    assert outcomes == {"ok": 44, "no_funding": 20}
    with transaction(place.world.engine) as session:
        assert place.left(session, voucher) == ("active", 90, 0, 0)
        assert place.prepaid(session) == 350 - 30 * 7 - 14 * 10


def test_64_clients_on_one_budget_spend_no_more_than_it(place: Place) -> None:
    moulds = ChargeFacts(model="MLU370", project="moulds")
    with transaction(place.world.engine) as session:
        set_budget(
            session,
            place.tenant,
            "moulds",
            starts_at=NOW,
            ends_at=NOW + timedelta(days=1),
            amount_micros=105 * YUAN,
            reference="1",
            by="boss",
            at=NOW,
        )
    outcomes = race(
        place.world,
        lambda session, number: place_hold(
            session, place.job(number), place.tenant, 10 * YUAN, moulds, None, NOW
        ),
    )
    assert outcomes == {"ok": 10, "budget_spent": 54}


def test_64_clients_on_one_hold_capture_no_more_than_it(place: Place) -> None:
    with transaction(place.world.engine) as session:
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
    outcomes = race(
        place.world,
        lambda session, number: capture_charge(
            session, place.job(), place.charge(number), 3 * YUAN, FACTS, NOW
        ),
    )
    assert outcomes == {"ok": 33, "charge_beyond_hold": 31}


def test_one_charge_is_captured_once_by_64_clients(place: Place) -> None:
    with transaction(place.world.engine) as session:
        voucher = place.voucher(session, 90)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
    outcomes = race(
        place.world,
        lambda session, _: capture_charge(session, place.job(), place.charge(), 10 * YUAN, FACTS, NOW),
    )
    assert outcomes == {"ok": 64}
    with transaction(place.world.engine) as session:
        assert place.left(session, voucher) == ("active", 27, 3, 60)


def test_one_reversal_by_64_clients_is_one(place: Place) -> None:
    with transaction(place.world.engine) as session:
        place.voucher(session, 90)
        place.run(session, 100)
    outcomes = race(
        place.world,
        lambda session, _: restore_charge(session, place.charge(), reason="lost", by="hub", at=NOW),
    )
    assert outcomes == {"ok": 64}
    with transaction(place.world.engine) as session:
        assert place.prepaid(session) == 1_000


def test_one_clawback_by_32_clients_is_one(place: Place) -> None:
    with transaction(place.world.engine) as session:
        place.voucher(session, 90)
        place.run(session, 100)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        check_claim(session, claim, centre_code="C", at=NOW)
        review_claim(session, claim, by="a", at=NOW)
        approve_claim(session, claim, by="b", at=NOW)
        before = place.pool(session)
    outcomes = race(
        place.world,
        lambda session, _: claw_back_line(session, claim, 1, reason="wash", by="auditor", at=NOW),
        AT_ONCE,
    )
    assert outcomes == {"ok": 32}
    with transaction(place.world.engine) as session:
        assert place.pool(session) == before + 30


def test_what_is_given_back_while_claims_are_made_is_never_claimed(place: Place) -> None:
    """Write-skew probe: half the clients claim, half give half of a charge back."""
    facts = ChargeFacts(model="MLU370", card_ms=2)
    with transaction(place.world.engine) as session:
        place.voucher(session, 900)
        for number in range(1, 17):
            place.run(session, 10, number, facts=facts)

    def act(session: Session, number: int) -> None:
        if number % 2:
            charge = place.charge(number // 2 + 1)
            restore_charge(session, charge, reason="lost", by="hub", at=NOW, lost_ms=1)
        else:
            make_claim(session, place.programme, "2026-03", by="centre", at=NOW)

    assert race(place.world, act, AT_ONCE) == {"ok": AT_ONCE}
    with transaction(place.world.engine) as session:
        claim = session.scalars(select(Claim).where(Claim.slug == place.programme)).one()
        lines = claim_view(session, claim.id).lines
        standing = [line.amount for line in lines if line.state == "claimed"]
        waiting = accounts.claimable(place.programme, place.tenant, "CNY")
        left = balances(session, [waiting.id])[waiting.id].net
        assert sum(standing) + left == 16 * 10 * YUAN * 3 // 10 // 2
        # Whatever was given back in time was claimed at half, and whatever later left the claim again.
        assert all(line.amount in {3 * YUAN, 3 * YUAN // 2} for line in lines)
        assert all(line.amount == 3 * YUAN // 2 for line in lines if line.state == "claimed")


def test_one_claim_is_made_by_32_clients(place: Place) -> None:
    with transaction(place.world.engine) as session:
        place.voucher(session, 90)
        place.run(session, 100)
    outcomes = race(
        place.world,
        lambda session, _: make_claim(session, place.programme, "2026-03", by="centre", at=NOW),
        AT_ONCE,
    )
    assert outcomes == {"ok": 32}
    with transaction(place.world.engine) as session:
        count = session.scalar(select(func.count()).where(Claim.slug == place.programme))
        assert count == 1


def test_issuing_beyond_the_pool_is_impossible_for_64_officers(world: World) -> None:
    with transaction(world.engine) as session:
        slug = world.programme(session, budget={"clause": "§2", "cycle": "year", "amount": "100.00"}, caps=[])
        approved = [world.approved(session, world.enterprise(session), slug, 10 * YUAN) for _ in range(CLIENTS)]
    outcomes = race(
        world, lambda session, number: issue_voucher(session, approved[number], by="officer", at=NOW)
    )
    assert outcomes == {"ok": 10, "pool_exhausted": 54}
    with transaction(world.engine) as session:
        pool = accounts.pool(slug, "2026", "CNY")
        assert balances(session, [pool.id])[pool.id].available == 0
        issued = session.scalar(select(func.sum(Voucher.face)).where(Voucher.slug == slug))
        assert issued == 100 * YUAN


def test_a_cap_of_one_controller_is_not_exceeded_by_8_officers(world: World) -> None:
    caps = [{"clause": "§4", "per": "controller", "cycle": "year", "amount": "35.00"}]
    with transaction(world.engine) as session:
        slug = world.programme(session, caps=caps)
        tenants = [world.enterprise(session) for _ in range(8)]
        for tenant in tenants:
            code = enterprise_facts(session, tenant).credit_code
            record_controller(session, code, f"owner of {slug}", by="o", at=NOW)
        approved = [world.approved(session, tenant, slug, 10 * YUAN) for tenant in tenants]
    outcomes = race(
        world, lambda session, number: issue_voucher(session, approved[number], by="officer", at=NOW), 8
    )
    assert outcomes == {"ok": 3, "cap_exceeded": 5}


def test_parts_allotted_at_once_never_exceed_the_voucher(place: Place) -> None:
    with transaction(place.world.engine) as session:
        voucher = place.voucher(session, 100)
    outcomes = race(
        place.world,
        lambda session, number: allot_part(
            session,
            place.tenant,
            voucher,
            f"project-{number}",
            30 * YUAN,
            reference="1",
            by="boss",
            at=NOW,
        ),
        AT_ONCE,
    )
    assert outcomes == {"ok": 3, "insufficient_funds": 29}


def test_everything_at_once_ends_without_deadlock_and_adds_up(world: World) -> None:
    """Write-skew probe: holds, extensions, captures, releases, recalls and expiry on shared vouchers and payers."""
    with transaction(world.engine) as session:
        places = [world.place(session) for _ in range(2)]
        vouchers = {place.tenant: [place.voucher(session, 40) for _ in range(3)] for place in places}

    def act(session: Session, number: int) -> None:
        place = places[number % 2]
        job = derived_id("job", place.tenant, number)
        if number % 16 == 7:
            recall_voucher(session, vouchers[place.tenant][number % 3], by="o", reason="r", at=NOW)
            return
        if number % 16 == 9:
            expire_vouchers(session, NOW)
            return
        place_hold(session, job, place.tenant, 20 * YUAN, FACTS, None, NOW)
        extend_hold(session, job, 30 * YUAN, FACTS, NOW)
        capture_charge(session, job, place.charge(number), 25 * YUAN, FACTS, NOW)
        release_hold(session, job, NOW)

    outcomes = race(world, act, 96)
    assert set(outcomes) <= {"ok", "no_funding"}
    with transaction(world.engine) as session:
        for place in places:
            views = list_vouchers(session, enterprise_id=place.tenant)
            assert [view.held for view in views] == [0, 0, 0]
            spent = 1_000 * YUAN - wallet_balance(session, place.tenant).prepaid_available_micros
            paid = sum(view.captured for view in views)
            assert (spent + paid) % (25 * YUAN) == 0
            assert spent + paid > 0
