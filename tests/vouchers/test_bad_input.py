"""What cannot be meant is refused with a name, and nothing is written."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from kernel.database import Table, transaction
from kernel.errors import HubError
from kernel.money import MICROS_MAX
from tests.vouchers.world import FACTS, NOW, YUAN, Place, World
from vouchers.afterlife import expire_vouchers, recall_voucher
from vouchers.capturing import capture_charge
from vouchers.cases import open_round
from vouchers.claims import lock_terms, make_claim, resubmit_claim
from vouchers.clawback import claw_back_line
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import record_controller, register_enterprise
from vouchers.holding import HoldRequest, place_holds
from vouchers.issuing import voucher_of
from vouchers.programmes import publish_programme
from vouchers.redemption import extend_hold, place_hold, quote, release_hold
from vouchers.settlement import advance_reserve, dispute_line, refuse_line
from vouchers.tables import ProgrammeVersion, Voucher
from vouchers.wallets import allot_part, deposit, grant_credit, set_budget

Case = Callable[[Session, Place], object]


def published(**changed: Any) -> Case:  # noqa: ANN401 - any JSON value
    """Publish a changed copy of the example; a dotted name changes a field inside."""

    def case(session: Session, place: Place) -> object:
        document: dict[str, Any] = place.world.document("huangyan", programme=f"bad-{place.programme}")
        for name, value in changed.items():
            *path, last = name.split("__")
            inner: Any = document
            for step in path:
                inner = inner[int(step)] if step.isdigit() else inner[step]
            inner[last] = value
        return publish_programme(session, document, by="officer", at=NOW)

    return case


def again(**changed: object) -> Case:
    """Publish the place's own programme once more, changed."""

    def case(session: Session, place: Place) -> object:
        document = place.world.document("huangyan", programme=place.programme, **changed)
        return publish_programme(session, document, by="officer", at=NOW)

    return case


def register(**changed: object) -> Case:
    def case(session: Session, place: Place) -> object:
        plain: dict[str, Any] = {
            "credit_code": f"X{place.tenant.hex[:12].upper()}",
            "name": "n",
            "region": "331003",
        }
        return register_enterprise(session, at=NOW, **(plain | changed))

    return case


def hold_cost(cost: Any, card_ms: Any = 0) -> Case:  # noqa: ANN401 - whatever a caller may pass
    return lambda session, place: place_hold(
        session, place.job(9), place.tenant, cost, ChargeFacts("MLU370", card_ms=card_ms), None, NOW
    )


def budget(**changed: Any) -> Case:  # noqa: ANN401 - whatever a caller may pass
    """Raise the project's budget that begins now and lasts a day."""

    def case(session: Session, place: Place) -> object:
        plain: dict[str, Any] = {"starts_at": NOW, "ends_at": NOW + timedelta(days=1), "amount_micros": YUAN}
        return set_budget(session, place.tenant, "p", reference="r", by="b", at=NOW, **(plain | changed))

    return case


def after_approval(session: Session, place: Place) -> object:
    session.execute(
        text("UPDATE claims SET state = 'approved', first_reviewer = 'a', approver = 'b' WHERE slug = :slug"),
        {"slug": place.programme},
    )
    return make_claim(session, place.programme, "2026-03", by="centre", at=NOW)


def cycle(session: Session, place: Place) -> object:
    session.begin_nested()
    for one, other in (("a", "b"), ("b", "c"), ("c", "a")):
        record_controller(session, f"{one}-{place.tenant}", f"{other}-{place.tenant}", by="x", at=NOW)
    return None


def extended(session: Session, place: Place, *, number: int, tenant: UUID) -> object:
    """Extend a job's hold in a batch, whose refusals are answers."""
    request = HoldRequest(place.job(number), tenant, 20 * YUAN, FACTS, None, NOW, extends=True)
    (outcome,) = place_holds(session, [request], NOW)
    if isinstance(outcome, HubError):
        raise outcome
    return outcome


