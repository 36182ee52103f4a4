"""One enterprise's way through a programme: application, voucher, job, charges, claim."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.ids import derived_id
from tests.vouchers.world import NOW, YUAN, World
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
from vouchers.errors import (
    ChargeBeyondHold,
    HoldReleased,
    NoFunding,
    NothingToClaim,
    PoolExhausted,
    SamePerson,
    VoucherNotFound,
)
from vouchers.reading import claim_view, list_vouchers, programme_totals
from vouchers.redemption import extend_hold, place_hold, quote, release_hold
from vouchers.tables import Application
from vouchers.wallets import deposit, wallet_balance

FACTS = ChargeFacts(model="MLU370", region="331003")


def sources(coverage: Coverage) -> list[tuple[str, int]]:
    return [(line.source, line.amount_micros) for line in coverage.lines]


@dataclass(frozen=True)
class Place:
    """A programme like Huangyan's and an enterprise with ¥1,000 of its own."""

    world: World
    programme: str
    tenant: UUID
    job: UUID

    def voucher(self, session: Session, yuan: int) -> UUID:
        return self.world.voucher(session, self.tenant, self.programme, yuan * YUAN)

    def application(self, session: Session, yuan: int, tenant: UUID | None = None) -> UUID:
        return submit_application(
            session,
            enterprise_id=tenant or self.tenant,
            programme=self.programme,
            requested=yuan * YUAN,
            by="tenant",
            at=NOW,
        )


@pytest.fixture
def place(world: World) -> Place:
    with transaction(world.engine) as session:
        programme = world.programme(session)
        tenant = world.enterprise(session)
        deposit(session, tenant, 1_000 * YUAN, f"bank {tenant}", NOW)
    return Place(world, programme, tenant, derived_id("job", tenant))


def test_the_story_from_application_to_claim(place: Place) -> None:
    with transaction(place.world.engine) as session:
        voucher = place.voucher(session, 100_000)
    with transaction(place.world.engine) as session:
        offered = quote(session, place.tenant, 100 * YUAN, FACTS, None, NOW)
        assert sources(offered) == [("voucher", 30 * YUAN), ("prepaid", 70 * YUAN)]
        assert "Huangyan §3" in offered.sentence
        assert offered.sentence.endswith("you pay ¥70.00.")
    with transaction(place.world.engine) as session:
        assert place_hold(session, place.job, place.tenant, 100 * YUAN, FACTS, None, NOW) == offered
        extended = extend_hold(session, place.job, 150 * YUAN, FACTS, NOW)
        assert sources(extended) == [("voucher", 15 * YUAN), ("prepaid", 35 * YUAN)]
        assert extend_hold(session, place.job, 150 * YUAN, FACTS, NOW).lines == ()
    charged = 0
    with transaction(place.world.engine) as session:
        for number, cost in enumerate((33_333_333, 41_000_001, 55_000_000)):
            charge = derived_id("charge", place.job, number)
            first = capture_charge(session, place.job, charge, cost, FACTS, NOW)
            assert capture_charge(session, place.job, charge, cost, FACTS, NOW) == first
            assert sum(line.amount_micros for line in first.lines) == cost
            charged += cost
    with transaction(place.world.engine) as session:
        release_hold(session, place.job, NOW)
        release_hold(session, place.job, NOW)
        (view,) = list_vouchers(session, enterprise_id=place.tenant)
        assert (view.id, view.face, view.held) == (voucher, 100_000 * YUAN, 0)
        assert view.captured == 38_800_000 == 100 * YUAN * 3 // 10 + (charged - 100 * YUAN) * 3 // 10
        assert view.remaining == view.face - view.captured
        assert (
            wallet_balance(session, place.tenant).prepaid_available_micros
            == 1_000 * YUAN - charged + view.captured
        )
    with transaction(place.world.engine) as session:
        claim_id = make_claim(session, place.programme, "2026-03", by="centre", at=NOW + timedelta(days=30))
        assert make_claim(session, place.programme, "2026-03", by="centre", at=NOW) == claim_id
        claim = claim_view(session, claim_id)
        assert claim.amount == sum(line.amount for line in claim.lines) == view.captured
        assert {line.job_id for line in claim.lines} == {place.job}
        totals = programme_totals(session, place.programme)
        assert totals.budget == 10_000_000 * YUAN == totals.pool + totals.issued
        assert (totals.issued, totals.captured, totals.claimed) == (100_000 * YUAN, 38_800_000, 38_800_000)
        with pytest.raises(NothingToClaim):
            make_claim(session, place.programme, "2026-04", by="centre", at=NOW + timedelta(days=60))


