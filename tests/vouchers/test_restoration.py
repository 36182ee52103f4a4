"""Lost usage goes back to the lots it came from: in parts, once, out of claims, and never what is gone for good."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from kernel.database import transaction
from ledger.reading import balances
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers import accounts
from vouchers.afterlife import recall_voucher
from vouchers.capturing import capture_charge
from vouchers.claims import make_claim, resubmit_claim
from vouchers.clawback import claw_back_line
from vouchers.domain.coverage import Candidate, Plan
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.segments import Segment, Stretch, unwind
from vouchers.errors import ChargeClaimed, ChargeNotFound, LostTimeOutOfRange, NotRestorable
from vouchers.reading import claim_view, programme_totals
from vouchers.redemption import extend_hold, place_hold, release_hold
from vouchers.restoration import restore_charge
from vouchers.settlement import (
    advance_reserve,
    approve_claim,
    check_claim,
    disburse_claim,
    dispute_line,
    reconcile_claim,
    refuse_line,
    review_claim,
)
from vouchers.tables import CoverageLine, Restoration
from vouchers.wallets import set_budget

RESERVE = {"clause": "§5", "amount": "50.00"}
HOUR = ChargeFacts(model="MLU370", card_ms=3_600_000)


def restored(session: Session, place: Place, number: int = 1, lost_ms: int | None = None) -> int:
    """Whole yuan given back of a charge in all."""
    charge = place.charge(number)
    return restore_charge(session, charge, reason="node failed", by="hub", at=NOW, lost_ms=lost_ms) // YUAN


def approve(session: Session, claim: object) -> None:
    check_claim(session, claim, centre_code="CENTRE", at=NOW)  # type: ignore[arg-type]
    review_claim(session, claim, by="first", at=NOW)  # type: ignore[arg-type]
    approve_claim(session, claim, by="second", at=NOW)  # type: ignore[arg-type]


def net(session: Session, name: str, place: Place) -> int:
    """Whole yuan on one of the programme's accounts."""
    account = {
        "claimable": accounts.claimable(place.programme, place.tenant, "CNY"),
        "disbursed": accounts.disbursed(place.programme, accounts.CENTRE, "CNY"),
        "reserve": accounts.reserve(place.programme, "CNY"),
        "used": accounts.reserve_used(place.programme, "CNY"),
        "rounding": accounts.ROUNDING,
    }[name]
    found = balances(session, [account.id])
    return found[account.id].net // YUAN if account.id in found else 0


