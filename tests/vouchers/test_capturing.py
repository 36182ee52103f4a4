"""Charges at their edges: what none can cost, what is set aside for part of one, card time across segments."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.money import MICROS_MAX
from ledger.reading import balances
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers import accounts
from vouchers.afterlife import recall_voucher
from vouchers.capturing import Capture, capture_charge, coverage_of, release_rest, take_charges
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.terms import MS_PER_HOUR
from vouchers.errors import ChargeBeyondHold, ChargeFactsDiffer, ChargeNotFound, CostOutOfRange, HoldNotFound
from vouchers.open_holds import open_holds, write_holds
from vouchers.redemption import extend_hold, place_hold, quote, release_hold
from vouchers.restoration import restore_charge
from vouchers.tables import ChargeStretch, CoverageLine, CoveredCharge, Restoration
from vouchers.wallets import set_budget


@pytest.fixture
def place(world: World) -> Place:
    with transaction(world.engine) as session:
        place = world.place(session)
        place_hold(session, place.job(), place.tenant, 10 * YUAN, _time(1_000), None, NOW)
        return place


def _time(card_ms: int) -> ChargeFacts:
    return ChargeFacts(model="MLU370", card_ms=card_ms)


def _take(session: Session, place: Place, *captures: Capture) -> list[Coverage]:
    holds = open_holds(session, [place.job()])
    found = take_charges(holds, place.job(), captures, NOW)
    write_holds(session, holds, NOW)
    return found


def _stretches(session: Session, charge: UUID) -> list[tuple[int, int, int]]:
    """Segment, cost and card time of each stretch that a charge took."""
    rows = session.scalars(
        select(ChargeStretch).where(ChargeStretch.charge_id == charge).order_by(ChargeStretch.segment)
    )
    return [(row.segment, row.until_micros - row.from_micros, row.until_ms - row.from_ms) for row in rows]


@pytest.mark.parametrize(("cost", "card_ms"), [(-1, 0), (MICROS_MAX + 1, 0), (1, -1), (1, MICROS_MAX + 1)])
def test_no_charge_costs_less_than_nothing_or_more_than_there_can_be(
    place: Place, cost: int, card_ms: int
) -> None:
    with transaction(place.world.engine) as session, pytest.raises(CostOutOfRange):
        capture_charge(session, place.job(), place.charge(), cost, _time(card_ms), NOW)


def test_a_charge_of_nothing_is_recorded_and_moves_nothing(place: Place) -> None:
    with transaction(place.world.engine) as session:
        assert capture_charge(session, place.job(), place.charge(), 0, FACTS, NOW) == Coverage(0, ())
        assert coverage_of(session, place.charge()) == Coverage(0, ())
        assert _stretches(session, place.charge()) == []


def test_what_nobody_set_aside_or_captured_is_not_found(place: Place) -> None:
    with transaction(place.world.engine) as session:
        with pytest.raises(HoldNotFound):
            capture_charge(session, place.job(2), place.charge(), YUAN, FACTS, NOW)
        with pytest.raises(HoldNotFound):
            release_rest(open_holds(session, [place.job()]), place.job(2))
        with pytest.raises(ChargeNotFound):
            coverage_of(session, place.charge())


def test_a_charge_that_may_be_taken_partly_takes_what_is_set_aside_with_its_card_time(place: Place) -> None:
    charges = [
        Capture(place.charge(number), yuan * YUAN, _time(card_ms), NOW, partly=True)
        for number, (yuan, card_ms) in enumerate([(4, 400), (6, 600), (0, 0), (1, 100)])
    ]
    with transaction(place.world.engine) as session:
        first = _take(session, place, charges[0])
        too_much = Capture(place.charge(9), 8 * YUAN, _time(801), NOW, partly=True)
        rest = _take(session, place, too_much, charges[3], charges[2])
        assert [found.cost_micros for found in (*first, *rest)] == [4 * YUAN, 6 * YUAN, 0, 0]
        assert _stretches(session, place.charge(9)) == [(0, 6 * YUAN, 600)]
        assert session.get_one(CoveredCharge, place.charge(9)).card_ms == 600
        with pytest.raises(ChargeNotFound):
            coverage_of(session, place.charge(3))
        release_hold(session, place.job(), NOW)
        assert _take(session, place, charges[1]) == [Coverage(0, ())]
        assert place.prepaid(session) == 990


def test_a_charge_across_segments_takes_its_card_time_along(place: Place) -> None:
    with transaction(place.world.engine) as session:
        extend_hold(session, place.job(), 30 * YUAN, _time(3_000), NOW)
        capture_charge(session, place.job(), place.charge(1), 4 * YUAN, _time(300), NOW)
        capture_charge(session, place.job(), place.charge(2), 12 * YUAN, _time(1_201), NOW)
        assert _stretches(session, place.charge(1)) == [(0, 4 * YUAN, 300)]
        assert _stretches(session, place.charge(2)) == [(0, 6 * YUAN, 600), (1, 6 * YUAN, 601)]


def test_card_hours_are_taken_from_each_segment_in_step_with_its_cost(world: World) -> None:
    review = {"clause": "c", "first_review": "panel", "final_approval": "board", "notice_days": 0}

    def hours(halves: int) -> ChargeFacts:
        return ChargeFacts(model="GH200", hardware="other", region="GB", card_ms=halves * MS_PER_HOUR // 2)

    with transaction(world.engine) as session:
        place = Place(
            world, world.programme(session, "uk-airr", review=review), world.enterprise(session, region="GB")
        )
        world.voucher(session, place.tenant, place.programme, 10 * MS_PER_HOUR)
        place_hold(session, place.job(), place.tenant, 80 * YUAN, hours(2), None, NOW)
        extend_hold(session, place.job(), 160 * YUAN, hours(4), NOW)
        taken = capture_charge(session, place.job(), place.charge(), 120 * YUAN, hours(3), NOW)
        assert [(line.segment, line.quantity) for line in taken.lines] == [
            (0, MS_PER_HOUR),
            (1, MS_PER_HOUR // 2),
        ]
        at_once = capture_charge(session, place.job(), place.charge(2), 1, hours(0), NOW)
        assert [(line.amount_micros, line.quantity) for line in at_once.lines] == [(1, 0)]
        restore_charge(session, place.charge(2), reason="lost", by="hub", at=NOW)
        given = select(Restoration.amount_micros, Restoration.quantity).join(
            CoverageLine, CoverageLine.id == Restoration.line_id
        )
        assert session.execute(given.where(CoverageLine.charge_id == place.charge(2))).all() == [(1, 0)]


@pytest.mark.parametrize(("captured", "freed"), [(100, 0), (40, 18)])
def test_only_what_comes_back_to_an_ended_voucher_goes_on_to_the_pool(
    world: World, captured: int, freed: int
) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 30)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
        recall_voucher(session, voucher, by="o", reason="r", at=NOW)
        at = NOW + timedelta(hours=1)
        capture_charge(session, place.job(), place.charge(), captured * YUAN, FACTS, at, used_until=NOW)
        pool = place.pool(session)
        release_hold(session, place.job(), at)
        release_hold(session, place.job(), at)
        assert place.pool(session) - pool == freed
        assert place.left(session, voucher) == ("recalled", 0, captured * 3 // 10, 0)


def test_a_batch_is_taken_whole_or_not_at_all_and_each_charge_finds_what_those_before_it_left(
    place: Place,
) -> None:
    whole = Capture(place.charge(1), 10 * YUAN, _time(1_000), NOW)
    other = Capture(place.charge(2), 1, ChargeFacts(model="H20"), NOW)
    with transaction(place.world.engine) as session:
        holds = open_holds(session, [place.job()])
        with pytest.raises(ChargeFactsDiffer):
            take_charges(holds, place.job(), [replace(whole, cost_micros=1), other], NOW)
        with pytest.raises(ChargeBeyondHold) as refused:
            take_charges(holds, place.job(), [whole, other], NOW)
        assert refused.value.facts["available"] == 0
        (taken,) = take_charges(holds, place.job(), [whole], NOW)
        write_holds(session, holds, NOW)
        assert taken.tenant_micros == 10 * YUAN
        assert coverage_of(session, place.charge(1)) == taken
        assert place.prepaid(session) == 990


def test_what_rounding_leaves_is_borne_by_the_centre_until_a_later_charge_or_a_restoration_gives_it_back(
    world: World,
) -> None:
    used = replace(FACTS, project="moulds")
    with transaction(world.engine) as session:
        place = world.place(session, yuan=1)
        place.voucher(session, 1)
        world.voucher(session, place.tenant, world.programme(session), YUAN)
        budget = set_budget(
            session,
            place.tenant,
            "moulds",
            starts_at=NOW,
            ends_at=NOW + timedelta(days=1),
            amount_micros=50,
            reference="1",
            by="boss",
            at=NOW,
        )

        def standing() -> tuple[int, int, int]:
            """What the centre bears, what the tenant and what its project's budget have left."""
            places = [accounts.ROUNDING, accounts.wallet(place.tenant), accounts.project_budget(budget)]
            found = balances(session, [entry.id for entry in places])
            borne, own, limit = (found[entry.id].net if entry.id in found else 0 for entry in places)
            return borne, own - YUAN, limit

        before = standing()[0]
        offered = quote(session, place.tenant, 5, used, None, NOW)
        assert [line.amount_micros for line in offered.lines] == [1, 1, 2, 1]
        place_hold(session, place.job(), place.tenant, 100, used, None, NOW)
        for number, (shares, borne, spent) in enumerate(
            [([1, 1, 2, 1], 1, 2), ([2, 2, 2, -1], 0, 4), ([1, 1, 2, 1], 1, 6)]
        ):
            charge = capture_charge(session, place.job(), place.charge(number), 5, used, NOW)
            assert [line.amount_micros for line in charge.lines] == shares
            assert standing() == (before - borne, -spent, 50 - spent)
        release_hold(session, place.job(), NOW)
        for number, borne, spent in [(1, 2, 4), (0, 1, 2), (2, 0, 0)]:
            restore_charge(session, place.charge(number), reason="lost", by="hub", at=NOW)
            assert standing() == (before - borne, -spent, 50 - spent)


