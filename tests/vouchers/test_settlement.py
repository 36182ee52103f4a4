"""Claims from captured coverage to reconciled money, in both directions, line by line."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kernel.database import transaction
from kernel.ids import derived_id
from kernel.money import MICROS_MAX
from ledger.reading import balances
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers import accounts
from vouchers.afterlife import recall_voucher
from vouchers.capturing import capture_charge
from vouchers.claims import claim_of, make_claim, resubmit_claim
from vouchers.clawback import claw_back_line
from vouchers.domain.calendar import MalformedPeriod
from vouchers.domain.facts import ChargeFacts
from vouchers.domain.sampling import draw
from vouchers.enterprises import FactChanges, change_facts, record_controller
from vouchers.errors import (
    ClaimLineNotFound,
    ClaimPaid,
    ClaimState,
    MissingEvidence,
    NoReserve,
    NothingToClaim,
    NotRestorable,
    PeriodClosed,
    PeriodNotBegun,
    ReconciliationDiffers,
    SamePerson,
)
from vouchers.reading import claim_view, list_vouchers, programme_totals
from vouchers.redemption import place_hold
from vouchers.restoration import restore_charge
from vouchers.settlement import (
    advance_reserve,
    approve_claim,
    check_claim,
    disburse_claim,
    dispute_line,
    draw_sample,
    reconcile_claim,
    refuse_line,
    reject_claim,
    review_claim,
)
from vouchers.tables import Claim, ClaimStep, Enterprise, Restoration

PERIOD = "2026-03"
CENTRE = "91331003CENTRE001X"


def claimed(session: Session, place: Place, yuan: tuple[int, ...] = (100, 200, 300)) -> UUID:
    """A claim over one job per amount; 30 % of each is a line."""
    place.voucher(session, 10_000)
    for number, cost in enumerate(yuan):
        place.run(session, cost, number)
    return make_claim(session, place.programme, PERIOD, by="centre", at=NOW)


def line_of(session: Session, claim: UUID, yuan: int) -> int:
    """The number of the line of so many yuan."""
    (found,) = [line.line for line in claim_view(session, claim).lines if line.amount == yuan * YUAN]
    return found


def approved(session: Session, claim: UUID) -> int:
    check_claim(session, claim, centre_code=CENTRE, at=NOW)
    review_claim(session, claim, by="first", at=NOW)
    return approve_claim(session, claim, by="second", at=NOW)


def net(session: Session, *places: accounts.Account) -> list[int]:
    found = balances(session, [place.id for place in places])
    return [found[place.id].net // YUAN if place.id in found else 0 for place in places]


def test_a_claim_goes_from_checks_to_reconciled_money(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        claim = claimed(session, place)
        found = check_claim(session, claim, centre_code=CENTRE, at=NOW)
        assert {check.rule: check.verdict for check in found} == dict.fromkeys(
            ("adds_up", "not_taken_back", "tenants_unrelated", "tenants_honest", "vouchers_stand"), "pass"
        )
        for _ in range(2):
            review_claim(session, claim, by="first", at=NOW)
        with pytest.raises(ClaimState):
            review_claim(session, claim, by="another", at=NOW)
        for _ in range(2):
            assert approve_claim(session, claim, by="second", at=NOW) == 180 * YUAN
        with pytest.raises(ClaimState):
            approve_claim(session, claim, by="another", at=NOW)
        for _ in range(2):
            assert (
                disburse_claim(session, claim, bank_reference=f"b {claim}", by="cashier", at=NOW) == 180 * YUAN
            )
        with pytest.raises(ClaimPaid, match="once more"):
            disburse_claim(session, claim, bank_reference="another", by="cashier", at=NOW)
        with pytest.raises(ReconciliationDiffers):
            reconcile_claim(session, claim, received=179 * YUAN, statement="s1", by="auditor", at=NOW)
        for _ in range(2):
            reconcile_claim(session, claim, received=180 * YUAN, statement="s1", by="auditor", at=NOW)
        with pytest.raises(ReconciliationDiffers):
            reconcile_claim(session, claim, received=179 * YUAN, statement="s1", by="auditor", at=NOW)
        totals = programme_totals(session, place.programme)
        assert (totals.captured, totals.claimed, totals.disbursed) == (180 * YUAN, 0, 180 * YUAN)
        steps = session.execute(
            select(ClaimStep.number, ClaimStep.step)
            .where(ClaimStep.claim_id == claim)
            .order_by(ClaimStep.number)
        ).all()
        names = ("submitted", "automatic checks", "first review", "final approval", "disbursed", "reconciled")
        assert steps == list(enumerate(names, start=1))


def test_the_first_reviewer_cannot_approve_a_claim_by_rule_nor_by_database(world: World) -> None:
    with transaction(world.engine) as session:
        claim = claimed(session, world.place(session))
        check_claim(session, claim, centre_code=CENTRE, at=NOW)
        review_claim(session, claim, by="ann", at=NOW)
        with pytest.raises(SamePerson):
            approve_claim(session, claim, by="ann", at=NOW)
    with pytest.raises(IntegrityError, match="ck_claims_two_people"), transaction(world.engine) as session:
        session.get_one(Claim, claim).approver = "ann"


def test_disputed_lines_are_claimed_again_and_refused_ones_never(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        claim = claimed(session, place)
        before = place.pool(session)
        dispute_line(session, claim, line_of(session, claim, 60), reason="no log", by="first", at=NOW)
        refuse_line(session, claim, line_of(session, claim, 90), reason="mining", by="first", at=NOW)
        assert place.pool(session) == before + 90
        assert approved(session, claim) == 30 * YUAN
        with pytest.raises(PeriodClosed):
            make_claim(session, place.programme, PERIOD, by="centre", at=NOW)
        again = resubmit_claim(session, claim, evidence={"log": "l-1"}, by="centre", at=NOW)
        assert resubmit_claim(session, claim, evidence={"log": "l-1"}, by="centre", at=NOW) == again
        view = claim_view(session, again)
        assert (view.sequence, view.amount) == (2, 60 * YUAN)
        assert approved(session, again) == 60 * YUAN
        with pytest.raises(NothingToClaim):
            resubmit_claim(session, claim, evidence={}, by="centre", at=NOW)
        with pytest.raises(NothingToClaim):
            make_claim(session, place.programme, "2026-04", by="centre", at=NOW + timedelta(days=40))


def test_the_last_millionth_can_be_claimed_and_what_was_given_back_cannot(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 1)
        for number in (1, 2):
            place_hold(session, place.job(number), place.tenant, 4, FACTS, None, NOW)
            capture_charge(session, place.job(number), place.charge(number), 4, FACTS, NOW)
        restore_charge(session, place.charge(1), reason="lost", by="hub", at=NOW)
        (line,) = claim_view(session, make_claim(session, place.programme, PERIOD, by="c", at=NOW)).lines
        assert (line.charge_id, line.amount) == (place.charge(2), 1)


def test_usage_that_ends_with_the_period_is_claimed_with_it_and_later_usage_with_the_next(world: World) -> None:
    midnight = datetime(2026, 3, 31, 16, 0, tzinfo=UTC)
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 100)
        place.run(session, 10, at=midnight + timedelta(microseconds=1))
        with pytest.raises(NothingToClaim):
            make_claim(session, place.programme, PERIOD, by="c", at=midnight)
        place.run(session, 20, 2, at=midnight)
        march = make_claim(session, place.programme, PERIOD, by="c", at=midnight)
        assert claim_view(session, march).amount == 6 * YUAN


def test_what_is_reported_late_goes_into_the_next_periods_claim(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        approved(session, claimed(session, place, (100,)))
        place.run(session, 10, 7)
        with pytest.raises(PeriodClosed):
            make_claim(session, place.programme, PERIOD, by="centre", at=NOW)
        later = make_claim(session, place.programme, "2026-04", by="centre", at=NOW + timedelta(days=40))
        assert claim_view(session, later).amount == 3 * YUAN


def test_what_a_full_claim_had_no_room_for_is_claimed_by_another_one_of_the_period(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 10_000)
        for number, cost in enumerate((100, 200, 300)):
            place.run(session, cost, number, NOW - timedelta(hours=9 - number))

        def claim() -> UUID:
            return make_claim(session, place.programme, PERIOD, by="centre", at=NOW, lines_max=2)

        first = claim()
        assert claim() == first
        assert approved(session, first) == 90 * YUAN
        place.run(session, 10, 7, NOW + timedelta(hours=1))
        assert approved(session, claim()) == 90 * YUAN
        with pytest.raises(PeriodClosed):
            claim()


def test_usage_until_the_last_instant_of_a_period_is_claimed_for_it(world: World) -> None:
    end = datetime(2026, 3, 31, 16, tzinfo=UTC)  # when April begins in Shanghai
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 10_000)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
        for number, until in enumerate((end, end + timedelta(microseconds=1))):
            charge = place.charge(number)
            capture_charge(session, place.job(), charge, 50 * YUAN, FACTS, until, used_until=until)
        (line,) = claim_view(
            session, make_claim(session, place.programme, PERIOD, by="centre", at=end + timedelta(days=1))
        ).lines
        assert line.charge_id == place.charge(0)


def test_a_rejected_claim_may_be_made_again(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        claim = claimed(session, place)
        reject_claim(session, claim, reason="wrong form", by="first", at=NOW)
        again = make_claim(session, place.programme, PERIOD, by="centre", at=NOW)
        assert again != claim
        assert claim_view(session, again).amount == 180 * YUAN


def test_the_buyer_is_reimbursed_on_invoice_and_delivery_proof(world: World) -> None:
    with transaction(world.engine) as session:
        programme = world.programme(session, "shenzhen-model")
        buyer = world.enterprise(session, region="440305")
        voucher = world.voucher(session, buyer, programme, 1_000 * YUAN, NOW - timedelta(days=9), issued_at=NOW)
        place = Place(world, programme, buyer)
        world.fund(session, buyer, 1_000)
        facts = ChargeFacts(model="MLU370", cost_kind="model")
        assert place.run(session, 100, facts=facts).tenant_micros == 100 * YUAN
        assert place.left(session, voucher)[2] == 30

        def claim(evidence: dict[str, Any], claimant: UUID | None) -> UUID:
            return make_claim(
                session, programme, "2026-Q1", by="buyer", at=NOW, claimant_id=claimant, evidence=evidence
            )

        with pytest.raises(MissingEvidence) as refused:
            claim({"invoice": "i-1"}, buyer)
        assert refused.value.facts["missing"] == "delivery_proof"
        proof = {"invoice": "i-1", "delivery_proof": "d-1"}
        with pytest.raises(NothingToClaim):
            claim(proof, None)
        made = claim(proof, buyer)
        assert approved(session, made) == 30 * YUAN
        disburse_claim(session, made, bank_reference=f"b {made}", by="cashier", at=NOW)
        assert net(session, accounts.disbursed(programme, str(buyer), "CNY")) == [30]

        second = Place(world, programme, world.enterprise(session, region="440305"))
        world.voucher(session, second.tenant, programme, 1_000 * YUAN, NOW - timedelta(days=9), issued_at=NOW)
        world.fund(session, second.tenant, 1_000)
        second.run(session, 200, facts=facts)
        assert claim_view(session, claim(proof, second.tenant)).amount == 60 * YUAN


def test_the_reserve_fund_is_used_up_before_the_bank(world: World) -> None:
    reserve = {"clause": "Chengdu §5", "amount": "100.00"}
    with transaction(world.engine) as session:
        place = world.place(session, reserve=reserve)
        for _ in range(2):
            advance_reserve(session, place.programme, 100 * YUAN, reference="a1", by="officer", at=NOW)
        with pytest.raises(NoReserve):
            advance_reserve(session, place.programme, 1, reference="a2", by="officer", at=NOW)
        claim = claimed(session, place)
        assert approved(session, claim) == 180 * YUAN
        assert disburse_claim(session, claim, bank_reference=f"b {claim}", by="cashier", at=NOW) == 80 * YUAN
        left, used = accounts.reserve(place.programme, "CNY"), accounts.reserve_used(place.programme, "CNY")
        assert net(session, left, used) == [0, 100]
        reconcile_claim(session, claim, received=80 * YUAN, statement="s", by="auditor", at=NOW)
        for amount in (1, MICROS_MAX):
            with pytest.raises(NoReserve):
                advance_reserve(session, world.programme(session), amount, reference="a", by="officer", at=NOW)


@pytest.mark.parametrize("paid", [False, True])
def test_a_clawback_unwinds_what_was_recorded_and_fills_the_pool(world: World, paid: bool) -> None:  # noqa: FBT001
    with transaction(world.engine) as session:
        place = world.place(session)
        claim = claimed(session, place)
        line = line_of(session, claim, 60)
        with pytest.raises(ClaimState):
            claw_back_line(session, claim, line, reason="wash usage", by="auditor", at=NOW)
        approved(session, claim)
        if paid:
            disburse_claim(session, claim, bank_reference=f"b {claim}", by="cashier", at=NOW)
        before = place.pool(session)
        for _ in range(2):
            assert claw_back_line(session, claim, line, reason="wash usage", by="auditor", at=NOW) == 60 * YUAN
        assert place.pool(session) == before + 60
        there = accounts.disbursed(place.programme, accounts.CENTRE, "CNY")
        owed = accounts.payable(place.programme, "CNY")
        assert net(session, there, owed) == ([120, 0] if paid else [0, 120])
        assert programme_totals(session, place.programme).captured == 120 * YUAN
        with pytest.raises(NotRestorable):
            restore_charge(session, place.charge(1), reason="x", by="hub", at=NOW)


def test_a_claim_whose_lines_were_all_taken_back_pays_nothing(world: World) -> None:
    with transaction(world.engine) as session:
        claim = claimed(session, world.place(session), (100,))
        approved(session, claim)
        claw_back_line(session, claim, 1, reason="wash usage", by="auditor", at=NOW)
        assert disburse_claim(session, claim, bank_reference=f"b {claim}", by="cashier", at=NOW) == 0
        reconcile_claim(session, claim, received=0, statement="s", by="auditor", at=NOW)
        assert claim_of(session, claim).state == "reconciled"


def test_two_claims_paid_at_once_share_the_reserve(world: World) -> None:
    reserve = {"clause": "Chengdu §5", "amount": "50.00"}
    with transaction(world.engine) as session:
        place = world.place(session, reserve=reserve)
        advance_reserve(session, place.programme, 50 * YUAN, reference="a1", by="officer", at=NOW)
        first = claimed(session, place, (100,))
        approved(session, first)
        place.run(session, 200, 7)
        later = NOW + timedelta(days=40)
        second = make_claim(session, place.programme, "2026-04", by="centre", at=later)
        approved(session, second)

    def pay(claim: UUID) -> int:
        with transaction(world.engine) as session:
            return disburse_claim(session, claim, bank_reference=f"b {claim}", by="cashier", at=later) // YUAN

    with ThreadPoolExecutor(1) as pool:
        with transaction(world.engine) as session:
            assert disburse_claim(session, first, bank_reference=f"b {first}", by="c", at=later) == 0
            waiting = pool.submit(pay, second)
            with world.engine.connect() as watching:
                asked = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                while not waiting.done() and not watching.execute(asked).scalar_one():
                    watching.rollback()
        assert waiting.result() == 40


def test_automatic_checks_point_at_related_dishonest_and_recalled(world: World) -> None:
    with transaction(world.engine) as session:
        other = world.place(session)
        claimed(session, other)
        change_facts(session, other.tenant, FactChanges(dishonest=True), reason="list", by="officer", at=NOW)
        place = world.place(session)
        claim = claimed(session, place)
        code = session.get_one(Enterprise, place.tenant).credit_code
        record_controller(session, code, f"owner of {code}", by="officer", at=NOW)
        record_controller(session, f"centre {code}", f"owner of {code}", by="officer", at=NOW)
        change_facts(session, place.tenant, FactChanges(dishonest=True), reason="list", by="officer", at=NOW)
        (used,) = list_vouchers(session, enterprise_id=place.tenant)
        recall_voucher(session, used.id, by="officer", reason="false statements", at=NOW)
        found = check_claim(session, claim, centre_code=f"centre {code}", at=NOW)
        looks = {check.rule: check.facts for check in found if check.verdict == "look"}
        assert looks["tenants_unrelated"]["paths"] == {code: [code, f"owner of {code}", f"centre {code}"]}
        assert looks["tenants_honest"]["dishonest"] == [code]
        assert looks["vouchers_stand"]["recalled"] == [used.number]
        assert claim_of(session, claim).state == "checked"


def test_a_claim_of_what_was_given_back_since_fails_its_check_and_no_other_does(world: World) -> None:
    with transaction(world.engine) as session:
        claim, other = (claimed(session, world.place(session), (100,)) for _ in range(2))
        (line,) = claim_view(session, claim).lines
        session.add(
            Restoration(
                id=derived_id("restoration", claim),
                line_id=line.coverage_line_id,
                number=1,
                reason="behind the claim's back",
                kind="restored",
                amount_micros=1,
                quantity=1,
                transfer_id=derived_id("transfer", claim),
                restored_by="x",
                restored_at=NOW,
            )
        )
        session.flush()
        failed = {
            of: {
                check.rule
                for check in check_claim(session, of, centre_code=CENTRE, at=NOW)
                if check.verdict == "fail"
            }
            for of in (claim, other)
        }
        assert failed == {claim: {"not_taken_back"}, other: set()}
        assert [claim_of(session, of).state for of in (claim, other)] == ["submitted", "checked"]


def test_a_sample_is_drawn_once_from_a_recorded_seed(world: World) -> None:
    with transaction(world.engine) as session:
        claim = claimed(session, world.place(session), tuple(range(10, 20)))
        first = draw_sample(session, claim, seed="lottery 2026-04-01", count=3, by="auditor", at=NOW)
        again = draw_sample(session, claim, seed="another", count=9, by="auditor", at=NOW)
        assert [line.line for line in first] == [line.line for line in again]
        assert claim_of(session, claim).sample_seed == "lottery 2026-04-01"
        ids = [str(line.coverage_line_id) for line in claim_view(session, claim).lines]
        assert {str(line.coverage_line_id) for line in first} == set(draw("lottery 2026-04-01", ids, 3))


@pytest.mark.parametrize("period", ["2026", "2026-13", "2026-Q1", "0000-01", "März", ""])
def test_a_period_that_is_none_of_the_programmes_is_refused(world: World, period: str) -> None:
    with transaction(world.engine) as session, pytest.raises(MalformedPeriod):
        make_claim(session, world.place(session, yuan=0).programme, period, by="centre", at=NOW)


def test_steps_out_of_order_are_refused(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        claim = claimed(session, place)
        with pytest.raises(ClaimState):
            approve_claim(session, claim, by="second", at=NOW)
        with pytest.raises(ClaimState):
            disburse_claim(session, claim, bank_reference="b", by="cashier", at=NOW)
        with pytest.raises(ClaimState):
            reconcile_claim(session, claim, received=0, statement="s", by="auditor", at=NOW)
        with pytest.raises(ClaimLineNotFound):
            dispute_line(session, claim, 99, reason="x", by="first", at=NOW)
        with pytest.raises(PeriodNotBegun):
            make_claim(session, place.programme, "2026-04", by="centre", at=NOW)
        approved(session, claim)
        with pytest.raises(ClaimState):
            dispute_line(session, claim, 1, reason="x", by="first", at=NOW)
        with pytest.raises(ClaimState):
            reject_claim(session, claim, reason="x", by="first", at=NOW)
