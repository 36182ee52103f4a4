"""Many charges in one transaction: as one by one, each refused by itself, each once whoever else is at work."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import UUID

import pytest

from compute_hub.billing.charging import charge_jobs
from kernel.database import transaction
from ledger.audit import audit
from tests.compute_hub.billing.house import NOW, YUAN, House
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import register_enterprise
from vouchers.errors import NoFunding
from vouchers.redemption import place_hold
from vouchers.wallets import deposit

CHARGES = "SELECT job_id, n, slot_ms, amount_micros, tenant_micros FROM charges ORDER BY job_id, n"


def running(house: House, seconds: int, *, final: bool = True) -> UUID:
    """A job that ran so many seconds, in records of one second."""
    job_id = house.submit()
    ((runs,),) = house.sql("SELECT count(*) FROM runs")
    assert house.admit(job_id, at=NOW + timedelta(milliseconds=runs)) is None
    last = seconds - 1
    house.meter(
        *(house.record(job_id, k, 1000, offset_ms=k * 1000, final=final and k == last) for k in range(seconds))
    )
    return job_id


def charges(house: House) -> list[tuple[object, ...]]:
    return house.sql(CHARGES)


def test_a_batch_charges_what_its_jobs_are_charged_one_by_one(house: House) -> None:
    jobs = sorted(running(house, seconds, final=False) for seconds in (1, 2, 3))
    with transaction(house.engine) as session:
        charge_jobs(session, jobs, NOW)
        together = [tuple(row) for row in session.connection().exec_driver_sql(CHARGES)]
        session.rollback()
    for job_id in jobs:
        with transaction(house.engine) as session:
            charge_jobs(session, [job_id], NOW)
    assert charges(house) == together
    assert sum(int(str(row[3])) for row in together) == 6 * 10_000


def test_a_job_without_a_price_is_set_aside_with_its_reason_and_the_others_are_charged(house: House) -> None:
    good, bad, also_good = (running(house, 2, final=False) for _ in range(3))
    with transaction(house.engine) as session:
        session.connection().exec_driver_sql(
            "UPDATE job_funding SET funded_at = funded_at - interval '1 day' WHERE job_id = %s", (bad,)
        )
        billed = charge_jobs(session, [good, bad, also_good], NOW)
    assert {job_id: refusal.code for job_id, refusal in billed.refused.items()} == {bad: "no_rate"}
    assert {row[0] for row in charges(house)} == {good, also_good}
    assert house.sql("SELECT DISTINCT job_id FROM uncharged_usage") == [(bad,)]
    with transaction(house.engine) as session:
        assert audit(session).differences == ()


def test_a_job_is_released_by_the_batch_that_charges_its_last_record(house: House) -> None:
    done, running_on = running(house, 2), running(house, 2, final=False)
    house.end(done)
    with transaction(house.engine) as session:
        billed = charge_jobs(session, [done, running_on], NOW)
    assert list(billed.released) == [done]
    assert house.sql("SELECT job_id FROM job_holds WHERE state = 'released'") == [(done,)]
    free, held = house.balance()
    assert 1000 * YUAN - free - held == 4 * 10_000
    assert held > 0


def test_a_batch_is_charged_in_a_number_of_ledger_calls_that_does_not_depend_on_its_jobs(house: House) -> None:
    with transaction(house.engine) as session:
        deposit(session, house.tenant, 1000 * YUAN, "more", NOW)
    jobs = [running(house, 1) for _ in range(12)]
    for job_id in jobs:
        house.end(job_id)
    before = house.sql("SELECT count(*) FROM transfers")[0][0]
    with transaction(house.engine) as session:
        billed = charge_jobs(session, jobs, NOW)
    assert (len(billed.charges), len(billed.released)) == (12, 12)
    assert house.sql("SELECT count(*) FROM transfers")[0][0] == before + 24
    assert house.sql("SELECT count(DISTINCT at) FROM transfers WHERE movement = 'capture_usage'") == [(1,)]
    assert house.balance()[1] == 0


@pytest.mark.slow
def test_two_billers_admissions_and_deposits_at_once_charge_every_record_once(house: House) -> None:
    own = house.tenant
    tenants = [own]
    with transaction(house.engine) as session:
        for number in range(3):
            code = f"91331003RACE{number:05d}X"
            tenants.append(
                register_enterprise(session, credit_code=code, name=f"R{number}", region="331003", at=NOW)
            )
            deposit(session, tenants[-1], 1000 * YUAN, f"race {number}", NOW)
    jobs = []
    for number in range(24):
        house.tenant = tenants[number % 4]
        jobs.append(running(house, 3))
        house.end(jobs[-1])
    start = Barrier(4)

    def biller(_: int) -> None:
        start.wait(timeout=30)
        for _ in range(4):
            house.bill()

    def admitting(number: int) -> None:
        start.wait(timeout=30)
        for count in range(10):
            for tenant in tenants if number % 2 else tenants[::-1]:
                with transaction(house.engine) as session:
                    job = UUID(int=(number << 40) + (count << 8) + tenants.index(tenant))
                    place_hold(session, job, tenant, YUAN, ChargeFacts("sim-a"), [], NOW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: biller(n) if n < 2 else admitting(n), range(4)))
    house.bill()
    house.tenant = own
    assert house.charged() == (24 * 3 * 1_000_000, 24 * 3 * 10_000, 0)
    assert house.sql("SELECT count(*) FROM charges") == [(24,)]
    assert house.sql("SELECT count(*) FROM uncharged_usage") == [(0,)]
    assert house.sql("SELECT count(*) FROM job_funding WHERE state <> 'released'") == [(0,)]
    with transaction(house.engine) as session:
        assert audit(session).differences == ()
        with pytest.raises(NoFunding):
            place_hold(session, UUID(int=1), own, 1001 * YUAN, ChargeFacts("sim-a"), [], NOW)