def test_two_equal_charges_of_a_hold_are_told_in_equal_words(place: Place) -> None:
    with transaction(place.world.engine) as session:
        place.voucher(session, 100)
        place_hold(session, place.job(3), place.tenant, 10 * YUAN, FACTS, None, NOW)
        first, second = (
            capture_charge(session, place.job(3), place.charge(number), 4 * YUAN, FACTS, NOW)
            for number in (3, 4)
        )
        assert first == second
        assert first.lines[0].sentence.endswith("pays 30 % (Huangyan §3), ¥1.20")
        least = capture_charge(session, place.job(3), place.charge(5), 1, FACTS, NOW)
        assert [(line.source, line.amount_micros) for line in least.lines] == [("prepaid", 1)]


def test_every_line_that_paid_names_its_transfer(place: Place) -> None:
    with transaction(place.world.engine) as session:
        capture_charge(session, place.job(), place.charge(), YUAN, FACTS, NOW)
        rows = session.scalars(select(CoverageLine).where(CoverageLine.charge_id == place.charge())).all()
        amounts = select(text("amount")).select_from(text("transfers")).where(text("id = :id"))
        paid = [session.scalar(amounts, {"id": row.transfer_id}) for row in rows]
        assert paid == [row.quantity for row in rows] == [YUAN]
