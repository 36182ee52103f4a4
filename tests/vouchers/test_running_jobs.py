"""Holds of running jobs: extensions, several kinds of usage, cheap charges in any number."""

from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.database import transaction
from kernel.ids import derived_id
from tests.vouchers.world import FACTS, NOW, YUAN, World
from vouchers.capturing import capture_charge
from vouchers.domain.coverage import Candidate, Plan
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.segments import Segment
from vouchers.domain.terms import MS_PER_HOUR
from vouchers.errors import ChargeBeyondHold, HoldDiffers, HoldReleased, NoFunding, VoucherSpent
from vouchers.open_holds import OpenSegment
from vouchers.reading import list_vouchers
from vouchers.redemption import extend_hold, give_back_holds, held_coverage, place_hold, release_hold
from vouchers.wallets import wallet_balance


def test_an_extension_goes_on_without_a_named_voucher_that_is_spent(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 30)
        first = place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, [voucher], NOW)
        assert (first.public_micros, first.tenant_micros) == (30 * YUAN, 70 * YUAN)
        more = extend_hold(session, place.job(), 150 * YUAN, FACTS, NOW, voucher_ids=[voucher])
        assert (more.public_micros, more.tenant_micros) == (0, 50 * YUAN)
        with pytest.raises(VoucherSpent):
            place_hold(session, place.job(2), place.tenant, YUAN, FACTS, [voucher], NOW)


def test_a_jobs_first_hold_is_placed_again_with_the_same_content_only_and_until_it_is_released(
    world: World,
) -> None:
    used = replace(FACTS, card_ms=7)
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher, stranger = place.voucher(session, 30), world.enterprise(session)
        mine, job = place.tenant, place.job()
        first = place_hold(session, job, mine, YUAN, used, [voucher], NOW)
        assert place_hold(session, job, mine, YUAN, used, [voucher], NOW) == first
        for tenant, cost, facts, named in (
            (stranger, YUAN, used, [voucher]),
            (mine, YUAN + 1, used, [voucher]),
            (mine, YUAN, FACTS, [voucher]),
            (mine, YUAN, replace(used, hardware="other"), [voucher]),
            (mine, YUAN, used, None),
            (mine, YUAN, used, []),
        ):
            with pytest.raises(HoldDiffers):
                place_hold(session, job, tenant, cost, facts, named, NOW)
        assert place.left(session, voucher)[1:] == (0, 0, 29)
        release_hold(session, job, NOW)
        with pytest.raises(HoldReleased):
            place_hold(session, job, mine, YUAN, used, [voucher], NOW)
        with pytest.raises(HoldReleased):
            extend_hold(session, job, 2 * YUAN, used, NOW)


def test_an_extension_adds_a_last_millionth_and_nothing_to_what_is_there(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place_hold(session, place.job(), place.tenant, YUAN, FACTS, None, NOW)
        assert extend_hold(session, place.job(), YUAN, FACTS, NOW) == Coverage(0, ())
        assert extend_hold(session, place.job(), YUAN + 1, FACTS, NOW).cost_micros == 1
        assert wallet_balance(session, place.tenant).prepaid_held_micros == YUAN + 1


def test_a_job_that_moves_to_another_model_is_charged_from_that_models_hold(world: World) -> None:
    other = ChargeFacts(model="H20", hardware="other")
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 100)
        place_hold(session, place.job(), place.tenant, 10 * YUAN, FACTS, None, NOW)
        extend_hold(session, place.job(), 30 * YUAN, other, NOW)
        capture_charge(session, place.job(), place.charge(1), 20 * YUAN, other, NOW)
        capture_charge(session, place.job(), place.charge(2), 10 * YUAN, FACTS, NOW)
        assert held_coverage(session, place.job(), segment=1).cost_micros == 20 * YUAN


