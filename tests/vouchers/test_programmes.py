"""The example programmes of real places, each replayed on one enterprise with amounts computed by hand."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kernel.database import transaction
from ledger.reading import balances
from tests.vouchers.world import EXAMPLES, YUAN, World
from vouchers import accounts
from vouchers.cases import open_round
from vouchers.domain.facts import ChargeFacts, ContractFacts
from vouchers.domain.terms import MS_PER_HOUR
from vouchers.programmes import parse_programme, publish_programme
from vouchers.redemption import quote
from vouchers.wallets import deposit

LONG_AGO = datetime(2025, 6, 2, 4, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Worked:
    """One enterprise: what it is, its vouchers, its usage, and what each voucher must pay of it."""

    vouchers: dict[str, int]
    cost: int
    pays: dict[str, int]
    tenant: int
    region: str
    facts: ChargeFacts = field(default_factory=lambda: ChargeFacts(model="MLU370"))
    profile: dict[str, Any] = field(default_factory=dict)
    contract: ContractFacts = field(default_factory=ContractFacts)
    later: int = 0


WORKED = {
    # ¥1,000 at 30 %.
    "huangyan": Worked(
        {"huangyan": 200_000 * YUAN}, 1_000 * YUAN, {"huangyan": 300 * YUAN}, 700 * YUAN, "331003"
    ),
    # ¥100 at 30 %; the national 10 % just fits under the ceiling of 40 %.
    "hangzhou with national": Worked(
        {"hangzhou": 8_000_000 * YUAN, "national": 1_000 * YUAN},
        100 * YUAN,
        {"hangzhou": 30 * YUAN, "national": 10 * YUAN},
        60 * YUAN,
        "330106",
        profile={"yearly_contract_micros": 600_000 * YUAN},
    ),
    # ¥100 on other hardware at 20 %.
    "hangzhou, other hardware": Worked(
        {"hangzhou": 1_000 * YUAN},
        100 * YUAN,
        {"hangzhou": 20 * YUAN},
        80 * YUAN,
        "330106",
        facts=ChargeFacts(model="A100", hardware="other"),
        profile={"yearly_contract_micros": 600_000 * YUAN},
    ),
    # Contracts of ¥500,000 a year are still small: ¥100 at 50 %, national 10 % under the ceiling of 60 %.
    "hangzhou, small contracts": Worked(
        {"hangzhou": 1_000 * YUAN, "national": 1_000 * YUAN},
        100 * YUAN,
        {"hangzhou": 50 * YUAN, "national": 10 * YUAN},
        40 * YUAN,
        "330106",
        profile={"yearly_contract_micros": 500_000 * YUAN},
    ),
    # 20 % of a contract of ¥100,000 is the voucher; of ¥10,000 used and paid first, ¥2,000 come back.
    "beijing": Worked(
        {"beijing": 20_000 * YUAN},
        10_000 * YUAN,
        {"beijing": 2_000 * YUAN},
        10_000 * YUAN,
        "110108",
        facts=ChargeFacts(model="MLU370", region="110108"),
        profile={"clean_years": 3},
        contract=ContractFacts(
            number="BJ-1", supplier="91110108000000001X", amount_micros=100_000 * YUAN, days=365
        ),
        later=2_000 * YUAN,
    ),
    # City 30 % and district 70 % pay it all.
    "shanghai with district": Worked(
        {"shanghai": 5_000 * YUAN, "shanghai-district": 5_000 * YUAN},
        1_000 * YUAN,
        {"shanghai": 300 * YUAN, "shanghai-district": 700 * YUAN},
        0,
        "310115",
    ),
    # The district voucher has ¥500 left of the ¥700 it could pay.
    "shanghai with a nearly spent district voucher": Worked(
        {"shanghai": 5_000 * YUAN, "shanghai-district": 500 * YUAN},
        1_000 * YUAN,
        {"shanghai": 300 * YUAN, "shanghai-district": 500 * YUAN},
        200 * YUAN,
        "310115",
    ),
    # ¥8,000 of model service at 50 %.
    "shanghai-model": Worked(
        {"shanghai-model": 5_000_000 * YUAN},
        8_000 * YUAN,
        {"shanghai-model": 4_000 * YUAN},
        4_000 * YUAN,
        "310115",
        facts=ChargeFacts(model="MLU370", cost_kind="model"),
    ),
    # ¥1,000 at 50 %.
    "shenzhen-training": Worked(
        {"shenzhen-training": 10_000_000 * YUAN},
        1_000 * YUAN,
        {"shenzhen-training": 500 * YUAN},
        500 * YUAN,
        "440305",
    ),
    # A start-up's ¥1,000 at 60 %.
    "shenzhen-training, start-up": Worked(
        {"shenzhen-training": 1_000 * YUAN},
        1_000 * YUAN,
        {"shenzhen-training": 600 * YUAN},
        400 * YUAN,
        "440305",
        profile={"size_class": "startup"},
    ),
    # ¥1,000 of model service: the buyer pays it and gets 30 % back. A key project may hold ¥2 M.
    "shenzhen-model": Worked(
        {"shenzhen-model": 2_000_000 * YUAN},
        1_000 * YUAN,
        {"shenzhen-model": 300 * YUAN},
        1_000 * YUAN,
        "440305",
        facts=ChargeFacts(model="MLU370", cost_kind="model"),
        profile={"roles": ["key_project"]},
        later=300 * YUAN,
    ),
    # ¥10,000 at 30 %; a project lead may hold ¥1.5 M.
    "chengdu": Worked(
        {"chengdu": 1_500_000 * YUAN},
        10_000 * YUAN,
        {"chengdu": 3_000 * YUAN},
        7_000 * YUAN,
        "510104",
        facts=ChargeFacts(model="MLU370", region="510104"),
        profile={"roles": ["project_lead"]},
    ),
    # ¥10,000 at 20 %, on a centre of 101 PFLOPS.
    "henan": Worked(
        {"henan": 1_000_000 * YUAN},
        10_000 * YUAN,
        {"henan": 2_000 * YUAN},
        8_000 * YUAN,
        "410105",
        facts=ChargeFacts(model="MLU370", region="410105", centre_pflops=101),
        contract=ContractFacts(
            number="HN-1", supplier="914101050000001X", amount_micros=5_000_000 * YUAN, centre_pflops=101
        ),
    ),
    # ¥10,000 paid, ¥2,000 come back.
    "qingdao": Worked(
        {"qingdao": 2_000 * YUAN},
        10_000 * YUAN,
        {"qingdao": 2_000 * YUAN},
        10_000 * YUAN,
        "370202",
        contract=ContractFacts(number="QD-1", supplier="913702020000001X", amount_micros=10_000 * YUAN),
        later=2_000 * YUAN,
    ),
    # 5 of the job's 8 card-hours are granted: five eighths of ¥80.
    "uk-airr": Worked(
        {"uk-airr": 5 * MS_PER_HOUR},
        80 * YUAN,
        {"uk-airr": 50 * YUAN},
        30 * YUAN,
        "GB",
        facts=ChargeFacts(model="GH200", hardware="other", region="GB", card_ms=8 * MS_PER_HOUR),
    ),
}


@pytest.mark.parametrize("case", WORKED)
def test_a_worked_enterprise_gets_what_was_computed_by_hand(world: World, case: str) -> None:
    worked = WORKED[case]
    with transaction(world.engine) as session:
        tenant = world.enterprise(session, region=worked.region, at=LONG_AGO, **worked.profile)
        names = {}
        for number, (name, face) in enumerate(worked.vouchers.items()):
            document = world.document(name)
            publish_programme(session, document, by="officer", at=LONG_AGO)
            round_id = None
            if document["review"].get("rounds"):
                round_id = open_round(
                    session,
                    name,
                    "first call",
                    opens_at=LONG_AGO - timedelta(days=1),
                    cut_off_at=LONG_AGO + timedelta(days=1),
                    by="officer",
                )
            contract = worked.contract if number == 0 else ContractFacts()
            voucher = world.voucher(
                session,
                tenant,
                name,
                face,
                LONG_AGO,
                contract=contract,
                round_id=round_id,
                issued_at=LONG_AGO + timedelta(days=10),
            )
            names[str(voucher)] = name
        deposit(session, tenant, 10_000 * YUAN, f"deposit {case}", LONG_AGO)
        used = LONG_AGO + timedelta(days=20)
        coverage = quote(session, tenant, worked.cost, worked.facts, None, used)
        paid = {names[line.voucher]: line.amount_micros for line in coverage.lines if line.voucher}
    assert paid == worked.pays
    assert coverage.tenant_micros == worked.tenant
    assert coverage.reimbursed_micros == worked.later
    assert sum(line.amount_micros for line in coverage.lines if not line.paid_later) == worked.cost


def test_every_example_is_worked_and_valid(world: World) -> None:
    files = {path.stem for path in EXAMPLES.glob("*.json")}
    assert files == {name for worked in WORKED.values() for name in worked.vouchers}
    for name in sorted(files):
        assert parse_programme(world.document(name)).programme == name


def test_the_explanation_names_clauses_shares_and_the_ceiling(world: World) -> None:
    with transaction(world.engine) as session:
        tenant = world.enterprise(session, region="330106", yearly_contract_micros=600_000 * YUAN)
        city = world.programme(session, "hangzhou", LONG_AGO)
        national = world.programme(session, "national", LONG_AGO)
        for programme in (city, national):
            world.voucher(
                session, tenant, programme, YUAN * 1_000, LONG_AGO, issued_at=LONG_AGO + timedelta(days=10)
            )
        deposit(session, tenant, 100 * YUAN, "explained", LONG_AGO)
        said = quote(
            session, tenant, 100 * YUAN, ChargeFacts("MLU370"), None, LONG_AGO + timedelta(days=10)
        ).sentence
    assert "pays 30 % (Hangzhou 2025 §3), ceiling 40 % reached (Hangzhou 2025 §5), ¥30.00" in said
    assert "pays 10 % (National §3)" in said
    assert said.endswith("you pay ¥60.00.")


def test_province_and_city_fund_henans_pool_one_to_one(world: World) -> None:
    with transaction(world.engine) as session:
        slug = world.programme(session, "henan", LONG_AGO, programme="henan-split")
        places = [accounts.authority_funds(name, "CNY") for name in ("henan-province", "zhengzhou-city")]
        before = balances(session, [place.id for place in places])
        pool = accounts.pool(slug, "2025", "CNY")
        assert balances(session, [pool.id])[pool.id].net == 50_000_000 * YUAN
        assert before[places[0].id].net == before[places[1].id].net < 0