def claim(session: Session, place: Place) -> UUID:
    """The claim of one line that is under review."""
    return make_claim(session, place.programme, "2026-03", by="centre", at=NOW)


def decided_twice(session: Session, place: Place) -> object:
    made = claim(session, place)
    dispute_line(session, made, 1, reason="r", by="a", at=NOW)
    dispute_line(session, made, 1, reason="r", by="a", at=NOW)
    return refuse_line(session, made, 1, reason="r", by="a", at=NOW)


def voucher(session: Session, place: Place) -> Voucher:
    """The place's voucher."""
    return session.scalars(select(Voucher).where(Voucher.enterprise_id == place.tenant)).one()


def recalled_after_its_end(session: Session, place: Place) -> object:
    mine = voucher(session, place)
    while expire_vouchers(session, mine.expires_at):
        pass
    return recall_voucher(session, mine.id, by="o", reason="r", at=mine.expires_at)


def allotted_at_its_end(session: Session, place: Place) -> object:
    mine = voucher(session, place)
    return allot_part(session, place.tenant, mine.id, "x", 1, reference="r", by="b", at=mine.expires_at)


def advanced(amount: Any) -> Case:  # noqa: ANN401 - whatever a caller may pass
    return lambda s, p: advance_reserve(s, p.programme, amount, reference="r", by="o", at=NOW)


