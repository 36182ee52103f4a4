"""Usage that is reported after its job's hold was given back is charged all the same, if anybody can pay it."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine

from compute_hub.billing.invoicing import close_month, lines_of
from kernel.database import transaction
from kernel.ids import new_id
from ledger.audit import audit
from tests.compute_hub.billing.house import HOUR_MS, NOW, YUAN, House
from vouchers.afterlife import recall_voucher
from vouchers.claims import make_claim

AFTER = timedelta(minutes=11)


def _late_job(house: House, vouchers: list[UUID]) -> UUID:
    """A job whose hold was given back before its one record of an hour, which costs ¥36, arrived."""
    job_id = house.submit(vouchers=vouchers, limit_ms=HOUR_MS)
    assert house.admit(job_id) is None
    house.end(job_id)
    house.bill(NOW + AFTER)
    assert house.balance()[1] == 0
    return job_id


def _arrive_late(house: House, job_id: UUID) -> None:
    house.meter(house.record(job_id, 0, HOUR_MS, final=True), at=NOW + timedelta(days=10))
    house.bill(NOW + timedelta(days=10))


@pytest.mark.parametrize(("face_yuan", "by_voucher"), [(100, 10_800_000), (0, 0)])
def test_late_usage_is_paid_by_the_jobs_living_voucher_and_own_money_and_reaches_the_claim(
    engine: Engine, face_yuan: int, by_voucher: int
) -> None:
    house = House(engine)
    vouchers = []
    with transaction(engine) as session:
        slug = house.world.programme(session)
        if face_yuan:
            vouchers = [house.world.voucher(session, house.tenant, slug, face_yuan * YUAN)]
    job_id = _late_job(house, vouchers)
    _arrive_late(house, job_id)
    assert house.charged() == (HOUR_MS * 1000, 36 * YUAN, 0)
    assert house.sql("SELECT voucher_micros, tenant_micros FROM charges") == [
        (by_voucher, 36 * YUAN - by_voucher)
    ]
    assert house.balance() == (1000 * YUAN - 36 * YUAN + by_voucher, 0)
    if by_voucher:
        with transaction(engine) as session:
            make_claim(session, slug, "2026-03", by="operator", at=NOW + timedelta(days=11))
        assert house.sql("SELECT amount FROM claim_lines") == [(by_voucher,)]


def test_late_usage_whose_voucher_is_spent_or_recalled_is_the_firms_own(engine: Engine) -> None:
    house = House(engine)
    with transaction(engine) as session:
        slug = house.world.programme(session)
        voucher = house.world.voucher(session, house.tenant, slug, 100 * YUAN)
    job_id = _late_job(house, [voucher])
    with transaction(engine) as session:
        recall_voucher(session, voucher, reason="the firm has moved", by="officer", at=NOW + AFTER)
    _arrive_late(house, job_id)
    assert house.sql("SELECT voucher_micros, tenant_micros FROM charges") == [(0, 36 * YUAN)]


def test_late_usage_that_nobody_can_pay_is_forgone_and_the_charge_says_so(engine: Engine) -> None:
    house = House(engine, prepaid_yuan=75)
    job_id = _late_job(house, [])
    for hours in (2, 4):  # each holds a little more than ¥36
        other = house.submit(limit_ms=HOUR_MS, models=("sim-a",))
        assert house.admit(other, at=NOW + timedelta(hours=hours)) is None
    _arrive_late(house, job_id)
    assert house.charged() == (HOUR_MS * 1000, 0, 36 * YUAN)
    assert house.sql("SELECT count(*) FROM uncharged_usage") == [(0,)]


def test_late_usage_of_a_closed_month_is_an_adjustment_on_the_next_invoice(house: House) -> None:
    early = house.submit(limit_ms=HOUR_MS)
    assert house.admit(early) is None
    house.meter(house.record(early, 0, 60_000, final=True))
    house.end(early)
    job_id = house.submit(limit_ms=HOUR_MS)
    assert house.admit(job_id, at=NOW + timedelta(seconds=1)) is None
    house.end(job_id)
    house.bill(NOW + AFTER)
    april, may = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
    with transaction(house.engine) as session:
        close_month(session, house.tenant, "2026-03", by=new_id(), at=april)
    house.meter(house.record(job_id, 0, HOUR_MS, final=True), at=april)
    house.bill(april)
    with transaction(house.engine) as session:
        row = close_month(session, house.tenant, "2026-04", by=new_id(), at=may)
        assert [(line.month, line.amount_micros) for line in lines_of(session, row.id)] == [
            ("2026-03", 36 * YUAN)
        ]
        assert not audit(session).differences
