"""Money of jobs that wait to run again: none is held meanwhile, and what their attempts used is still covered."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from tests.compute_hub.billing.house import HOUR_MS, NOW, YUAN, House

AFTER = timedelta(minutes=11)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "failed"])
def test_nothing_is_held_for_a_job_that_waits_again_and_the_next_admission_holds_anew(
    house: House, *, lost: bool
) -> None:
    job_id = house.submit(models=("sim-a",))
    house.admit(job_id)
    first_hold = house.balance()[1]
    house.meter(house.record(job_id, 0, HOUR_MS // 4, final=not lost))
    house.bill()
    used = 0 if lost else 9 * YUAN
    (house.lose if lost else house.fail)(job_id)
    house.bill()
    house.bill()
    assert house.balance() == (1000 * YUAN - used, 0)
    assert house.admit(job_id, at=NOW + timedelta(seconds=1)) is None
    assert house.balance() == (1000 * YUAN - used - first_hold, first_hold)
    house.meter(house.record(job_id, 0, HOUR_MS, attempt=2, final=True))
    house.end(job_id)
    house.bill(NOW + AFTER)
    assert house.charged()[2] == 0
    assert house.balance() == (964 * YUAN - used, 0)


def test_the_next_attempt_may_be_refused_because_another_job_took_the_money_meanwhile(engine: Engine) -> None:
    house = House(engine, prepaid_yuan=40)
    waiting, other = house.submit(models=("sim-a",)), house.submit(models=("sim-a",))
    assert house.admit(waiting) is None
    house.lose(waiting)
    house.bill()
    assert house.admit(other, at=NOW + timedelta(seconds=1)) is None
    refused = house.admit(waiting, at=NOW + timedelta(seconds=2))
    assert refused is not None
    assert refused.startswith("waiting for funds: ")
    house.end(waiting, state="cancelled", reason="cancelled")
    house.bill(NOW + AFTER)
    assert house.sql("SELECT state FROM job_holds ORDER BY opened_at") == [("released",), ("open",)]


def test_money_is_kept_for_the_records_of_an_attempt_that_failed_and_what_comes_when_it_is_back_is_charged(
    house: House,
) -> None:
    job_id = house.submit(models=("sim-a",))
    house.admit(job_id)
    house.meter(house.record(job_id, 0, 60_000))
    house.fail(job_id)
    house.bill()
    assert house.balance()[1] > 0
    house.meter(house.record(job_id, 1, 60_000, final=True))
    house.bill()
    assert house.balance() == (1000 * YUAN - 1_200_000, 0)
    house.meter(house.record(job_id, 2, 60_000))
    house.bill()
    assert house.charged() == (180_000_000, 1_800_000, 0)
    assert house.balance() == (1000 * YUAN - 1_800_000, 0)


def test_an_attempt_that_begins_before_the_last_one_was_charged_goes_on_with_its_hold(house: House) -> None:
    job_id = house.submit(models=("sim-a",))
    house.admit(job_id)
    house.fail(job_id)
    assert house.admit(job_id, at=NOW + timedelta(seconds=1)) is None
    house.bill()
    assert house.balance()[1] > 0
    house.meter(house.record(job_id, 0, HOUR_MS // 36, final=True))
    house.meter(house.record(job_id, 0, HOUR_MS // 36, attempt=2, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged() == (2000 * HOUR_MS // 36, 2 * YUAN, 0)
    assert house.balance() == (998 * YUAN, 0)