REFUSED: Final[dict[str, tuple[Case, str]]] = {
    "more than six places": (published(budget__amount="1.0000001"), "programme_invalid"),
    "a negative amount": (published(budget__amount="-1.00"), "programme_invalid"),
    "an amount above 2^53": (published(budget__amount="9007199255.00"), "malformed_amount"),
    "an amount with an exponent": (published(budget__amount="1e6"), "programme_invalid"),
    "an amount that is a number": (published(budget__amount=100), "programme_invalid"),
    "a ratio above one": (published(ratios__0__ratio="1.01"), "programme_invalid"),
    "a ratio with seven places": (published(ratios__0__ratio="0.1234567"), "programme_invalid"),
    "a ratio that is a number": (published(ratios__0__ratio=0.3), "programme_invalid"),
    "a ceiling above one": (published(ceilings=[{"clause": "c", "ratio": "2"}]), "programme_invalid"),
    "an unknown field": (published(note="x"), "programme_invalid"),
    "an unknown asset": (published(asset="USD"), "programme_invalid"),
    "an unknown level": (published(level="galaxy"), "programme_invalid"),
    "an unknown time zone": (published(time_zone="Asia/Huangyan"), "programme_invalid"),
    "a day that is none": (published(effective__from="2026-02-30"), "programme_invalid"),
    "effect that ends before it begins": (published(effective__until="2023-12-31"), "programme_invalid"),
    "two kinds of validity": (published(validity__days=3), "programme_invalid"),
    "a first tranche that waits": (
        published(tranches=[{"clause": "c", "parts": 1, "needs": "progress_report"}]),
        "programme_invalid",
    ),
    "an authority named twice": (
        published(budget__split=[{"level": "city", "authority": "a", "parts": 1}] * 2),
        "programme_invalid",
    ),
    "card-hours in parts": (published(asset="card_ms:X", caps=[], budget__amount="1.5"), "programme_invalid"),
    "a superseded version that is not there": (published(supersedes=7, version=8), "programme_invalid"),
    "a changed version": (again(name="another"), "version_exists"),
    "overlapping versions": (again(version=2), "versions_overlap"),
    "another asset": (
        again(version=2, asset="card_ms:X", caps=[], budget={"clause": "c", "cycle": "year", "amount": "1"}),
        "asset_changed",
    ),
    "a cycle in the controller graph": (cycle, "controller_cycle"),
    "its own controller": (lambda s, _: record_controller(s, "a", "a", by="x", at=NOW), "controller_cycle"),
    "a credit code that is none": (register(credit_code="abc"), "malformed_profile"),
    "a region that is none": (register(region="Huangyan"), "malformed_profile"),
    "a size that is none": (register(size_class="huge"), "malformed_profile"),
    "a negative yearly contract": (register(yearly_contract_micros=-1), "malformed_profile"),
    "a deposit of nothing": (lambda s, p: deposit(s, p.tenant, 0, "r", NOW), "amount_refused"),
    "a negative deposit": (lambda s, p: deposit(s, p.tenant, -1, "r", NOW), "amount_refused"),
    "a deposit above 2^53": (lambda s, p: deposit(s, p.tenant, MICROS_MAX + 1, "r", NOW), "amount_refused"),
    "a deposit in floats": (lambda s, p: deposit(s, p.tenant, 1.5, "r", NOW), "amount_refused"),  # type: ignore[arg-type]
    "negative credit": (lambda s, p: grant_credit(s, p.tenant, -5, "r", NOW), "amount_refused"),
    "a stranger's deposit": (lambda s, p: deposit(s, p.job(), YUAN, "r", NOW), "enterprise_not_found"),
    "a cost of nothing": (hold_cost(0), "cost_out_of_range"),
    "a negative cost": (hold_cost(-1), "cost_out_of_range"),
    "a cost above 2^53": (hold_cost(MICROS_MAX + 1), "cost_out_of_range"),
    "a cost in floats": (hold_cost(1.0), "cost_out_of_range"),
    "negative card time": (hold_cost(1, -1), "cost_out_of_range"),
    "another hold for the same job": (
        lambda s, p: place_hold(s, p.job(), p.tenant, 2 * YUAN, FACTS, None, NOW),
        "hold_differs",
    ),
    "a hold for a job without one": (
        lambda s, p: extend_hold(s, p.job(5), YUAN, FACTS, NOW),
        "hold_not_found",
    ),
    "release for a job without a hold": (lambda s, p: release_hold(s, p.job(5), NOW), "hold_not_found"),
    "a capture for another job's hold": (
        lambda s, p: capture_charge(s, p.job(5), p.charge(5), YUAN, FACTS, NOW),
        "hold_not_found",
    ),
    "another job's charge": (
        lambda s, p: (
            place_hold(s, p.job(2), p.tenant, 10 * YUAN, FACTS, None, NOW),
            s.flush(),
            capture_charge(s, p.job(2), p.charge(), YUAN, FACTS, NOW),
        ),
        "charge_differs",
    ),
    "a charge with other content": (
        lambda s, p: capture_charge(s, p.job(), p.charge(), 2 * YUAN, FACTS, NOW),
        "charge_differs",
    ),
    "a charge of another kind": (
        lambda s, p: capture_charge(s, p.job(), p.charge(2), YUAN, ChargeFacts("H20"), NOW),
        "charge_facts_differ",
    ),
    "a voucher that is none": (
        lambda s, p: quote(s, p.tenant, YUAN, FACTS, [p.job()], NOW),
        "voucher_not_found",
    ),
    "a part of nothing": (
        lambda s, p: allot_part(s, p.tenant, p.job(), "x", 0, reference="r", by="b", at=NOW),
        "amount_refused",
    ),
    "a round that ends before it begins": (
        lambda s, p: open_round(s, p.programme, "r", opens_at=NOW, cut_off_at=NOW, by="o"),
        "dates_reversed",
    ),
    "a round of that name with other dates": (
        lambda s, p: open_round(s, p.programme, "r1", opens_at=NOW, cut_off_at=NOW + timedelta(days=2), by="o"),
        "round_differs",
    ),
    "a budget that ends before it begins": (budget(ends_at=NOW - timedelta(days=1)), "dates_reversed"),
    "a budget that begins then and ends at another time": (
        budget(ends_at=NOW + timedelta(days=2)),
        "budget_differs",
    ),
    "a voucher nobody issued": (lambda s, p: voucher_of(s, p.job()), "voucher_not_found"),
    "a recall of no voucher": (
        lambda s, p: recall_voucher(s, p.job(), by="o", reason="r", at=NOW),
        "voucher_not_found",
    ),
    "a recall of a voucher that has ended": (recalled_after_its_end, "voucher_ended"),
    "a part of a voucher that has ended": (allotted_at_its_end, "voucher_ended"),
    "an extension for a job without a hold, in a batch": (
        lambda s, p: extended(s, p, number=5, tenant=p.tenant),
        "hold_not_found",
    ),
    "an extension of another tenant's hold": (
        lambda s, p: extended(s, p, number=1, tenant=p.world.enterprise(s)),
        "hold_not_found",
    ),
    "a claim that is under review, again": (
        lambda s, p: resubmit_claim(s, claim(s, p), evidence={}, by="c", at=NOW),
        "claim_state",
    ),
    "a line that was decided otherwise": (decided_twice, "claim_state"),
    "a clawback of no line": (
        lambda s, p: claw_back_line(s, claim(s, p), 2, reason="r", by="o", at=NOW),
        "claim_line_not_found",
    ),
    "a clawback of a line under review": (
        lambda s, p: claw_back_line(s, claim(s, p), 1, reason="r", by="o", at=NOW),
        "claim_state",
    ),
    "a reserve of nothing": (advanced(0), "amount_refused"),
    "a reserve above 2^53": (advanced(MICROS_MAX + 1), "amount_refused"),
    "a reserve in floats": (advanced(1.0), "amount_refused"),
    "a claim over a closed period": (after_approval, "period_closed"),
    "a claim over a period to come": (
        lambda s, p: make_claim(s, p.programme, "2026-04", by="c", at=NOW),
        "period_not_begun",
    ),
    "a claim over a period that has just begun, with nothing in it": (
        lambda s, p: make_claim(s, p.programme, "2026-04", by="c", at=datetime(2026, 3, 31, 16, tzinfo=UTC)),
        "nothing_to_claim",
    ),
    "a claim under no programme": (
        lambda s, _: make_claim(s, "nowhere", "2026-03", by="c", at=NOW),
        "programme_not_found",
    ),
    "a reserve that is not provided for": (
        lambda s, p: advance_reserve(s, p.programme, 1, reference="r", by="o", at=NOW),
        "no_reserve",
    ),
    "a bank reference used for another amount": (
        lambda s, p: deposit(s, p.tenant, 7, f"used {p.tenant}", NOW),
        "bank_reference_used",
    ),
}

