"""Holding, extending, charging, releasing: never twice, never beyond what is held, nothing kept too long."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from compute_hub.billing.charging import charge_jobs
from compute_hub.billing.corrections import ChargeCorrected, CorrectionRaises, correct_charge
from compute_hub.billing.domain.rate_cards import RateCard, RateCardRefused
from compute_hub.billing.domain.timelines import (
    RateExists,
    RateGap,
    RateInThePast,
    RateOverlaps,
    RateWithoutNotice,
)
from compute_hub.billing.funding import MARGIN_MS
from compute_hub.billing.rates import Setting, set_card
from kernel.database import transaction
from kernel.ids import new_id
from scheduler.tables import JobRow
from tests.compute_hub.billing.house import HOUR_MS, NOW, YUAN, House
from tests.vouchers.world import World
from vouchers.afterlife import expire_vouchers, recall_voucher
from vouchers.claims import make_claim
from vouchers.settlement import refuse_line
from vouchers.wallets import deposit

AFTER = timedelta(minutes=11)


def test_usage_is_charged_once_by_two_racing_billers_and_the_rest_comes_back(house: House) -> None:
    job_id = house.submit()
    assert house.admit(job_id) is None
    house.meter(*(house.record(job_id, k, HOUR_MS // 40, final=k == 19) for k in range(20)))
    house.end(job_id)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: house.bill(), range(2)))
    house.bill()
    assert house.charged() == (1000 * HOUR_MS // 2, 18 * YUAN, 0)
    assert house.balance() == (982 * YUAN, 0)
    assert house.sql("SELECT count(*) FROM uncharged_usage") == [(0,)]


def test_a_biller_whose_connection_dies_before_its_commit_charges_nothing_and_is_repeated(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, 1000, final=True))
    with Session(house.engine) as session:
        charge_jobs(session, [job_id], NOW)
        session.connection().connection.dbapi_connection.close()  # type: ignore[union-attr]
        with pytest.raises(Exception, match="closed"):
            session.commit()
    assert house.charged() == (0, 0, 0)
    house.bill()
    assert house.charged() == (1_000_000, 10_000, 0)


def test_a_retry_on_a_dearer_model_is_charged_at_its_own_price_and_the_lost_attempt_to_nobody(
    house: House,
) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS // 2, final=True))
    house.lose(job_id)
    assert house.admit(job_id, "sim-b") is None
    house.meter(house.record(job_id, 0, HOUR_MS, attempt=2, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged() == (1000 * HOUR_MS * 3 // 2, 72 * YUAN, 18 * YUAN)
    assert house.balance() == (928 * YUAN, 0)


def test_usage_beyond_what_is_held_is_forgone_and_never_captured(house: House) -> None:
    job_id = house.submit(limit_ms=HOUR_MS)
    house.admit(job_id)
    held = house.balance()[1]
    house.meter(house.record(job_id, 0, 2 * HOUR_MS, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged() == (2000 * HOUR_MS, held, 72 * YUAN - held)
    assert house.balance() == (1000 * YUAN - held, 0)


def test_a_running_job_is_extended_at_half_a_stretch_and_not_before(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    held = house.balance()[1]
    assert house.keep(job_id, HOUR_MS // 2 - 1) is None
    assert house.balance()[1] == held
    assert house.keep(job_id, HOUR_MS // 2 + 1) is None
    assert house.balance()[1] > held + 17 * YUAN


def test_a_wall_clock_step_neither_holds_more_nor_stops_the_job(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    held = house.balance()[1]
    for step in (timedelta(hours=1), timedelta(hours=-1)):
        assert house.keep(job_id, 60_000, at=NOW + step) is None
        assert house.balance()[1] == held


def test_a_job_without_further_funds_is_stopped_while_its_way_out_is_still_covered(engine: Engine) -> None:
    house = House(engine, prepaid_yuan=37)
    job_id = house.submit(models=("sim-a",))
    assert house.admit(job_id) is None
    assert house.keep(job_id, HOUR_MS - 60_000) is None
    assert house.sql("SELECT reason = notice, notice LIKE 'its funds will not last%' FROM jobs") == [
        (True, True)
    ]
    assert house.keep(job_id, HOUR_MS + 1) is not None
    house.meter(house.record(job_id, 0, HOUR_MS + 5000 + MARGIN_MS, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged()[2] == 0


def test_an_unfunded_job_waits_with_a_reason_and_starts_when_a_deposit_arrives(engine: Engine) -> None:
    house = House(engine, prepaid_yuan=40)
    first, second = house.submit(models=("sim-a",)), house.submit(models=("sim-a",))
    assert house.admit(first) is None
    refused = house.admit(second)
    assert refused is not None
    assert refused.startswith("waiting for funds: ")
    with transaction(engine) as session:
        deposit(session, house.tenant, 40 * YUAN, "second", NOW)
    assert house.admit(second, at=NOW + timedelta(seconds=1)) is None


def test_a_job_that_never_started_gets_everything_back(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.end(job_id)
    house.bill()
    assert house.balance()[1] > 0
    house.bill(NOW + AFTER)
    assert house.balance() == (1000 * YUAN, 0)


def test_money_is_kept_for_the_last_records_of_a_lost_run_and_what_comes_later_is_charged_then(
    house: House,
) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, 60_000))
    house.end(job_id)
    house.bill()
    assert house.balance()[1] > 0
    house.meter(house.record(job_id, 1, 60_000))
    house.bill()
    assert house.charged() == (120_000_000, 1_200_000, 0)
    house.bill(NOW + AFTER)
    assert house.balance()[1] == 0
    house.meter(house.record(job_id, 2, 60_000, final=True))
    house.bill(NOW + AFTER)
    house.bill(NOW + AFTER)
    assert house.charged() == (180_000_000, 1_800_000, 0)
    assert house.balance() == (1000 * YUAN - 1_800_000, 0)


def test_a_record_behind_a_gap_waits_for_the_gap_and_is_not_billed_for_ever(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, 1000), house.record(job_id, 2, 1000, final=True))
    house.bill()
    assert house.charged() == (1_000_000, 10_000, 0)
    house.end(job_id)
    house.bill(NOW + AFTER)
    assert house.charged() == (2_000_000, 10_000, 10_000)
    assert house.balance()[1] == 0


def _card(price: str, **terms: object) -> RateCard:
    return RateCard.from_json({"price_cny_per_card_hour": price, **terms})


NIGHT = [
    {"from": "00:00", "until": "11:00", "factor": "0.5"},  # NOW is 10:00 at the centre
    {"from": "11:00", "until": "24:00", "factor": "1"},
]


def test_usage_across_an_hours_price_is_charged_at_both_and_was_held_at_the_dearer(house: House) -> None:
    with transaction(house.engine) as session:
        card = Setting("sim-a", _card("36", time_of_day=NIGHT), NOW + timedelta(seconds=1))
        set_card(session, card, by=new_id(), at=NOW)
    at = NOW + timedelta(seconds=1)
    job_id = house.submit(limit_ms=2 * HOUR_MS)
    assert house.admit(job_id, at=at) is None
    assert house.balance()[1] >= 36 * YUAN
    house.keep(job_id, HOUR_MS // 2 + 1)
    start = int(at.timestamp() * 1000)
    for k in range(2):
        record = house.record(job_id, k, HOUR_MS, offset_ms=k * HOUR_MS, started_unix_ms=start, final=k == 1)
        house.meter(record)
    house.end(job_id)
    house.bill()
    lines = "SELECT time_window, price_micros, slot_ms FROM charge_lines ORDER BY line"
    assert house.sql(lines) == [
        ("all 00:00-11:00", 18 * YUAN, 1000 * (HOUR_MS - 1000)),
        ("all 11:00-24:00", 36 * YUAN, 1000 * (HOUR_MS + 1000)),
    ]
    assert house.charged() == (2000 * HOUR_MS, 54 * YUAN + 5000, 0)


def test_usage_before_a_vouchers_end_is_paid_by_it_however_late_it_is_charged(engine: Engine) -> None:
    """The voucher ends after 14 hours; it pays for the first hour of a job that runs from 12:30 to 14:30."""
    house = House(engine)
    with transaction(engine) as session:
        slug = house.world.programme(session, validity={"clause": "§5", "until": "2026-03-10"})
        house.world.voucher(session, house.tenant, slug, 100 * YUAN)
    begins, half = NOW + timedelta(hours=12, minutes=30), HOUR_MS // 2
    job_id = house.submit(vouchers=None, limit_ms=2 * HOUR_MS, models=("sim-a",))
    assert house.admit(job_id, at=begins) is None
    for elapsed in (half + 60_000, 3 * half):
        assert house.keep(job_id, elapsed, begins + timedelta(milliseconds=elapsed)) is None
    start = int(begins.timestamp() * 1000)
    house.meter(
        *(
            house.record(job_id, k, half, offset_ms=k * half, started_unix_ms=start, final=k == 3)
            for k in range(4)
        )
    )
    house.end(job_id, begins + timedelta(hours=2))
    house.bill(begins + timedelta(hours=3))
    first_hour = 36 * YUAN + 36 * YUAN * (5000 + MARGIN_MS) // HOUR_MS
    assert house.charged() == (2000 * HOUR_MS, 72 * YUAN, 0)
    ((by_voucher,),) = house.sql("SELECT sum(voucher_micros) FROM charges")
    assert by_voucher == first_hour * 3 // 10
    assert house.balance() == (1000 * YUAN - 72 * YUAN + by_voucher, 0)


def test_a_job_keeps_its_price_and_a_card_for_running_jobs_is_announced_a_day_before(house: House) -> None:
    soon, announced = NOW + timedelta(minutes=10), NOW + timedelta(days=1)
    with transaction(house.engine) as session:
        set_card(session, Setting("sim-a", _card("360"), soon), by=new_id(), at=NOW)
        with pytest.raises(RateWithoutNotice):
            set_card(session, Setting("sim-a", _card("1"), soon, changes_running=True), by=new_id(), at=NOW)
        set_card(session, Setting("sim-a", _card("72"), announced, changes_running=True), by=new_id(), at=NOW)
    job_id = house.submit(limit_ms=48 * HOUR_MS)
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS // 2, offset_ms=24 * HOUR_MS - HOUR_MS // 4, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged() == (500 * HOUR_MS, 27 * YUAN, 0)


def test_an_agreement_and_its_volume_steps_are_that_tenants_alone(house: House) -> None:
    volume = [{"from_card_hours": 0, "factor": "1"}, {"from_card_hours": 1, "factor": "0.5"}]
    with transaction(house.engine) as session:
        own = Setting("sim-a", _card("30", volume=volume), NOW, tenant_id=house.tenant, agreement="KH-7")
        set_card(session, own, by=new_id(), at=NOW)
    job_id = house.submit()
    house.admit(job_id)
    house.keep(job_id, HOUR_MS // 2 + 1)
    house.meter(
        *(house.record(job_id, k, HOUR_MS // 2, offset_ms=k * HOUR_MS // 2, final=k == 2) for k in range(3))
    )
    house.end(job_id)
    house.bill()
    assert house.charged() == (1500 * HOUR_MS, 30 * YUAN + 15 * YUAN // 2, 0)
    assert house.sql("SELECT month, slot_ms FROM tenant_volumes") == [("2026-03", 1500 * HOUR_MS)]


def test_overlapping_and_gapped_cards_are_refused_and_nothing_is_set(house: House) -> None:
    days = [NOW + timedelta(days=n) for n in range(5)]
    with transaction(house.engine) as session:
        set_card(session, Setting("sim-a", _card("1"), days[1], days[2]), by=new_id(), at=NOW)
        for refused, begins, ends in (
            (RateOverlaps, days[1] + timedelta(hours=1), None),
            (RateGap, days[3], None),
            (RateExists, days[1], days[2]),
            (RateInThePast, NOW - timedelta(seconds=1), None),
            (RateCardRefused, days[2], days[2]),
        ):
            with pytest.raises(refused):
                set_card(session, Setting("sim-a", _card("1"), begins, ends), by=new_id(), at=NOW)
    assert house.sql("SELECT count(*) FROM rates WHERE model = 'sim-a'") == [(2,)]


def test_a_correction_gives_the_charge_back_and_takes_the_right_cost_once_and_never_more(house: House) -> None:
    job_id = house.submit(limit_ms=HOUR_MS)
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS, final=True))
    house.end(job_id)
    house.bill()
    ((charge_id,),) = house.sql("SELECT id FROM charges")
    with transaction(house.engine) as session:
        cheap = Setting("sim-a", _card("30"), NOW, tenant_id=house.tenant, agreement="KH-7")
        dear = Setting("sim-a", _card("99"), NOW + timedelta(days=1))
        cheap_id, dear_id = (set_card(session, card, by=new_id(), at=NOW).id for card in (cheap, dear))
    by = new_id()
    with transaction(house.engine) as session, pytest.raises(CorrectionRaises):
        correct_charge(session, charge_id, dear_id, reason="r", by=by, at=NOW)
    with transaction(house.engine) as session:
        new = correct_charge(session, charge_id, cheap_id, reason="signed late", by=by, at=NOW)
        assert (new.n, new.amount_micros, new.tenant_micros) == (1, 30 * YUAN, 30 * YUAN)
    assert house.balance() == (970 * YUAN, 0)
    with transaction(house.engine) as session, pytest.raises(ChargeCorrected):
        correct_charge(session, charge_id, cheap_id, reason="again", by=by, at=NOW)
    assert house.sql("SELECT reason, corrected_by FROM charge_corrections") == [("signed late", by)]


@pytest.mark.parametrize("end", ["recalled", "expired", "spent"])
def test_a_correction_lowers_what_the_firm_pays_also_after_its_voucher_has_ended(
    engine: Engine, end: str
) -> None:
    """Of ¥36 the voucher paid ¥10.80; of the right ¥30 it pays ¥9, and what it paid too much is the pool's."""
    house = House(engine)
    with transaction(engine) as session:
        slug = house.world.programme(session)
        face = 10_800_000 if end == "spent" else 100 * YUAN
        voucher = house.world.voucher(session, house.tenant, slug, face)
        own = Setting("sim-a", _card("30"), NOW, tenant_id=house.tenant, agreement="KH-7")
    job_id = house.submit(vouchers=None, limit_ms=HOUR_MS, models=("sim-a",))
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS, final=True))
    house.end(job_id)
    house.bill()
    assert house.balance() == (974_800_000, 0)
    later = NOW + timedelta(days=400 if end == "expired" else 3)
    with transaction(engine) as session:
        if end == "recalled":
            recall_voucher(session, voucher, by="officer", reason="r", at=later)
        elif end == "expired":
            assert expire_vouchers(session, later) == [voucher]
        rate_id = set_card(session, replace(own, effective_from=later), by=new_id(), at=later).id
    ((charge_id,),) = house.sql("SELECT id FROM charges")
    before = house.pool(slug)
    with transaction(engine) as session:
        new = correct_charge(session, charge_id, rate_id, reason="signed late", by=new_id(), at=later)
        assert (new.voucher_micros, new.tenant_micros) == (9 * YUAN, 21 * YUAN)
    assert house.balance() == (979 * YUAN, 0)
    assert house.pool(slug) - before == (0 if end == "spent" else 1_800_000)
    assert house.sql(
        f"SELECT used_until FROM coverage_lines WHERE charge_id = '{new.id}' LIMIT 1"
    ) == house.sql(f"SELECT used_until FROM coverage_lines WHERE charge_id = '{charge_id}' LIMIT 1")


