"""Usage is kept once, in any order; what contradicts is an alarm and never billed."""

from dataclasses import replace

import pytest
from sqlalchemy import Engine

from tests.compute_hub.billing.house import House


@pytest.fixture
def house(engine: Engine) -> House:
    return House(engine)


def test_duplicates_and_any_order_are_charged_once(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    records = [house.record(job_id, k, 1000 + k, final=k == 4) for k in range(5)]
    for record in (*reversed(records), *records):
        house.meter(record)
    house.meter(*records, *records)
    house.bill()
    assert house.charged()[0] == sum(record.slot_ms for record in records)
    assert house.sql("SELECT slot_ms FROM usage_totals") == [(house.charged()[0],)]
    assert house.sql("SELECT count(*) FROM usage_mismatches") == [(0,)]


def test_the_same_id_with_other_content_is_an_alarm_and_never_billed(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, 1000))
    house.meter(house.record(job_id, 0, 9000), house.record(job_id, 1, 1000))
    house.meter(house.record(job_id, 2, 1000), house.record(job_id, 2, 2000))
    house.bill()
    assert house.charged()[0] == 3_000_000
    assert house.sql("SELECT count(*) FROM usage_mismatches") == [(2,)]


def test_usage_of_an_unknown_run_another_job_or_too_many_slots_is_an_alarm(house: House) -> None:
    job_id, other = house.submit(), house.submit()
    house.admit(job_id)
    good = house.record(job_id, 0, 1000)
    house.meter(
        replace(good, run_id="nonsense"),
        replace(good, run_id=str(other)),
        replace(good, job_id=str(other)),
        replace(good, slot_ms=good.slot_ms + 1),
        replace(good, id="nonsense"),
    )
    house.bill()
    assert house.charged() == (0, 0, 0)
    assert house.sql("SELECT count(*) FROM usage_mismatches") == [(5,)]
    house.meter(good)
    house.bill()
    assert house.charged()[0] == 1_000_000