NAMED: Final[dict[str, tuple[str, ...]]] = {
    "more than six places": ("budget.amount", "'1.0000001'", "at most six places, such as '1250.00'"),
    "a negative amount": ("budget.amount", "'-1.00'", "without sign"),
    "an amount above 2^53": ("budget.amount", "at most 9007199254.740992"),
    "an amount that is a number": ("budget.amount", "write a decimal string"),
    "a ratio above one": ("ratios[0].ratio", "'1.01'", "from 0 to 1"),
    "a ceiling above one": ("ceilings[0].ratio", "from 0 to 1"),
    "an unknown field": ("document", "'note'"),
    "an unknown asset": ("asset", "write CNY, or card_ms:"),
    "effect that ends before it begins": ("effective", "2023-12-31 before it starts on 2024-01-01; exchange"),
    "a changed version": ("version", "publish the change as a new version"),
    "overlapping versions": ("effective", "version 1", "name 1 in supersedes"),
    "another asset": ("asset", "publish another programme"),
    "a cycle in the controller graph": ("controller", "name another controller for one of them first"),
    "a negative deposit": ("amount", "-1", "from 1 to"),
    "a deposit above 2^53": ("amount", "to 9007199254740992"),
    "a cost above 2^53": ("cost_micros", "to 9007199254740992"),
    "a capture for another job's hold": ("job", "place a hold for it first"),
    "another job's charge": ("charge", "give what is new an id of its own"),
    "a charge of another kind": ("facts", "model 'H20' for 'MLU370'", "extend the hold"),
    "a round that ends before it begins": ("cut_off_at", "name a later time"),
    "a round of that name with other dates": ("name", "give another round another name"),
    "a budget that ends before it begins": ("ends_at", "name a later time"),
    "a budget that begins then and ends at another time": ("ends_at", "begin another budget"),
    "a claim over a closed period": ("period", "2026-03", "next period's claim"),
    "a claim over a period to come": ("period", "2026-04", "claim it then"),
}
"""The field that a refusal names, and words that say what is wrong and what to do."""


