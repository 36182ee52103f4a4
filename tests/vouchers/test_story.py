"""One enterprise's way through a programme: application, voucher, job, charges, claim."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.ids import derived_id
from vouchers.applications import (
    checks_of,
    final_approval,
    first_review,
    reject_application,
    submit_application,
)
from vouchers.capturing import capture_charge
from vouchers.claims import make_claim
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import register_enterprise
from vouchers.errors import (
    ChargeBeyondHold,
    HoldReleased,
    NoFunding,
    NothingToClaim,
    PoolExhausted,
    SamePerson,
    VoucherNotFound,
)
from vouchers.issuing import issue_voucher
from vouchers.programmes import publish_programme
from vouchers.reading import claim_view, list_vouchers, programme_totals
from vouchers.redemption import extend_hold, place_hold, quote, release_hold
from vouchers.tables import Application
from vouchers.wallets import deposit, wallet_balance

EXAMPLES = Path(__file__).parents[2] / "examples" / "programmes"
NOW = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
YUAN = 1_000_000
FACTS = ChargeFacts(model="MLU370", region="331003")
JOB = derived_id("job", 1)


def huangyan(**changed: object) -> dict[str, object]:
    document = json.loads((EXAMPLES / "huangyan.json").read_text(encoding="utf-8"))
    return document | changed


def enterprise(session: Session, number: int = 1, **facts: object) -> UUID:
    plain: dict[str, object] = {"name": f"Mould works {number}", "region": "331003", "at": NOW}
    return register_enterprise(session, credit_code=f"9133100300000{number:04d}X", **(plain | facts))  # type: ignore[arg-type]


def voucher_for(session: Session, tenant: UUID, yuan: int, programme: str = "huangyan") -> UUID:
    application = submit_application(
        session, enterprise_id=tenant, programme=programme, requested=yuan * YUAN, by="tenant", at=NOW
    )
    first_review(session, application, by="first", at=NOW)
    final_approval(session, application, by="second", at=NOW)
    return issue_voucher(session, application, by="officer", at=NOW)


def sources(coverage: Coverage) -> list[tuple[str, int]]:
    return [(line.source, line.amount_micros) for line in coverage.lines]


@pytest.fixture
def tenant(engine: Engine) -> UUID:
    with transaction(engine) as session:
        publish_programme(session, huangyan(), by="officer", at=NOW)
        tenant_id = enterprise(session)
        deposit(session, tenant_id, 1_000 * YUAN, "bank-1", NOW)
    return tenant_id


def test_the_story_from_application_to_claim(engine: Engine, tenant: UUID) -> None:
    with transaction(engine) as session:
        voucher = voucher_for(session, tenant, 100_000)
    with transaction(engine) as session:
        offered = quote(session, tenant, 100 * YUAN, FACTS, None, NOW)
        assert sources(offered) == [("voucher", 30 * YUAN), ("prepaid", 70 * YUAN)]
        assert "Huangyan §3" in offered.sentence
        assert offered.sentence.endswith("you pay ¥70.00.")
    with transaction(engine) as session:
        assert place_hold(session, JOB, tenant, 100 * YUAN, FACTS, None, NOW) == offered
        extended = extend_hold(session, JOB, 150 * YUAN, FACTS, NOW)
        assert sources(extended) == [("voucher", 15 * YUAN), ("prepaid", 35 * YUAN)]
        assert extend_hold(session, JOB, 150 * YUAN, FACTS, NOW).lines == ()
    charged = 0
    with transaction(engine) as session:
        for number, cost in enumerate((33_333_333, 41_000_001, 55_000_000)):
            charge = derived_id("charge", number)
            first = capture_charge(session, JOB, charge, cost, FACTS, NOW)
            assert capture_charge(session, JOB, charge, cost, FACTS, NOW) == first
            assert sum(line.amount_micros for line in first.lines) == cost
            charged += cost
    with transaction(engine) as session:
        release_hold(session, JOB, NOW)
        release_hold(session, JOB, NOW)
        (view,) = list_vouchers(session, enterprise_id=tenant)
        assert (view.id, view.face, view.held) == (voucher, 100_000 * YUAN, 0)
        assert view.captured == 38_800_000 == 100 * YUAN * 3 // 10 + (charged - 100 * YUAN) * 3 // 10
        assert view.remaining == view.face - view.captured
        assert (
            wallet_balance(session, tenant).prepaid_available_micros == 1_000 * YUAN - charged + view.captured
        )
    with transaction(engine) as session:
        claim_id = make_claim(session, "huangyan", "2026-03", by="centre", at=NOW + timedelta(days=30))
        assert make_claim(session, "huangyan", "2026-03", by="centre", at=NOW) == claim_id
        claim = claim_view(session, claim_id)
        assert claim.amount == sum(line.amount for line in claim.lines) == view.captured
        assert {line.job_id for line in claim.lines} == {JOB}
        totals = programme_totals(session, "huangyan")
        assert totals.budget == 10_000_000 * YUAN == totals.pool + totals.issued
        assert (totals.issued, totals.captured, totals.claimed) == (100_000 * YUAN, 38_800_000, 38_800_000)
        with pytest.raises(NothingToClaim):
            make_claim(session, "huangyan", "2026-04", by="centre", at=NOW + timedelta(days=60))


def test_an_application_that_fails_a_check_is_rejected_with_the_rule(engine: Engine, tenant: UUID) -> None:
    with transaction(engine) as session:
        stranger = enterprise(session, 2, region="330106")
        application = submit_application(
            session, enterprise_id=stranger, programme="huangyan", requested=YUAN, by="t", at=NOW
        )
        row = session.get_one(Application, application)
        assert row.state == "rejected"
        failed = [check for check in checks_of(session, application) if check.verdict == "fail"]
        assert [(check.rule, check.clause, check.facts["region"]) for check in failed] == [
            ("enterprise_eligible", "Huangyan §1", "330106")
        ]
    assert tenant


def test_the_cap_per_enterprise_counts_what_was_issued(engine: Engine, tenant: UUID) -> None:
    with transaction(engine) as session:
        voucher_for(session, tenant, 150_000)
        application = submit_application(
            session, enterprise_id=tenant, programme="huangyan", requested=50_001 * YUAN, by="t", at=NOW
        )
        failed = [check.rule for check in checks_of(session, application) if check.verdict == "fail"]
        assert failed == ["cap_per_enterprise"]


def test_first_reviewer_cannot_approve_by_rule_nor_by_database(engine: Engine, tenant: UUID) -> None:
    with transaction(engine) as session:
        application = submit_application(
            session, enterprise_id=tenant, programme="huangyan", requested=YUAN, by="t", at=NOW
        )
        first_review(session, application, by="ann", at=NOW)
        with pytest.raises(SamePerson):
            final_approval(session, application, by="ann", at=NOW)
    with pytest.raises(IntegrityError, match="ck_applications_two_people"), transaction(engine) as session:
        session.get_one(Application, application).approver = "ann"


def test_issuing_beyond_the_pool_is_refused(engine: Engine, tenant: UUID) -> None:
    small = huangyan(programme="small", budget={"clause": "S §2", "cycle": "year", "amount": "100.00"}, caps=[])
    with transaction(engine) as session:
        publish_programme(session, small, by="officer", at=NOW)
        voucher_for(session, tenant, 60, "small")
    with pytest.raises(PoolExhausted) as refused, transaction(engine) as session:
        voucher_for(session, tenant, 41, "small")
    assert refused.value.facts["available"] == 40 * YUAN


def test_a_rejected_application_gets_no_voucher(engine: Engine, tenant: UUID) -> None:
    with transaction(engine) as session:
        application = submit_application(
            session, enterprise_id=tenant, programme="huangyan", requested=YUAN, by="t", at=NOW
        )
        reject_application(session, application, by="ann", reason="contract unreadable", at=NOW)
        assert session.get_one(Application, application).state == "rejected"


def test_what_nobody_can_pay_is_refused_and_nothing_is_written(engine: Engine, tenant: UUID) -> None:
    with pytest.raises(NoFunding) as refused, transaction(engine) as session:
        place_hold(session, JOB, tenant, 1_001 * YUAN, FACTS, None, NOW)
    assert refused.value.facts["short"] == YUAN
    with transaction(engine) as session:
        assert wallet_balance(session, tenant).prepaid_held_micros == 0


def test_another_tenants_voucher_looks_like_none(engine: Engine, tenant: UUID) -> None:
    with transaction(engine) as session:
        voucher = voucher_for(session, tenant, 100)
        other = enterprise(session, 2)
        deposit(session, other, 100 * YUAN, "bank-2", NOW)
        with pytest.raises(VoucherNotFound):
            quote(session, other, YUAN, FACTS, [voucher], NOW)


def test_a_charge_beyond_the_hold_is_refused(engine: Engine, tenant: UUID) -> None:
    with transaction(engine) as session:
        place_hold(session, JOB, tenant, 10 * YUAN, FACTS, None, NOW)
        capture_charge(session, JOB, derived_id("charge", 1), 9 * YUAN, FACTS, NOW)
        with pytest.raises(ChargeBeyondHold) as refused:
            capture_charge(session, JOB, derived_id("charge", 2), 2 * YUAN, FACTS, NOW)
        assert refused.value.facts["available"] == YUAN
        release_hold(session, JOB, NOW)
        with pytest.raises(HoldReleased):
            capture_charge(session, JOB, derived_id("charge", 2), YUAN, FACTS, NOW)