def test_an_application_that_fails_a_check_is_rejected_with_the_rule(place: Place) -> None:
    with transaction(place.world.engine) as session:
        stranger = place.world.enterprise(session, region="330106")
        application = place.application(session, 1, stranger)
        row = session.get_one(Application, application)
        assert row.state == "rejected"
        failed = [check for check in checks_of(session, application) if check.verdict == "fail"]
        assert [(check.rule, check.clause, check.facts["region"]) for check in failed] == [
            ("enterprise_eligible", "Huangyan §1", "330106")
        ]


def test_the_cap_per_enterprise_counts_what_was_issued(place: Place) -> None:
    with transaction(place.world.engine) as session:
        place.voucher(session, 150_000)
        application = place.application(session, 50_001)
        failed = [check.rule for check in checks_of(session, application) if check.verdict == "fail"]
        assert failed == ["cap_per_enterprise"]


def test_first_reviewer_cannot_approve_by_rule_nor_by_database(place: Place) -> None:
    with transaction(place.world.engine) as session:
        application = place.application(session, 1)
        first_review(session, application, by="ann", at=NOW)
        with pytest.raises(SamePerson):
            final_approval(session, application, by="ann", at=NOW)
    with (
        pytest.raises(IntegrityError, match="ck_applications_two_people"),
        transaction(place.world.engine) as session,
    ):
        session.get_one(Application, application).approver = "ann"


def test_issuing_beyond_the_pool_is_refused(place: Place) -> None:
    with transaction(place.world.engine) as session:
        small = place.world.programme(
            session, budget={"clause": "S §2", "cycle": "year", "amount": "100.00"}, caps=[]
        )
        place.world.voucher(session, place.tenant, small, 60 * YUAN)
    with pytest.raises(PoolExhausted) as refused, transaction(place.world.engine) as session:
        place.world.voucher(session, place.tenant, small, 41 * YUAN)
    assert refused.value.facts["available"] == 40 * YUAN


def test_a_rejected_application_gets_no_voucher(place: Place) -> None:
    with transaction(place.world.engine) as session:
        application = place.application(session, 1)
        reject_application(session, application, by="ann", reason="contract unreadable", at=NOW)
        assert session.get_one(Application, application).state == "rejected"


def test_what_nobody_can_pay_is_refused_and_nothing_is_written(place: Place) -> None:
    with pytest.raises(NoFunding) as refused, transaction(place.world.engine) as session:
        place_hold(session, place.job, place.tenant, 1_001 * YUAN, FACTS, None, NOW)
    assert refused.value.facts["short"] == YUAN
    with transaction(place.world.engine) as session:
        assert wallet_balance(session, place.tenant).prepaid_held_micros == 0


def test_another_tenants_voucher_looks_like_none(place: Place) -> None:
    with transaction(place.world.engine) as session:
        voucher = place.voucher(session, 100)
        other = place.world.enterprise(session)
        deposit(session, other, 100 * YUAN, f"bank {other}", NOW)
        with pytest.raises(VoucherNotFound):
            quote(session, other, YUAN, FACTS, [voucher], NOW)


def test_a_charge_beyond_the_hold_is_refused(place: Place) -> None:
    with transaction(place.world.engine) as session:
        place_hold(session, place.job, place.tenant, 10 * YUAN, FACTS, None, NOW)
        capture_charge(session, place.job, derived_id("charge", place.job, 1), 9 * YUAN, FACTS, NOW)
        with pytest.raises(ChargeBeyondHold) as refused:
            capture_charge(session, place.job, derived_id("charge", place.job, 2), 2 * YUAN, FACTS, NOW)
        assert refused.value.facts["available"] == YUAN
        release_hold(session, place.job, NOW)
        with pytest.raises(HoldReleased):
            capture_charge(session, place.job, derived_id("charge", place.job, 2), YUAN, FACTS, NOW)