@pytest.fixture(scope="module")
def place(world: World) -> Place:
    with transaction(world.engine) as session:
        made = world.place(session)
        made.voucher(session, 100)
        place_hold(session, made.job(), made.tenant, 10 * YUAN, FACTS, None, NOW)
        capture_charge(session, made.job(), made.charge(), YUAN, FACTS, NOW)
        deposit(session, made.tenant, YUAN, f"used {made.tenant}", NOW)
        make_claim(session, made.programme, "2026-03", by="centre", at=NOW)
        open_round(session, made.programme, "r1", opens_at=NOW, cut_off_at=NOW + timedelta(days=1), by="o")
        budget()(session, made)
    return made


def counts(session: Session) -> dict[str, int]:
    return {
        table.name: session.scalar(select(func.count()).select_from(table)) or 0
        for table in Table.metadata.sorted_tables
    }


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(world: World, place: Place, what: str) -> None:
    case, code = REFUSED[what]
    with transaction(world.engine) as session:
        before = counts(session)
    with pytest.raises(HubError) as refused, transaction(world.engine) as session:
        case(session, place)
    assert refused.value.code == code
    assert str(refused.value).rstrip(".") != code
    field, *fix = NAMED.get(what, ("",))
    assert str(refused.value).startswith(f"{field}: " if field else "")
    assert all(words in str(refused.value) for words in fix)
    with transaction(world.engine) as session:
        assert counts(session) == before


def test_the_database_itself_refuses_overlapping_versions(world: World, place: Place) -> None:
    with pytest.raises(Exception, match="ex_programme_versions_overlap"), transaction(world.engine) as session:
        row = session.scalars(select(ProgrammeVersion).where(ProgrammeVersion.slug == place.programme)).one()
        session.add(
            ProgrammeVersion(
                id=place.job(77),
                slug=row.slug,
                programme_number=row.programme_number,
                version=2,
                effective_from=row.effective_from + timedelta(days=400),
                effective_until=None,
                document=row.document,
                digest="x",
                published_by="x",
                published_at=NOW,
            )
        )


def test_a_new_version_takes_over_on_its_day_and_old_decisions_keep_theirs(world: World) -> None:
    with transaction(world.engine) as session:
        old = world.place(session)
        before = old.voucher(session, 100)
        document = world.document(
            "huangyan",
            programme=old.programme,
            version=2,
            supersedes=1,
            effective={"from": "2026-04-01"},
            ratios=[{"clause": "Huangyan 2 §3", "ratio": "0.50"}],
        )
        publish_programme(session, document, by="officer", at=NOW)
        assert lock_terms(session, old.programme).ratios[0].clause == "Huangyan 2 §3"
        later = NOW + timedelta(days=30)
        after = old.voucher(session, 100, later)
        for voucher, clause, micros in ((before, "Huangyan §3", 300_000), (after, "Huangyan 2 §3", 500_000)):
            (line, _) = quote(session, old.tenant, YUAN, FACTS, [voucher], later).lines
            assert (line.clause, line.amount_micros) == (clause, micros)
