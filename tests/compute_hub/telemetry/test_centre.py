import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from benchmarks.metrics import MODELS, Size, seed
from compute_hub.telemetry.auditing import audit_if_due
from compute_hub.telemetry.centre import Centre, Part
from compute_hub.telemetry.families import LABEL_CHARACTERS_MAX, OTHER, Bounded, Family, Sample, exposition
from compute_hub.telemetry.history import History
from compute_hub.telemetry.metrics import centre_families, parts
from compute_hub.telemetry.parts.capacity import capacity
from compute_hub.telemetry.registry import REGISTRY
from compute_hub.telemetry.sensors import tell_sensed
from kernel.database import transaction
from scheduler.node.sensing import Sensed
from tests.compute_hub.billing.house import HOUR_MS, NOW, House
from tests.conftest import Database
from tests.vouchers.world import World
from vouchers.reading import programme_totals
from vouchers.wallets import grant_credit

PEAKS = {model: ("fp16", Fraction(1, 2)) for model in (*MODELS, "sim-a")}
THING = Family("hub_things", "Things.", ("name",))
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def values(content: bytes) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }


def total(found: Values, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    matching = [value for (known, own), value in found.items() if known == name and wanted <= set(own)]
    assert matching, f"there is no {name} with {labels}"
    return sum(matching)


@pytest.fixture
def centre(engine: Engine) -> Iterator[Centre]:
    made = Centre(engine, [replace(part, interval_ms=0) for part in parts(PEAKS)])
    yield made
    made.close()


def scrape(centre: Centre) -> Values:
    centre.scrape()
    centre.settle()
    content = centre.scrape()
    centre.settle()
    return values(content)


def fill(database: Database, size: Size) -> None:
    owner = create_engine(database.owner_url)
    with owner.begin() as connection:
        seed(connection, size)
    owner.dispose()


def test_an_empty_centre_is_scraped_without_a_failed_part(centre: Centre) -> None:
    found = scrape(centre)
    assert total(found, "hub_collector_failed") == 0
    assert total(found, "hub_nodes") == 0
    assert total(found, "hub_charged_yuan_total") == 0


def test_what_promtool_reads_it_finds_well_formed_and_well_named(database: Database, centre: Centre) -> None:
    fill(database, Size(16, 3, 100))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=centre.scrape(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_capacity_jobs_usage_and_money_are_what_the_database_holds(database: Database, centre: Centre) -> None:
    size = Size(devices=64, tenants=10, jobs=500)
    fill(database, size)
    found = scrape(centre)
    assert total(found, "hub_devices", state="available") == 64
    assert total(found, "hub_devices_allocated") == size.running
    assert total(found, "hub_devices_free_whole") == 64 - size.running
    assert total(found, "hub_peak_pflops", state="available") == 32
    assert total(found, "hub_jobs", state="queued") == size.waiting
    assert total(found, "hub_queue_jobs", size="1") == size.waiting
    assert total(found, "hub_jobs_ended_total", state="succeeded", reason="exited") == size.ended
    assert total(found, "hub_used_card_seconds_total") == size.ended * 120
    assert total(found, "hub_busy_card_seconds_total") == size.ended * 60
    assert total(found, "hub_delivered_pflop_seconds_total") == size.ended * 30
    assert total(found, "hub_charged_yuan_total", payer="voucher") == pytest.approx(size.ended * 0.6)
    assert total(found, "hub_tenant_charged_yuan_total", payer="tenant") == pytest.approx(size.ended * 0.4)
    assert total(found, "hub_tenant_prepaid_yuan") == 10_000
    assert total(found, "hub_voucher_remaining_yuan") == 100_000
    assert total(found, "hub_voucher_expiring_yuan", within="30d") == 0
    assert total(found, "hub_voucher_expiring_yuan", within="60d") == 100_000
    cards = 10 * 10_000 / (40 * 24) / 36
    assert total(found, "hub_devices_sold", basis="money") == pytest.approx(cards)


def test_the_oldest_wait_grows_with_the_clock_and_nobody_leads_once_the_lease_is_over(
    database: Database, centre: Centre, engine: Engine
) -> None:
    fill(database, Size(16, 1, 10))
    assert total(scrape(centre), "hub_queue_oldest_wait_seconds") >= 3600
    (queue,) = [part for part in parts({}) if part.name == "queue"]
    with transaction(engine) as session:
        samples = list(queue.read(session, datetime.now(UTC) + timedelta(hours=2)))
    assert next(s.value for s in samples if s.family.name == "hub_scheduler_leader_lease_seconds") < 0


def test_the_vouchers_money_equals_the_programmes_totals(engine: Engine, centre: Centre) -> None:
    world = World(engine)
    with transaction(engine) as session:
        place = world.place(session)
        place.voucher(session, 500)
        place.run(session, 100)
    with transaction(engine) as session:
        totals = programme_totals(session, place.programme)
    found = scrape(centre)
    for stage in ("budget", "pool", "issued", "remaining", "held", "captured", "returned", "disbursed"):
        figure = total(found, f"hub_voucher_{stage}_yuan", programme=place.programme)
        assert figure == getattr(totals, stage) / 1e6, stage
    assert totals.captured > 0
    assert total(found, "hub_receivable_yuan", stage="claimable") == totals.captured / 1e6
    assert total(found, "hub_voucher_firm_captured_yuan") == totals.captured / 1e6


def test_what_was_used_of_a_credit_line_is_arrears(engine: Engine, centre: Centre) -> None:
    house = House(engine, prepaid_yuan=0)
    with transaction(engine) as session:
        grant_credit(session, house.tenant, 100_000_000, "line", NOW)
    job = house.submit()
    assert house.admit(job) is None
    house.meter(house.record(job, 0, HOUR_MS, final=True))
    house.bill(NOW + timedelta(hours=1))
    found = scrape(centre)
    assert total(found, "hub_tenant_arrears_yuan") == 36
    assert total(found, "hub_tenant_charged_yuan_total", payer="tenant") == 36
    assert total(found, "hub_tenant_card_seconds_total") == 3600


def test_a_hole_in_the_meters_records_and_a_run_without_an_end_are_gaps(engine: Engine, centre: Centre) -> None:
    house = House(engine)
    first, second = house.submit(), house.submit()
    assert house.admit(first, "sim-a") is None
    assert house.admit(second, "sim-b") is None
    now = datetime.now(UTC)
    with transaction(engine) as session:
        house.funding.record_usage(session, {"n": [house.record(first, k, 1000) for k in (0, 2)]}, now)
        session.execute(
            text("UPDATE runs SET state = 'ended', started_at = :t, ended_at = :t WHERE job_id = :job"),
            {"t": now - timedelta(minutes=20), "job": second},
        )
    found = scrape(centre)
    assert total(found, "hub_metering_gaps", kind="missing") == 1
    assert total(found, "hub_metering_gaps", kind="unfinished") == 1
    assert total(found, "hub_metering_uncharged_records") == 2


def test_names_with_quotes_newlines_and_signs_of_any_script_come_out_as_they_went_in() -> None:
    names = ['a"b', "line\nbreak", "back\\slash", "黄岩区模具厂 №1", 'tab\tand {brace}="x",', "", "🚀"]
    found = values(exposition([THING], [THING(number, name) for number, name in enumerate(names)]))
    assert found == {("hub_things", (("name", name),)): number for number, name in enumerate(names)}


def test_very_long_names_are_cut_and_what_then_coincides_is_added_up() -> None:
    found = values(exposition([THING], [THING(1, "x" * 100_000), THING(2, "x" * 200_000)]))
    (((_, ((_, label),)), value),) = found.items()
    assert (len(label), value) == (LABEL_CHARACTERS_MAX, 3)


def test_odd_names_in_the_database_break_no_scrape(database: Database, centre: Centre) -> None:
    owner = create_engine(database.owner_url)
    with owner.begin() as connection:
        seed(connection, Size(8, 2, 10))
        connection.execute(
            text("UPDATE enterprise_versions SET name = E'\"quoted\"\\nand \\\\ ' || repeat('长', 5000)")
        )
        connection.execute(text("UPDATE devices SET model = E'odd \"card\"\\n'"))
    owner.dispose()
    found = scrape(centre)
    assert total(found, "hub_devices", model='odd "card"\n') == 8
    assert total(found, "hub_tenant_info") == 2
    assert total(found, "hub_collector_failed") == 0


def test_values_beyond_a_labels_bound_are_other() -> None:
    bounded = Bounded(["c", "a", "b"], 2)
    assert [bounded(value) for value in ("a", "b", "c", "d")] == ["a", "b", OTHER, OTHER]


def test_a_part_that_fails_is_left_out_and_counted_and_comes_back(engine: Engine) -> None:
    broken = threading.Event()
    broken.set()

    def read(session: Session, _at: datetime) -> list[Sample]:
        session.execute(text("SELECT * FROM no_such_table" if broken.is_set() else "SELECT 1"))
        return [THING(1, "a")]

    centre = Centre(engine, [Part("things", 0, (THING,), read), replace(capacity({}), interval_ms=0)])
    found = scrape(centre)
    assert found["hub_collector_failed", (("part", "things"),)] == 1
    assert found["hub_collector_failed", (("part", "capacity"),)] == 0
    assert ("hub_things", (("name", "a"),)) not in found
    broken.clear()
    assert total(scrape(centre), "hub_things") == 1
    centre.close()


def test_a_reading_that_hangs_delays_no_scrape_and_the_last_figures_are_served(engine: Engine) -> None:
    free, hangs, asked = threading.Event(), threading.Event(), []
    free.set()

    def read(_session: Session, _at: datetime) -> list[Sample]:
        asked.append(1)
        if not free.is_set():
            hangs.set()
        assert free.wait(60)
        return [THING(len(asked), "a")]

    centre = Centre(engine, [Part("things", 0, (THING,), read)])
    centre.scrape()
    free.clear()
    assert total(values(centre.scrape()), "hub_things") == 1
    assert hangs.wait(60)
    assert total(values(centre.scrape()), "hub_things") == 1
    assert len(asked) == 2
    free.set()
    centre.settle()
    assert total(values(centre.scrape()), "hub_things") >= 2
    centre.close()


def test_a_part_is_read_once_in_its_interval_however_many_ask(engine: Engine) -> None:
    asked = []

    def read(_session: Session, _at: datetime) -> list[Sample]:
        asked.append(1)
        return [THING(1, "a")]

    centre = Centre(engine, [Part("things", 3_600_000, (THING,), read)])
    threads = [threading.Thread(target=centre.scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    centre.close()


def test_a_sample_of_an_undeclared_family_is_refused() -> None:
    with pytest.raises(ValueError, match="not declared"):
        exposition([], [THING(1, "a")])
    with pytest.raises(ValueError, match="takes the labels"):
        THING(1)
    with pytest.raises(ValueError, match="counters end in _total"):
        Family("hub_things_total", "Things.")


def test_no_label_is_a_job_and_every_name_carries_the_products_prefix() -> None:
    for _, families in centre_families():
        for family in families:
            assert family.name.startswith("hub_")
            assert not {"job_id", "run", "user", "person"} & set(family.labels)


def test_sums_of_the_past_are_those_of_the_whole_table_whenever_they_are_folded(database: Database) -> None:
    owner = create_engine(database.owner_url)
    query = "SELECT kind, sum(n), count(*) FROM things WHERE at > :since AND at <= :until GROUP BY kind"
    history, begun = History(query, keys=1), datetime(2026, 1, 1, tzinfo=UTC)
    with owner.begin() as connection:
        connection.execute(text("CREATE TABLE things (kind text, n bigint, at timestamptz)"))
    for step in range(40):
        at = begun + step * timedelta(minutes=17)
        with Session(owner) as session, session.begin():
            for late in (0, 5):
                session.execute(
                    text("INSERT INTO things VALUES (:kind, :n, :at)"),
                    {"kind": f"k{step % 3}", "n": step, "at": at - timedelta(minutes=late)},
                )
            rows = session.execute(
                text("SELECT kind, sum(n), count(*) FROM things GROUP BY kind ORDER BY kind")
            )
            assert history.sums(session, at) == {(kind,): (float(n), float(count)) for kind, n, count in rows}
    owner.dispose()


def test_the_ledger_is_audited_when_it_is_due_and_a_false_balance_is_counted(
    database: Database, engine: Engine, centre: Centre
) -> None:
    house, now = House(engine), datetime.now(UTC)
    assert house.tenant
    first = audit_if_due(engine, 1000, now)
    assert first is not None
    assert first.differences == 0
    assert audit_if_due(engine, 1000, now + timedelta(milliseconds=999)) is None
    owner = create_engine(database.owner_url)
    with owner.begin() as connection:
        connection.execute(
            text("UPDATE accounts SET credits_posted = credits_posted + 1 WHERE name LIKE '%/prepaid'")
        )
    owner.dispose()
    second = audit_if_due(engine, 1000, now + timedelta(seconds=1))
    assert second is not None
    assert second.differences >= 1
    assert second.explanations
    found = scrape(centre)
    assert total(found, "hub_ledger_audit_differences") == second.differences
    assert total(found, "hub_ledger_audit_age_seconds") < 600


def test_a_failed_audit_leaves_the_checkpoint_where_it_was(
    database: Database, engine: Engine, centre: Centre
) -> None:
    house, now = House(engine), datetime.now(UTC)
    assert house.tenant
    clean = audit_if_due(engine, 1000, now - timedelta(hours=7))
    assert clean is not None
    owner = create_engine(database.owner_url)
    with owner.begin() as connection:
        connection.execute(
            text("UPDATE accounts SET credits_posted = credits_posted + 1 WHERE name LIKE '%/prepaid'")
        )
    owner.dispose()
    failed = audit_if_due(engine, 1000, now)
    assert failed is not None
    assert failed.differences
    found = scrape(centre)
    assert total(found, "hub_ledger_audit_age_seconds") < 600
    assert total(found, "hub_ledger_checkpoint_age_seconds") > 6 * 3600
    assert total(found, "hub_ledger_checkpoint_transfers") == clean.transfers


def test_the_funnel_of_firms_is_that_of_their_programme(engine: Engine, centre: Centre) -> None:
    world = World(engine)
    with transaction(engine) as session:
        place = world.place(session)
        place.voucher(session, 500)
        place.run(session, 100)
        totals = programme_totals(session, place.programme)
    found = scrape(centre)
    for stage, amount in (
        ("issued", 500_000_000),
        ("held", totals.held),
        ("captured", totals.captured),
        ("claimed", totals.claimed),
        ("disbursed", totals.disbursed),
    ):
        assert total(found, f"hub_voucher_firm_{stage}_yuan", programme=place.programme) == amount / 1e6, stage


def test_power_and_temperature_are_shown_while_a_sensor_tells_them() -> None:
    def shown() -> Values:
        found = values(generate_latest(REGISTRY))
        return {key: value for key, value in found.items() if key[0].startswith("hub_device_")}

    tell_sensed("node-9", [Sensed(0, 0, power_mw=61_500, temperature_c=54), Sensed(1, 0)])
    card = (("device", "0"), ("node", "node-9"))
    assert shown() == {("hub_device_power_watts", card): 61.5, ("hub_device_temperature_celsius", card): 54}
    tell_sensed("node-9", [Sensed(0, 0), Sensed(1, 0)])
    assert shown() == {}


def test_what_an_operator_closed_or_what_is_broken_is_not_available(database: Database, centre: Centre) -> None:
    fill(database, Size(8, 2, 10))
    owner = create_engine(database.owner_url)
    with owner.begin() as connection:
        connection.execute(text("UPDATE devices SET cordoned = (number = 1), healthy = (number <> 2)"))
    owner.dispose()
    found = scrape(centre)
    counted = {
        state: total(found, "hub_devices", state=state) for state in ("available", "draining", "unhealthy")
    }
    assert counted == {"available": 6, "draining": 1, "unhealthy": 1}
    assert total(found, "hub_node_devices_unhealthy") == 1
    owner = create_engine(database.owner_url)
    with owner.begin() as connection:
        connection.execute(text("UPDATE nodes SET admits = 'draining'"))
    owner.dispose()
    found = scrape(centre)
    assert total(found, "hub_devices", state="draining") == 8
    assert total(found, "hub_nodes", state="draining") == total(found, "hub_nodes")
