"""Applications: what the automatic checks see, and every way through review."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from kernel.database import transaction
from tests.vouchers.world import NOW, YUAN, Place, World
from vouchers.applications import (
    checks_of,
    draft_application,
    final_approval,
    first_review,
    request_revision,
    revise_application,
    steps_of,
    submit_application,
    submit_draft,
    withdraw_application,
)
from vouchers.cases import open_round
from vouchers.domain.controllers import actual_controller, control_chain, related
from vouchers.domain.eligibility import FAIL, LOOK, Case, run_checks
from vouchers.domain.facts import ContractFacts, EnterpriseFacts
from vouchers.domain.terms import read_terms
from vouchers.enterprises import (
    FactChanges,
    change_facts,
    enterprise_facts,
    record_controller,
    record_related,
)
from vouchers.errors import (
    ApplicationState,
    CapExceeded,
    ChecksFailed,
    NoticeRunning,
    ObjectionResolved,
    ProgrammeNotFound,
    RoundNotFound,
)
from vouchers.issuing import issue_voucher
from vouchers.notices import raise_objection, resolve_objection
from vouchers.programmes import publish_programme, terms_of
from vouchers.tables import Application


def apply(
    session: Session,
    place: Place,
    yuan: int = 1,
    *,
    enterprise: UUID | None = None,
    at: datetime = NOW,
    contract: ContractFacts | None = None,
    round_id: UUID | None = None,
) -> UUID:
    return submit_application(
        session,
        enterprise_id=enterprise or place.tenant,
        programme=place.programme,
        requested=yuan * YUAN,
        by="tenant",
        at=at,
        contract=contract or ContractFacts(),
        round_id=round_id,
    )


def state(session: Session, application: UUID) -> str:
    return session.get_one(Application, application).state


def verdicts(session: Session, application: UUID, verdict: str = FAIL) -> list[str]:
    return [check.rule for check in checks_of(session, application) if check.verdict == verdict]


BEIJING = EnterpriseFacts(credit_code="A", region="110108", clean_years=3)
CONTRACT = ContractFacts(
    number="c1", supplier="B", amount_micros=100 * YUAN, days=365, cost_kind="compute", centre_region="110108"
)


@pytest.mark.parametrize(
    ("changed", "rule", "verdict"),
    [
        ({}, "", ""),
        ({"enterprise": {"region": "310115"}}, "enterprise_eligible", FAIL),
        ({"enterprise": {"clean_years": 2}}, "clean_record", FAIL),
        ({"enterprise": {"dishonest": True}}, "not_dishonest", FAIL),
        ({"contract": {"days": 366}}, "contract_eligible", FAIL),
        ({"contract": {"cost_kind": "storage"}}, "contract_eligible", FAIL),
        ({"contract": {"amount_micros": 100 * YUAN - 5}}, "within_contract", FAIL),
        ({"contract": {"number": ""}}, "within_contract", FAIL),
        ({"case": {"relation": ("A", "P", "B")}}, "supplier_unrelated", FAIL),
        ({"contract": {"other_subsidies": ("level:city",)}}, "no_other_subsidy", FAIL),
        ({"contract": {"other_subsidies": ("level:national",)}}, "no_other_subsidy", LOOK),
        ({"case": {"contract_used_by": ("x",)}}, "no_duplicate", FAIL),
        ({"case": {"duplicates": ("x",)}}, "no_duplicate", FAIL),
        ({"case": {"in_round": False}}, "within_round", FAIL),
        ({"case": {"issued_enterprise": 2_000_000 * YUAN - 19 * YUAN}}, "cap_per_enterprise", FAIL),
    ],
)
def test_each_check_fails_alone_on_what_it_is_for(
    world: World, changed: dict[str, dict[str, Any]], rule: str, verdict: str
) -> None:
    terms = read_terms(world.document("beijing"))
    case = Case(
        terms=terms,
        enterprise=EnterpriseFacts(**(vars(BEIJING) | changed.get("enterprise", {}))),
        contract=ContractFacts(**(vars(CONTRACT) | changed.get("contract", {}))),
        requested=20 * YUAN,
        **changed.get("case", {}),
    )
    hit = [(check.rule, check.verdict) for check in run_checks(case) if check.verdict != "pass"]
    assert hit == ([(rule, verdict)] if rule else [])
    assert all(check.clause.startswith("Beijing §") for check in run_checks(case))


def test_an_application_goes_back_for_revision_and_is_checked_again(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        application = apply(session, place, 10)
        request_revision(session, application, by="ann", reason="name the contract", at=NOW)
        with pytest.raises(ApplicationState):
            first_review(session, application, by="ann", at=NOW)
        revise_application(
            session, application, by="tenant", at=NOW, requested=8 * YUAN, contract=ContractFacts(number="c-1")
        )
        submit_draft(session, application, by="tenant", at=NOW)
        first_review(session, application, by="ann", at=NOW)
        request_revision(session, application, by="bob", reason="and its annex", at=NOW)
        submit_draft(session, application, by="tenant", at=NOW)
        first_review(session, application, by="ann", at=NOW)
        final_approval(session, application, by="bob", granted=5 * YUAN, at=NOW)
        voucher = issue_voucher(session, application, by="officer", at=NOW)
        assert place.left(session, voucher)[3] == 5
        assert {check.revision for check in checks_of(session, application)} == {1, 2, 3}
        assert [step.step for step in steps_of(session, application)] == [
            "draft",
            "submitted",
            "revision requested",
            "revised",
            "submitted",
            "first review",
            "revision requested",
            "submitted",
            "first review",
            "final approval",
            "issued",
        ]


def test_nothing_is_issued_while_the_public_may_object(world: World) -> None:
    review = {"clause": "§6", "first_review": "desk", "final_approval": "bureau", "notice_days": 5}
    with transaction(world.engine) as session:
        place = world.place(session, review=review)
        quiet, noisy, upheld = (apply(session, place, enterprise=world.enterprise(session)) for _ in range(3))
        for application in (quiet, noisy, upheld):
            first_review(session, application, by="ann", at=NOW)
            final_approval(session, application, by="bob", at=NOW)
        # 10 March plus five whole days: until 16 March begins in Shanghai.
        over = datetime(2026, 3, 15, 16, 0, tzinfo=UTC)
        with pytest.raises(NoticeRunning):
            issue_voucher(session, quiet, by="officer", at=over - timedelta(microseconds=1))
        issue_voucher(session, quiet, by="officer", at=over)

        objection = raise_objection(session, noisy, by="neighbour", reason="no factory there", at=NOW)
        with pytest.raises(NoticeRunning):
            issue_voucher(session, noisy, by="officer", at=over)
        with pytest.raises(NoticeRunning):
            raise_objection(session, noisy, by="neighbour", reason="too late", at=over)
        resolve_objection(session, objection, upheld=False, by="bob", resolution="visited", at=over)
        with pytest.raises(ObjectionResolved):
            resolve_objection(session, objection, upheld=True, by="bob", resolution="no", at=over)
        issue_voucher(session, noisy, by="officer", at=over)

        objection = raise_objection(session, upheld, by="neighbour", reason="shell company", at=NOW)
        resolve_objection(session, objection, upheld=True, by="bob", resolution="it is", at=NOW)
        assert state(session, upheld) == "rejected"
        with pytest.raises(ApplicationState):
            issue_voucher(session, upheld, by="officer", at=over)


def test_a_round_closes_at_its_cut_off_but_not_to_revisions(world: World) -> None:
    review = {"clause": "§6", "first_review": "d", "final_approval": "b", "notice_days": 0, "rounds": True}
    with transaction(world.engine) as session:
        place = world.place(session, review=review)
        cut_off = NOW + timedelta(days=1)
        called = open_round(session, place.programme, "spring", opens_at=NOW, cut_off_at=cut_off, by="officer")
        in_time = apply(session, place, round_id=called, at=cut_off - timedelta(seconds=1))
        assert state(session, in_time) == "submitted"
        request_revision(session, in_time, by="ann", reason="annex", at=cut_off)
        submit_draft(session, in_time, by="tenant", at=cut_off + timedelta(days=2))
        assert state(session, in_time) == "submitted"
        for answering in (called, None):
            application = apply(
                session, place, enterprise=world.enterprise(session), at=cut_off, round_id=answering
            )
            assert verdicts(session, application) == ["within_round"]
        other = world.place(session)
        with pytest.raises(RoundNotFound):
            apply(session, other, round_id=called)


def test_a_draft_is_decided_by_the_rules_of_the_day_it_is_handed_in(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        asked: dict[str, Any] = {"programme": place.programme, "requested": YUAN, "by": "tenant", "at": NOW}
        kept = draft_application(session, enterprise_id=place.tenant, **asked)
        waiting = apply(session, place, enterprise=world.enterprise(session))
        request_revision(session, waiting, by="ann", reason="annex", at=NOW)
        second = {"version": 2, "supersedes": 1, "effective": {"from": "2026-05-01", "until": "2026-12-31"}}
        document = world.document("huangyan", programme=place.programme, **second)
        publish_programme(session, document, by="officer", at=NOW)
        may, over = datetime(2026, 5, 2, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
        with pytest.raises(ProgrammeNotFound):
            submit_draft(session, kept, by="tenant", at=over)
        for application, version in ((kept, 2), (waiting, 1)):
            submit_draft(session, application, by="tenant", at=may)
            row = session.get_one(Application, application)
            assert (row.state, terms_of(session, row.version_id).version) == ("submitted", version)


def test_a_cap_counts_everything_one_actual_controller_holds(world: World) -> None:
    caps = [{"clause": "§4(2)", "per": "controller", "cycle": "year", "amount": "100.00"}]
    with transaction(world.engine) as session:
        place = world.place(session, caps=caps)
        sister = world.enterprise(session)
        for tenant in (place.tenant, sister):
            code = enterprise_facts(session, tenant).credit_code
            record_controller(session, code, f"holding of {place.tenant}", by="officer", at=NOW)
        record_controller(session, f"holding of {place.tenant}", "Ms Wu", by="officer", at=NOW)
        assert enterprise_facts(session, sister).controller == "Ms Wu"
        first = apply(session, place, 60)
        second = apply(session, place, 41, enterprise=sister)
        for application in (first, second):
            first_review(session, application, by="ann", at=NOW)
            final_approval(session, application, by="bob", at=NOW)
        issue_voucher(session, first, by="officer", at=NOW)
        with pytest.raises(CapExceeded) as refused:
            issue_voucher(session, second, by="officer", at=NOW)
        assert refused.value.facts["clause"] == "§4(2)"
        assert refused.value.facts["holder"] == "the group of Ms Wu"
        third = apply(session, place, 40, enterprise=world.enterprise(session))
        assert state(session, third) == "submitted"


def test_a_change_between_submission_and_approval_is_seen(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        application = apply(session, place)
        first_review(session, application, by="ann", at=NOW)
        listed = FactChanges(dishonest=True)
        change_facts(session, place.tenant, listed, reason="list of the court", by="officer", at=NOW)
        with pytest.raises(ChecksFailed) as refused:
            final_approval(session, application, by="bob", at=NOW)
        assert refused.value.facts["rules"] == "not_dishonest"


def test_the_same_contract_and_a_second_open_application_are_seen(world: World) -> None:
    contract = ContractFacts(number="c-9", supplier="91331003SUPPLIER")
    with transaction(world.engine) as session:
        place = world.place(session)
        apply(session, place, contract=contract)
        twice = apply(session, place)
        assert verdicts(session, twice) == ["no_duplicate"]
        other = apply(session, place, enterprise=world.enterprise(session), contract=contract)
        assert verdicts(session, other, LOOK) == ["no_duplicate"]


def test_a_supplier_related_by_family_is_seen(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        code = enterprise_facts(session, place.tenant).credit_code
        record_controller(session, code, f"Mr Li of {code}", by="officer", at=NOW)
        record_controller(session, f"S{code}", f"Ms Li of {code}", by="officer", at=NOW)
        record_related(session, f"Ms Li of {code}", f"Mr Li of {code}", "siblings", by="officer", at=NOW)
        application = apply(session, place, contract=ContractFacts(number="c", supplier=f"S{code}"))
        (seen,) = [c for c in checks_of(session, application) if c.rule == "supplier_unrelated"]
        assert (seen.verdict, seen.facts["path"][0], seen.facts["path"][-1]) == (LOOK, code, f"S{code}")


def test_a_withdrawn_application_goes_nowhere(world: World) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        application = apply(session, place)
        withdraw_application(session, application, by="tenant", at=NOW)
        with pytest.raises(ApplicationState):
            first_review(session, application, by="ann", at=NOW)
        with pytest.raises(ApplicationState):
            issue_voucher(session, application, by="ann", at=NOW)


def test_control_is_followed_to_its_end() -> None:
    edges = {"a": "b", "b": "c", "x": "c", "y": "z"}
    assert control_chain("a", edges) == ("a", "b", "c")
    assert actual_controller("alone", edges) == "alone"
    assert related("a", "x", edges, []) == ("a", "c", "x")
    assert related("a", "y", edges, []) == ()
    assert related("a", "y", edges, [("b", "z")]) == ("a", "b", "z", "y")