def test_what_a_lost_attempt_was_charged_is_given_back_once_and_its_late_records_are_forgone(
    house: House,
) -> None:
    job_id = house.submit(models=("sim-a",))
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS // 4))
    house.bill()
    house.lose(job_id)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: house.bill(), range(2)))
    house.bill()
    assert house.sql("SELECT attempt, restored_micros, reason, refused FROM lost_attempts") == [
        (1, 9 * YUAN, "attempt 1 was lost (node_lost)", "")
    ]
    assert sum(house.balance()) == 1000 * YUAN
    assert house.admit(job_id, at=NOW + timedelta(seconds=1)) is None
    house.meter(house.record(job_id, 1, HOUR_MS // 4, final=True))
    house.meter(house.record(job_id, 0, HOUR_MS, attempt=2, final=True))
    house.end(job_id)
    house.bill()
    assert house.sql("SELECT attempt, amount_micros, forgone_micros FROM charges ORDER BY attempt, n") == [
        (1, 9 * YUAN, 0),
        (1, 0, 9 * YUAN),
        (2, 36 * YUAN, 0),
    ]
    assert house.balance() == (964 * YUAN, 0)


def test_a_job_that_ends_because_its_node_was_lost_pays_nothing(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS // 2))
    house.bill()
    assert house.balance()[0] < 1000 * YUAN
    house.end(job_id, state="failed", reason="node_lost")
    house.bill(NOW + AFTER)
    assert house.balance() == (1000 * YUAN, 0)
    assert house.sql("SELECT restored_micros FROM lost_attempts") == [(18 * YUAN,)]


def test_a_job_that_was_stopped_or_failed_by_itself_pays_for_what_it_used(house: House) -> None:
    for minute, (state, reason) in enumerate((("cancelled", "cancelled"), ("failed", "exited"))):
        job_id = house.submit()
        house.admit(job_id, at=NOW + timedelta(minutes=minute))
        house.meter(house.record(job_id, 0, HOUR_MS // 36, final=True))
        house.end(job_id, state=state, reason=reason)
        house.bill()
    assert house.balance() == (998 * YUAN, 0)
    assert house.sql("SELECT * FROM lost_attempts") == []


def test_an_attempt_that_failed_by_itself_is_paid_although_the_job_is_tried_again(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS // 36, final=True))
    house.bill()
    with transaction(house.engine) as session:
        session.get_one(JobRow, job_id).state = "queued"
    house.admit(job_id, at=NOW + timedelta(seconds=1))
    house.meter(house.record(job_id, 0, HOUR_MS // 36, attempt=2, final=True))
    house.end(job_id)
    house.bill()
    assert house.balance() == (998 * YUAN, 0)
    assert house.sql("SELECT * FROM lost_attempts") == []


def test_a_loss_that_cannot_be_given_back_is_told_and_does_not_keep_the_rest(house: House) -> None:
    world = World(house.engine)
    with transaction(house.engine) as session:
        slug = world.programme(session)
        world.voucher(session, house.tenant, slug, 1_000 * YUAN, NOW)
    job_id = house.submit(vouchers=None)
    house.admit(job_id)
    house.meter(house.record(job_id, 0, HOUR_MS // 2))
    house.bill()
    with transaction(house.engine) as session:
        claim = make_claim(session, slug, "2026-03", by="centre", at=NOW)
        refuse_line(session, claim, 1, reason="not compute", by="first", at=NOW)
    house.end(job_id, state="failed", reason="node_lost")
    house.bill(NOW + AFTER)
    ((restored, refused),) = house.sql("SELECT restored_micros, refused FROM lost_attempts")
    assert restored == 0
    assert "refused for good" in refused
    assert house.balance()[1] == 0