def test_lost_usage_goes_back_to_the_very_lots_it_came_from(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        first = place.voucher(session, 20, NOW - timedelta(days=1))
        second = place.voucher(session, 500)
        project = {
            "starts_at": NOW - timedelta(days=1),
            "ends_at": NOW + timedelta(days=1),
            "reference": "1",
            "by": "boss",
        }
        set_budget(session, place.tenant, "moulds", amount_micros=100 * YUAN, at=NOW, **project)  # type: ignore[arg-type]
        facts = type(FACTS)(model="MLU370", project="moulds")
        place_hold(session, place.job(), place.tenant, 100 * YUAN, facts, None, NOW)
        capture_charge(session, place.job(), place.charge(), 100 * YUAN, facts, NOW)
        release_hold(session, place.job(), NOW)
        lots = {place.left(session, voucher)[2] for voucher in (first, second)}
        assert lots == {20, 10}
        assert place.prepaid(session) == 930
        for _ in range(2):
            restore_charge(session, place.charge(), reason="node failed", by="hub", at=NOW)
            assert place.left(session, first) == ("active", 0, 0, 20)
            assert place.left(session, second) == ("active", 0, 0, 500)
            assert place.prepaid(session) == 1_000
        whole_budget = place_hold(session, place.job(2), place.tenant, 100 * YUAN, facts, [], NOW)
        assert whole_budget.tenant_micros == 100 * YUAN


def test_a_restored_share_of_an_ended_voucher_goes_on_to_the_pool(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 1_000)
        place.run(session, 100)
        recall_voucher(session, voucher, by="officer", reason="closed", at=NOW)
        before = place.pool(session)
        restore_charge(session, place.charge(), reason="node failed", by="hub", at=NOW)
        assert place.pool(session) == before + 30
        assert place.left(session, voucher) == ("recalled", 0, 0, 0)


def test_a_lost_part_goes_back_from_the_newest_lot_and_the_whole_in_parts_is_the_whole(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=1_000)
        older = place.voucher(session, 20, NOW - timedelta(days=1))
        newer = place.voucher(session, 500)
        place_hold(session, place.job(), place.tenant, 50 * YUAN, HOUR, None, NOW)
        extend_hold(session, place.job(), 100 * YUAN, ChargeFacts("MLU370", card_ms=7_200_000), NOW)
        capture_charge(
            session, place.job(), place.charge(), 100 * YUAN, ChargeFacts("MLU370", card_ms=7_200_000), NOW
        )
        release_hold(session, place.job(), NOW)
        # ¥50 took 15 of the older; the next ¥50 took its last 5, 10 of the newer and 35 of the purse.
        assert [place.left(session, lot)[2] for lot in (older, newer)] == [20, 10]
        for _ in range(2):
            assert restored(session, place, lost_ms=3_600_000) == 50
            assert [place.left(session, lot)[2] for lot in (older, newer)] == [15, 0]
            assert place.prepaid(session) == 1_000 - 35
        assert restored(session, place, lost_ms=1) == 50
        assert restored(session, place, lost_ms=5_400_000) == 75
        assert place.prepaid(session) == 1_000 - 17 - 1
        for _ in range(2):
            assert restored(session, place) == 100
        assert [place.left(session, lot) for lot in (older, newer)] == [
            ("active", 0, 0, 20),
            ("active", 0, 0, 500),
        ]
        assert place.prepaid(session) == 1_000
        assert net(session, "claimable", place) == 0


@pytest.mark.parametrize("lost_ms", [0, -1, 3_600_001])
def test_more_lost_time_than_was_charged_is_refused(world: World, lost_ms: int) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.run(session, 100, facts=HOUR)
        with pytest.raises(LostTimeOutOfRange):
            restored(session, place, lost_ms=lost_ms)
        with pytest.raises(ChargeNotFound):
            restored(session, place, number=2)
        assert place.prepaid(session) == 900


def test_a_restored_share_leaves_the_claim_under_review_and_its_rest_is_claimed_again(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 1_000)
        place.run(session, 100, facts=HOUR)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        assert restored(session, place, lost_ms=1_800_000) == 50
        (line,) = claim_view(session, claim).lines
        assert (line.state, line.reason, line.amount) == ("disputed", "node failed", 30 * YUAN)
        approve(session, claim)
        again = resubmit_claim(session, claim, evidence={}, by="centre", at=NOW)
        assert claim_view(session, again).amount == 15 * YUAN
        check_claim(session, again, centre_code="CENTRE", at=NOW)
        assert place.left(session, voucher) == ("active", 0, 15, 985)


@pytest.mark.parametrize("paid", [False, True])
def test_a_restored_share_of_an_approved_claim_is_unwound_and_fills_the_reserve(
    world: World,
    paid: bool,  # noqa: FBT001 - a parameter of the case
) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, reserve=RESERVE)
        voucher = place.voucher(session, 1_000)
        for number, yuan in ((1, 100), (2, 200)):
            place.run(session, yuan, number, NOW + timedelta(minutes=number), facts=HOUR)
        advance_reserve(session, place.programme, 50 * YUAN, reference="1", by="officer", at=NOW)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        approve(session, claim)
        if paid:
            assert disburse_claim(session, claim, bank_reference=f"b {claim}", by="c", at=NOW) == 40 * YUAN
        assert restored(session, place, 2, lost_ms=1_800_000) == 100
        assert place.left(session, voucher) == ("active", 0, 60, 940)
        # The reserve had paid the first line's 30 and 20 of the second's 60.
        assert net(session, "reserve", place) == (20 if paid else 50)
        assert net(session, "used", place) == (30 if paid else 0)
        assert net(session, "disbursed", place) == (30 if paid else 0)
        if not paid:
            assert disburse_claim(session, claim, bank_reference=f"b {claim}", by="c", at=NOW) == 0
            reconcile_claim(session, claim, received=0, statement="s", by="c", at=NOW)
        later = make_claim(session, place.programme, "2026-04", by="centre", at=NOW + timedelta(days=30))
        assert claim_view(session, later).amount == 30 * YUAN


