"""What a programme pays for: usage in a centre, of a kind and by facts that it names."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine

from compute_hub.billing.funding import Funding
from kernel.database import transaction
from tests.compute_hub.billing.house import HOUR_MS, NOW, YUAN, House
from tests.vouchers.world import World
from vouchers.domain.facts import CentreFacts, ContractFacts
from vouchers.enterprises import FactChanges, change_facts


@pytest.mark.parametrize(
    ("programme", "region", "pflops", "micros"),
    [
        ("chengdu", "510107", 0, 10_800_000),
        ("chengdu", "331003", 0, 0),
        ("henan", "410100", 101, 7_200_000),
        ("henan", "410100", 100, 0),
        ("henan", "331003", 101, 0),
    ],
)
def test_a_programme_pays_for_usage_in_a_centre_of_its_region_and_size(
    engine: Engine, programme: str, region: str, pflops: int, micros: int
) -> None:
    house = House(engine, centre=CentreFacts(region, pflops))
    world = World(engine)
    approved = datetime(2026, 2, 1, 2, 0, tzinfo=UTC)
    with transaction(engine) as session:
        place = {"chengdu": "510107", "henan": "410100"}[programme]
        change_facts(session, house.tenant, FactChanges(region=place), reason="moved", by="o", at=NOW)
        contract = ContractFacts(centre_region=place, centre_pflops=101)
        world.voucher(
            session,
            house.tenant,
            world.programme(session, programme),
            1_000 * YUAN,
            approved,
            contract=contract,
            issued_at=NOW,
        )
    job_id = house.submit(vouchers=None)
    assert house.admit(job_id) is None
    house.meter(house.record(job_id, 0, HOUR_MS, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged() == (1000 * HOUR_MS, 36 * YUAN, 0)
    assert house.sql("SELECT voucher_micros FROM charges") == [(micros,)]
    assert house.balance() == (964 * YUAN + micros, 0)


@pytest.mark.parametrize(
    ("programme", "environment", "micros"),
    [
        ("shanghai-model", "language-model", 18 * YUAN),
        ("shenzhen-model", "language-model", 10_800_000),
        ("shanghai-model", "e", 0),
        ("huangyan", "language-model", 0),
        ("huangyan", "e", 10_800_000),
    ],
)
def test_a_programme_pays_for_jobs_whose_environment_is_of_a_cost_kind_it_is_for(
    engine: Engine, programme: str, environment: str, micros: int
) -> None:
    house = House(engine, centre=CentreFacts("310115", 0, {"language-model": "model"}))
    world = World(engine)
    region = {"shanghai-model": "310115", "shenzhen-model": "440305", "huangyan": "331003"}[programme]
    with transaction(engine) as session:
        change_facts(session, house.tenant, FactChanges(region=region), reason="moved", by="o", at=NOW)
        anywhere = world.document(programme)["eligible"] | {"centre_regions": ["any"]}
        slug = world.programme(session, programme, eligible=anywhere)
        contract = ContractFacts(cost_kind=next(iter(anywhere["cost_kinds"])))
        approved = datetime(2026, 2, 1, 2, 0, tzinfo=UTC)
        world.voucher(session, house.tenant, slug, 1_000 * YUAN, approved, contract=contract, issued_at=NOW)
    job_id = house.submit(vouchers=None, environment=environment)
    assert house.admit(job_id) is None
    house.keep(job_id, HOUR_MS * 9 // 10)
    house.meter(house.record(job_id, 0, HOUR_MS, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged() == (1000 * HOUR_MS, 36 * YUAN, 0)
    paid = "SELECT coalesce(sum(amount_micros), 0) FROM coverage_lines WHERE source = 'voucher'"
    assert house.sql(paid) == [(micros,)]
    kind = "model" if environment == "language-model" else "compute"
    assert house.sql("SELECT DISTINCT facts ->> 'cost_kind' FROM covered_charges") == [(kind,)]


def test_a_job_is_charged_by_the_facts_it_was_held_for_after_the_centre_has_changed(engine: Engine) -> None:
    house = House(engine)
    job_id = house.submit()
    house.admit(job_id)
    house.funding = Funding(HOUR_MS, CentreFacts("330100", 400))
    house.keep(job_id, HOUR_MS * 9 // 10)
    house.meter(house.record(job_id, 0, HOUR_MS * 3 // 2, final=True))
    house.end(job_id)
    house.bill()
    assert house.charged() == (1500 * HOUR_MS, 54 * YUAN, 0)
