"""What the rules know of enterprises is dated: it changes from a day on, and what was decided keeps what it saw."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kernel.database import transaction
from tests.vouchers.world import NOW, YUAN, Place, World
from vouchers.applications import checks_of, submit_application
from vouchers.domain.eligibility import FAIL, LOOK, PASS
from vouchers.enterprises import (
    FactChanges,
    change_facts,
    enterprise_facts,
    facts_history,
    record_controller,
    register_enterprise,
)
from vouchers.errors import CapExceeded, EnterpriseExists, EnterpriseNotFound, MalformedProfile
from vouchers.issuing import issue_voucher
from vouchers.tables import Controller, Enterprise, Voucher

LATER = NOW + timedelta(days=1)
CAP = {"clause": "§4(2)", "per": "controller", "cycle": "year", "amount": "100.00"}


def change(session: Session, enterprise: UUID, **facts: Any) -> int:  # noqa: ANN401 - whatever a fact may be
    return change_facts(session, enterprise, FactChanges(**facts), reason="notice", by="officer", at=LATER)


def test_a_change_is_one_more_version_and_what_was_decided_keeps_the_facts_it_saw(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        voucher = session.get_one(Voucher, place.voucher(session, 10))
        for _ in range(2):
            assert change(session, place.tenant, size_class="large", roles=("leader", "chain")) == 2
        assert change(session, place.tenant, name="New Works") == 3
        facts = enterprise_facts(session, place.tenant)
        assert (facts.version, facts.size_class, facts.roles) == (3, "large", ("chain", "leader"))
        assert (voucher.holder["version"], voucher.holder["size_class"]) == (1, "small")
        history = facts_history(session, place.tenant)
        assert [(row.version, row.size_class, row.reason, row.recorded_by) for row in history] == [
            (1, "small", "registered", "hub"),
            (2, "large", "notice", "officer"),
            (3, "large", "notice", "officer"),
        ]
        assert [(row.name, row.recorded_at) for row in history[1:]] == [
            (history[0].name, LATER),
            ("New Works", LATER),
        ]
        assert [row.version for row in facts_history(session, place.tenant, after=1, limit=1)] == [2]
        assert session.get_one(Voucher, place.voucher(session, 10)).holder["version"] == 3


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"region": "nowhere"}, "region"),
        ({"size_class": "huge"}, "size_class"),
        ({"name": ""}, "name"),
        ({"clean_years": -1}, "clean_years"),
        ({"yearly_contract_micros": -1}, "yearly_contract_micros"),
    ],
)
def test_a_fact_that_cannot_be_changes_nothing(world: World, facts: dict[str, object], field: str) -> None:
    with transaction(world.engine) as session:
        tenant = world.enterprise(session)
        with pytest.raises(MalformedProfile) as refused:
            change(session, tenant, **facts)
        assert refused.value.facts["field"] == field
        assert enterprise_facts(session, tenant).version == 1


def test_facts_of_nobody_are_refused(world: World) -> None:
    with transaction(world.engine) as session:
        stranger = Place(world, "", world.enterprise(session)).job()
        for asked in (lambda: change(session, stranger, name="x"), lambda: facts_history(session, stranger)):
            with pytest.raises(EnterpriseNotFound):
                asked()


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("name", "Other Works"),
        ("region", "330106"),
        ("industry", "software"),
        ("size_class", "startup"),
        ("yearly_contract_micros", YUAN),
        ("clean_years", 3),
        ("roles", ["leader"]),
    ],
)
def test_registering_again_with_another_fact_is_a_conflict_that_names_it(
    world: World, field: str, other: object
) -> None:
    with transaction(world.engine) as session:
        tenant = world.enterprise(session)
        code = enterprise_facts(session, tenant).credit_code
        alike: dict[str, Any] = {
            "credit_code": code,
            "name": facts_history(session, tenant)[0].name,
            "region": "331003",
            "at": LATER,
        }
        change(session, tenant, **{field: tuple(other) if isinstance(other, list) else other})
        assert register_enterprise(session, **alike) == tenant
        with pytest.raises(EnterpriseExists, match=f"^{field}: credit code {code}") as refused:
            register_enterprise(session, **(alike | {field: other}))
        assert (refused.value.facts["field"], refused.value.facts["asked"]) == (field, other)
        assert len(facts_history(session, tenant)) == 2


def test_the_database_keeps_an_enterprise_from_facts_that_nobody_recorded(world: World) -> None:
    with transaction(world.engine) as session:
        tenant = world.enterprise(session)
    with pytest.raises(IntegrityError, match="fk_enterprises_version"), transaction(world.engine) as session:
        session.execute(text("UPDATE enterprises SET version = 2 WHERE id = :id"), {"id": tenant})


def test_who_controlled_a_party_before_stays_on_record(world: World) -> None:
    with transaction(world.engine) as session:
        tenant = world.enterprise(session)
        code = enterprise_facts(session, tenant).credit_code
        for name, at in (("Ms Wu", NOW), ("Ms Wu", LATER), ("Mr Li", LATER), ("Ms Wu", LATER)):
            record_controller(session, code, f"{name} of {code}", reason=f"as {name} says", by="officer", at=at)
        assert enterprise_facts(session, tenant).controller == f"Ms Wu of {code}"
        rows = [session.get_one(Controller, (code, version)) for version in (1, 2, 3)]
        assert [(row.reason, row.recorded_at, row.ended_at) for row in rows] == [
            ("as Ms Wu says", NOW, LATER),
            ("as Mr Li says", LATER, LATER),
            ("as Ms Wu says", LATER, None),
        ]


def group(session: Session, world: World, count: int) -> tuple[Place, list[UUID], str]:
    """A programme with a cap of ¥100 per controller, firms without one, and a name for a controller."""
    place = world.place(session, caps=[CAP])
    return place, [world.enterprise(session) for _ in range(count)], f"Ms Wu of {place.programme}"


def belongs(session: Session, firms: Sequence[UUID], controller: str) -> None:
    for firm in firms:
        code = enterprise_facts(session, firm).credit_code
        record_controller(session, code, controller, by="officer", at=NOW)


def checked(session: Session, place: Place, firm: UUID, yuan: int) -> tuple[str, int, int]:
    """What the cap of the controller says to an application: verdict, issued, issued to who left."""
    application = submit_application(
        session, enterprise_id=firm, programme=place.programme, requested=yuan * YUAN, by="tenant", at=NOW
    )
    (cap,) = [check for check in checks_of(session, application) if check.rule == "cap_per_controller"]
    return cap.verdict, cap.facts["issued"] // YUAN, cap.facts["issued_to_who_left"] // YUAN


def test_what_a_firm_was_issued_counts_for_who_controls_it_now(world: World) -> None:
    with transaction(world.engine) as session:
        place, (bought, firm), owner = group(session, world, 2)
        world.voucher(session, bought, place.programme, 60 * YUAN)
        approved = world.approved(session, firm, place.programme, 41 * YUAN)
        belongs(session, [bought, firm], owner)
        with pytest.raises(CapExceeded) as refused:
            issue_voucher(session, approved, by="officer", at=NOW)
        assert refused.value.facts["issued"] == 60 * YUAN
        belongs(session, [bought], f"Mr Li of {place.programme}")
        issue_voucher(session, approved, by="officer", at=NOW)


def test_a_company_that_controls_others_counts_among_its_group(world: World) -> None:
    with transaction(world.engine) as session:
        place, (parent, child), _ = group(session, world, 2)
        world.voucher(session, parent, place.programme, 60 * YUAN)
        belongs(session, [child], enterprise_facts(session, parent).credit_code)
        assert checked(session, place, child, 41) == (FAIL, 60, 0)
        assert checked(session, place, child, 40) == (PASS, 60, 0)


def test_a_person_looks_where_only_firms_that_left_keep_a_group_within_its_cap(world: World) -> None:
    with transaction(world.engine) as session:
        place, (sold, firm, other), owner = group(session, world, 3)
        belongs(session, [sold, firm, other], owner)
        world.voucher(session, sold, place.programme, 60 * YUAN)
        belongs(session, [sold], f"Mr Li of {place.programme}")
        assert checked(session, place, firm, 41) == (LOOK, 0, 60)
        assert checked(session, place, other, 40) == (PASS, 0, 60)
        assert session.get_one(Enterprise, sold).version == 1
