"""Usage is kept once, in any order; what contradicts is an alarm and never billed."""

from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import Engine, text

from compute_hub.billing.uncharged import LATE
from compute_hub.metering.gaps import list_gap_cases, open_gap_cases
from compute_hub.metering.holding import held_time
from kernel.database import transaction
from tests.compute_hub.billing.house import NOW, House
from tests.conftest import Database


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


def test_a_gap_opens_a_case_that_is_filled_when_the_record_arrives_after_all(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, 1000), house.record(job_id, 2, 1000, final=True))
    house.end(job_id)
    house.bill()
    assert house.sql("SELECT count(*) FROM gap_cases") == [(0,)]
    house.bill(NOW + LATE + timedelta(seconds=1))
    with transaction(house.engine) as session:
        (gap,) = list_gap_cases(session, limit=10)
    assert (gap.case.job_id, gap.case.first_missing_k, gap.case.kind) == (job_id, 1, "missing_record")
    assert (gap.node, gap.filled) == ("n", False)
    house.meter(house.record(job_id, 1, 1000))
    house.bill(NOW + timedelta(days=10))
    with transaction(house.engine) as session:
        (gap,) = list_gap_cases(session, limit=10)
        assert gap.filled
        assert list_gap_cases(session, limit=10, after=(job_id, 1, 0, 1)) == []
    assert house.charged()[0] == 3_000_000


def test_what_was_allocated_and_not_metered_is_the_holders_and_so_is_what_was_idle(house: House) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(house.record(job_id, 0, 60_000, cpu_ms=45_000, final=True))
    with transaction(house.engine) as session:
        session.execute(
            text("UPDATE allocations SET span = tstzrange(lower(span), lower(span) + interval '100 s')")
        )
    with transaction(house.engine) as session:
        (held,) = held_time(session, job_id=job_id, at=NOW + timedelta(hours=1))
    assert (held.allocated_ms, held.metered_ms, held.busy_ms) == (100_000, 60_000, 45_000)
    assert (held.unused_ms, held.idle_ms, held.tenant_id) == (40_000, 15_000, house.tenant)


@pytest.mark.parametrize(
    ("numbers", "final", "expected"),
    [
        ((), None, [(0, "no_final_record")]),
        ((0, 1), None, [(2, "no_final_record")]),
        ((0, 1), 1, []),
        ((1, 2), 2, [(0, "missing_record")]),
        ((0, 2, 4), 4, [(1, "missing_record")]),
    ],
)
def test_a_case_names_the_first_record_that_is_missing(
    house: House, numbers: tuple[int, ...], final: int | None, expected: list[tuple[int, str]]
) -> None:
    job_id = house.submit()
    house.admit(job_id)
    house.meter(*(house.record(job_id, k, 1000, final=k == final) for k in numbers))
    with transaction(house.engine) as session:
        for _ in range(2):
            open_gap_cases(session, job_id, NOW)
    assert house.sql("SELECT first_missing_k, kind FROM gap_cases") == expected


def test_what_several_nodes_send_at_once_is_kept_under_the_run_it_is_about_and_tells_the_biller_once(
    house: House, database: Database
) -> None:
    first, second, third = (house.submit() for _ in range(3))
    for number, job_id in enumerate((first, second, third)):
        house.admit(job_id, at=NOW + timedelta(milliseconds=number))
    with transaction(house.engine) as session:
        session.execute(
            text("INSERT INTO nodes VALUES ('m', 'g', 'up', '{}', 1, 1, '{}', :at, :at)"), {"at": NOW}
        )
        session.execute(text("UPDATE runs SET node = 'm' WHERE job_id = :job"), {"job": second})
    here, there, lied = (house.record(job_id, 0, 1000) for job_id in (first, second, third))
    with psycopg.connect(database.url.replace("+psycopg", "", 1), autocommit=True) as listening:
        listening.execute("LISTEN hub_biller")
        for _ in range(2):
            with transaction(house.engine) as session:
                house.funding.record_usage(session, {"m": [there, here, lied], "n": [here]}, NOW)
        assert [word.channel for word in listening.notifies(timeout=0)] == ["hub_biller"]
    assert house.sql("SELECT node, job_id FROM usage_records ORDER BY node") == [("m", second), ("n", first)]
    assert house.sql("SELECT DISTINCT slot_ms FROM usage_totals") == [(1_000_000,)]
    assert house.sql("SELECT count(*) FROM uncharged_usage") == [(2,)]
    assert house.sql("SELECT record_id FROM usage_mismatches ORDER BY 1") == sorted([(here.id,), (lied.id,)])