def test_a_clawback_takes_what_a_restoration_left_and_makes_the_reserve_good(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, reserve=RESERVE)
        place.voucher(session, 1_000)
        place.run(session, 100, facts=HOUR)
        restored(session, place, lost_ms=1_800_000)
        advance_reserve(session, place.programme, 10 * YUAN, reference="1", by="officer", at=NOW)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        approve(session, claim)
        assert disburse_claim(session, claim, bank_reference=f"b {claim}", by="c", at=NOW) == 5 * YUAN
        assert (net(session, "reserve", place), net(session, "used", place)) == (0, 10)
        before = place.pool(session)
        for _ in range(2):
            claw_back_line(session, claim, 1, reason="wash usage", by="auditor", at=NOW)
        assert (net(session, "reserve", place), net(session, "used", place)) == (10, 0)
        assert place.pool(session) == before + 15
        assert _given_back(session, place.charge()) == [(1, 15 * YUAN), (2, 15 * YUAN)]
        assert programme_totals(session, place.programme).captured == 0
        with pytest.raises(NotRestorable):
            restored(session, place)


def _given_back(session: Session, charge: UUID) -> list[tuple[int, int]]:
    """Number and worth of what was given back of the public share of a charge."""
    rows = session.execute(
        select(Restoration.number, Restoration.amount_micros)
        .join(CoverageLine, CoverageLine.id == Restoration.line_id)
        .where(CoverageLine.charge_id == charge, CoverageLine.voucher_id.is_not(None))
        .order_by(Restoration.number)
    )
    return [(number, amount) for number, amount in rows]


def test_a_clawback_of_an_untouched_line_is_the_first_thing_given_back_of_its_charge(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 1_000)
        place.run(session, 100)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        approve(session, claim)
        claw_back_line(session, claim, 1, reason="wash usage", by="auditor", at=NOW)
        assert _given_back(session, place.charge()) == [(1, 30 * YUAN)]


def test_what_a_claim_was_refused_for_good_is_not_restored(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 1_000)
        place.run(session, 100)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        refuse_line(session, claim, 1, reason="not compute", by="first", at=NOW)
        with pytest.raises(ChargeClaimed):
            restored(session, place)
        assert place.prepaid(session) == 930


@pytest.mark.parametrize("refused", [False, True])
def test_a_line_that_is_decided_while_a_restoration_waits_for_its_claim_is_seen_as_decided(
    world: World,
    refused: bool,  # noqa: FBT001 - a parameter of the case
) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 1_000)
        place.run(session, 100)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)

    def restoring() -> int:
        with transaction(world.engine) as session:
            return restored(session, place)

    with ThreadPoolExecutor(1) as pool:
        with transaction(world.engine) as session:
            decide = refuse_line if refused else dispute_line
            decide(session, claim, 1, reason="r", by="first", at=NOW)
            waiting = pool.submit(restoring)
            with world.engine.connect() as watching:
                asked = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                while not waiting.done() and not watching.execute(asked).scalar_one():
                    watching.rollback()
        if refused:
            with pytest.raises(ChargeClaimed):
                waiting.result()
        else:
            assert waiting.result() == 100
    with transaction(world.engine) as session:
        assert place.left(session, voucher)[3] == (970 if refused else 1_000)
        assert place.prepaid(session) == (930 if refused else 1_000)


def lot(number: int, ratio: Fraction, limit: int, asset: str = "CNY") -> Candidate:
    return Candidate(str(number), str(number), "v", f"p{number}", "city", asset, ratio, limit, "§", (number,))