def test_a_charge_across_segments_and_a_voucher_that_ends_between_them(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 6)
        place_hold(session, place.job(), place.tenant, 10 * YUAN, FACTS, None, NOW)
        extend_hold(session, place.job(), 20 * YUAN, FACTS, NOW)
        extend_hold(session, place.job(), 30 * YUAN, FACTS, NOW)
        whole = capture_charge(session, place.job(), place.charge(), 25 * YUAN, FACTS, NOW)
        assert [(line.segment, line.source, line.amount_micros // YUAN) for line in whole.lines] == [
            (0, "voucher", 3),
            (0, "prepaid", 7),
            (1, "voucher", 3),
            (1, "prepaid", 7),
            (2, "prepaid", 5),
        ]


def test_card_time_is_drawn_with_the_time_used(world: World) -> None:
    hour = ChargeFacts(model="GH200", hardware="other", region="GB", card_ms=MS_PER_HOUR)
    review = {"clause": "c", "first_review": "panel", "final_approval": "board", "notice_days": 0}
    with transaction(world.engine) as session:
        programme = world.programme(session, "uk-airr", review=review)
        tenant = world.enterprise(session, region="GB")
        voucher = world.voucher(session, tenant, programme, 10 * MS_PER_HOUR)
        job = derived_id("job", tenant)
        covered = place_hold(session, job, tenant, 80 * YUAN, hour, None, NOW)
        assert "with 1.000 card-hours" in covered.sentence
        part = ChargeFacts(**(vars(hour) | {"card_ms": MS_PER_HOUR // 4}))
        for number in range(3):
            line = capture_charge(
                session, job, derived_id("charge", job, number), 20 * YUAN, part, NOW + timedelta(minutes=15)
            ).lines[0]
            assert (line.quantity, line.asset, line.amount_micros) == (
                MS_PER_HOUR // 4,
                "card_ms:GH200",
                20 * YUAN,
            )
        release_hold(session, job, NOW)
        (view,) = list_vouchers(session, enterprise_id=tenant)
        assert (view.id, view.captured, view.remaining) == (
            voucher,
            MS_PER_HOUR * 3 // 4,
            MS_PER_HOUR * 37 // 4,
        )


def test_an_extension_sets_aside_the_card_time_that_is_added(world: World) -> None:
    grace = ChargeFacts(model="GH200", hardware="other", region="GB")
    review = {"clause": "c", "first_review": "panel", "final_approval": "board", "notice_days": 0}
    with transaction(world.engine) as session:
        programme = world.programme(session, "uk-airr", review=review)
        tenant = world.enterprise(session, region="GB")
        world.voucher(session, tenant, programme, 10 * MS_PER_HOUR)
        job = derived_id("job", tenant)
        place_hold(session, job, tenant, YUAN, replace(grace, card_ms=MS_PER_HOUR), None, NOW)
        assert list_vouchers(session, enterprise_id=tenant)[0].held == MS_PER_HOUR
        extend_hold(session, job, 3 * YUAN, replace(grace, card_ms=3 * MS_PER_HOUR + 1), NOW)
        assert list_vouchers(session, enterprise_id=tenant)[0].held == 3 * MS_PER_HOUR + 1
        for card_ms in (3 * MS_PER_HOUR + 1, MS_PER_HOUR):
            with pytest.raises(NoFunding):
                extend_hold(session, job, 4 * YUAN, replace(grace, card_ms=card_ms), NOW)
        whole = replace(grace, card_ms=3 * MS_PER_HOUR + 1)
        paid = capture_charge(session, job, derived_id("charge", job), 3 * YUAN, whole, NOW)
        assert (paid.public_micros, sum(line.quantity for line in paid.lines)) == (3 * YUAN, whole.card_ms)


def test_what_is_given_back_while_a_job_waits_is_set_aside_anew_when_it_runs_again(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = place.voucher(session, 100)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
        capture_charge(session, place.job(), place.charge(1), 10 * YUAN, FACTS, NOW)
        (left,) = give_back_holds(session, [place.job(), place.job(2)], NOW).values()
        assert (left.state, left.segments, left.cost_micros) == ("open", 1, 10 * YUAN)
        assert place.left(session, voucher) == ("active", 0, 3, 97)
        with pytest.raises(ChargeBeyondHold):
            capture_charge(session, place.job(), place.charge(2), YUAN, FACTS, NOW)
        assert extend_hold(session, place.job(), 30 * YUAN, FACTS, NOW).cost_micros == 20 * YUAN
        assert place.left(session, voucher) == ("active", 6, 3, 91)
        capture_charge(session, place.job(), place.charge(2), 20 * YUAN, FACTS, NOW)
        release_hold(session, place.job(), NOW)
        assert place.left(session, voucher) == ("active", 0, 9, 91)
        assert place.prepaid(session) == 1_000 - 21


def test_a_segment_takes_all_of_a_cost_whose_card_time_just_fits() -> None:
    one = Fraction(1)
    grant = Candidate("grant", "1", "v1", "p", "national", "card_ms:M", one, 100, "§1", (1,))
    plan = Plan(10, 4, (grant,))
    segment = OpenSegment(derived_id("job"), 0, 10, {}, None, 5, 2, Segment(plan), ())
    assert segment.takes(10, 5) == (5, 2)
    assert segment.takes(10, 6) == (4, 2)


@pytest.mark.parametrize(("granted", "drawn"), [(10, (60, 60, 40)), (2, (60, 30, 0))])
def test_card_time_that_turned_out_cheaper_than_it_was_held_for_draws_no_more_than_was_held(
    world: World, granted: int, drawn: tuple[int, int, int]
) -> None:
    # Each hour is held at ¥80 and costs ¥40. Of the small grant another job holds half an hour.
    minute, facts = MS_PER_HOUR // 60, ChargeFacts(model="GH200", hardware="other", region="GB")
    review = {"clause": "c", "first_review": "panel", "final_approval": "board", "notice_days": 0}

    def used(minutes: int) -> ChargeFacts:
        return replace(facts, card_ms=minutes * minute)

    with transaction(world.engine) as session:
        programme = world.programme(session, "uk-airr", review=review)
        tenant = world.enterprise(session, region="GB")
        world.fund(session, tenant, 1_000)
        world.voucher(session, tenant, programme, granted * MS_PER_HOUR)
        if granted == 2:
            place_hold(session, derived_id("other", tenant), tenant, 40 * YUAN, used(30), None, NOW)
        job = derived_id("job", tenant)
        place_hold(session, job, tenant, 80 * YUAN, used(60), None, NOW)
        for hours in (2, 3):
            extend_hold(session, job, 80 * hours * YUAN, used(60 * hours), NOW)
        for number, (minutes, quantity) in enumerate(zip((60, 60, 40), drawn, strict=True)):
            charge = derived_id("charge", job, number)
            paid = capture_charge(session, job, charge, minutes * YUAN * 2 // 3, used(minutes), NOW)
            assert sum(line.quantity for line in paid.lines if line.source == "voucher") == quantity * minute
        release_hold(session, job, NOW)


@settings(max_examples=25, deadline=None)
@given(
    cost=st.integers(100, 10**9),
    face=st.integers(1, 2 * 10**8),
    cuts=st.lists(st.integers(1, 10**9 - 1), max_size=5),
)
def test_however_a_job_is_charged_its_parts_add_up_to_the_same(
    world: World, cost: int, face: int, cuts: list[int]
) -> None:
    points = [0, *sorted({cut % cost for cut in cuts} - {0}), cost]
    with transaction(world.engine) as session:
        place = world.place(session)
        world.voucher(session, place.tenant, place.programme, face)
        place_hold(session, place.job(), place.tenant, cost, FACTS, None, NOW)
        for number, (start, end) in enumerate(pairwise(points)):
            coverage = capture_charge(session, place.job(), place.charge(number), end - start, FACTS, NOW)
            assert sum(line.amount_micros for line in coverage.lines) == end - start
        release_hold(session, place.job(), NOW)
        (view,) = list_vouchers(session, enterprise_id=place.tenant)
        assert view.captured == min(face, cost * 3 // 10)
        spent = 1_000 * YUAN - wallet_balance(session, place.tenant).prepaid_available_micros
        assert spent == cost - view.captured