@given(
    st.lists(st.tuples(st.integers(1, 10), st.integers(1, 2_000)), max_size=3),
    st.lists(st.tuples(st.integers(1, 999), st.integers(0, 99)), min_size=1, max_size=4),
    st.lists(st.integers(0, 4_000), max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_parts_unwound_in_any_cut_add_up_to_what_was_taken(
    lots: list[tuple[int, int]], taken: list[tuple[int, int]], cuts: list[int]
) -> None:
    money = [lot(number, Fraction(tenths, 10), limit) for number, (tenths, limit) in enumerate(lots)]
    candidates = (lot(9, Fraction(1, 3), 150, "card_ms:M"), *money)
    stretches, total = {}, 0
    divisions = {}
    for segment, (cost, time) in enumerate(taken):
        plan = Plan(cost + 7, time + 5, candidates)
        divisions[segment] = Segment(plan, (plan.tenant_micros(cost + 7),))
        stretches[segment] = Stretch(3, 3 + cost, 2, 2 + time)
        total += cost
    points = sorted({min(cut, total) for cut in cuts} | {0, total})
    back: dict[tuple[int, int], int] = {}
    for old, new in pairwise(points):
        moved = 0
        for segment, part in unwind(stretches, old, new):
            before, after = divisions[segment].parts(*part.before), divisions[segment].parts(*part.after)
            moved += part.before[0] - part.after[0]
            for number, (high, low) in enumerate(zip(before.shares, after.shares, strict=True)):
                assert high.amount_micros >= low.amount_micros
                assert high.quantity >= low.quantity
                key = (segment, number)
                back[key] = back.get(key, 0) + high.quantity - low.quantity
        assert moved == new - old
    for segment, stretch in stretches.items():
        end = divisions[segment].parts(stretch.until_micros, stretch.until_ms)
        start = divisions[segment].parts(stretch.from_micros, stretch.from_ms)
        for number, (high, low) in enumerate(zip(end.shares, start.shares, strict=True)):
            assert back.get((segment, number), 0) == high.quantity - low.quantity


def test_a_charge_of_four_millionths_goes_back_one_by_one(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session, yuan=1)
        voucher = place.voucher(session, 1)
        timed = ChargeFacts(model="MLU370", card_ms=4)
        place_hold(session, place.job(), place.tenant, 4, timed, None, NOW)
        capture_charge(session, place.job(), place.charge(), 4, timed, NOW)
        release_hold(session, place.job(), NOW)
        sources = [accounts.voucher(voucher, "CNY"), accounts.wallet(place.tenant)]
        for lost, taken in enumerate(([1, 3], [0, 3], [0, 2], [0, 1], [0, 0])):
            if lost:
                restore_charge(session, place.charge(), reason="lost", by="hub", at=NOW, lost_ms=lost)
            left = accounts.available(session, sources)
            assert [YUAN - left[source.id] for source in sources] == taken
        given = select(func.sum(Restoration.quantity)).join(
            CoverageLine, CoverageLine.id == Restoration.line_id
        )
        assert session.scalar(given.where(CoverageLine.charge_id == place.charge())) == 4


def test_a_restoration_that_is_repeated_leaves_the_claim_made_since_alone(world: World) -> None:
    timed = ChargeFacts(model="MLU370", card_ms=1_000)
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 100)
        place.run(session, 100, facts=timed)
        restore_charge(session, place.charge(), reason="lost", by="hub", at=NOW, lost_ms=500)
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        again = restore_charge(session, place.charge(), reason="lost", by="hub", at=NOW, lost_ms=500)
        assert again == 50 * YUAN
        (line,) = claim_view(session, claim).lines
        assert (line.state, line.amount, line.sampled) == ("claimed", 15 * YUAN, False)
        whole = restore_charge(session, place.charge(), reason="lost", by="hub", at=NOW, lost_ms=1_000)
        assert whole == 100 * YUAN
        of_lines = select(func.sum(Restoration.amount_micros)).join(
            CoverageLine, CoverageLine.id == Restoration.line_id
        )
        assert session.scalar(of_lines.where(CoverageLine.charge_id == place.charge())) == 100 * YUAN
