"""The rules that decide amounts, one by one at their edges, without a database."""

import json
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any, Final

import pytest

from kernel.money import MICROS_MAX
from tests.vouchers.world import EXAMPLES
from vouchers.domain.applicability import HeldVoucher, NotApplicable, candidate, ratio_for
from vouchers.domain.calendar import (
    MalformedPeriod,
    add_months,
    budget_cycle,
    claim_period,
    expiry,
    local_day,
    start_of_day,
)
from vouchers.domain.controllers import ControllerCycle, check_acyclic, control_chain, related
from vouchers.domain.eligibility import Case, run_checks
from vouchers.domain.facts import ChargeFacts, ContractFacts, EnterpriseFacts
from vouchers.domain.forecast import Forecast, forecast
from vouchers.domain.sampling import draw
from vouchers.domain.terms import (
    MS_PER_HOUR,
    YEAR_MAX,
    YEAR_MIN,
    Condition,
    ProgrammeInvalid,
    Terms,
    Validity,
    in_region,
    parse_amount,
)
from vouchers.domain.tranches import tranche_faces
from vouchers.errors import CostOutOfRange
from vouchers.holding import check_cost
from vouchers.programmes import parse_programme, shares_of

SHANGHAI: Final = "Asia/Shanghai"
YUAN: Final = 1_000_000
FIRM: Final = EnterpriseFacts(credit_code="A", region="330106", yearly_contract_micros=600_000 * YUAN)
USED: Final = ChargeFacts(model="MLU370", region="330106")
ISSUED: Final = datetime(2026, 3, 10, 2, tzinfo=UTC)


def terms(name: str = "hangzhou", **changed: Any) -> Terms:  # noqa: ANN401 - any JSON value
    document = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    return parse_programme(document | changed)


def held(rules: Terms, firm: EnterpriseFacts = FIRM) -> HeldVoucher:
    return HeldVoucher("id", "N", "v", rules, firm, ISSUED, ISSUED + timedelta(days=9), 77)


def eligible(**changed: Any) -> Terms:  # noqa: ANN401 - any JSON value
    document = json.loads((EXAMPLES / "hangzhou.json").read_text(encoding="utf-8"))
    return terms(eligible=document["eligible"] | changed)


APPLIES = [
    (eligible(), USED, "Hangzhou 2025 §3"),
    (eligible(), replace(USED, hardware="other"), "Hangzhou 2025 §3(3)"),
    (eligible(), replace(USED, cost_kind="storage"), None),
    (eligible(centre_regions=["3302"]), USED, None),
    (eligible(centre_regions=["3302", "33"]), USED, "Hangzhou 2025 §3"),
    (eligible(hardware=["other"]), USED, None),
    (eligible(hardware=["domestic"]), USED, "Hangzhou 2025 §3"),
    (eligible(centre_pflops_above=100), replace(USED, centre_pflops=100), None),
    (eligible(centre_pflops_above=100), replace(USED, centre_pflops=101), "Hangzhou 2025 §3"),
]


@pytest.mark.parametrize(("rules", "used", "clause"), APPLIES)
def test_a_voucher_pays_for_what_its_programme_names_and_nothing_else(
    rules: Terms, used: ChargeFacts, clause: str | None
) -> None:
    tier = ratio_for(held(rules), used)
    if clause is None:
        assert isinstance(tier, NotApplicable)
        assert tier.clause == "Hangzhou 2025 §1"
    else:
        assert not isinstance(tier, NotApplicable)
        assert (tier.clause, tier.ratio) == (
            clause,
            Fraction(1, 5) if used.hardware == "other" else Fraction(3, 10),
        )


def test_card_time_pays_for_its_own_model_only_and_no_tier_is_no_payment() -> None:
    rules = terms("uk-airr")
    model = rules.asset.removeprefix("card_ms:")
    plain = ChargeFacts(model=model, region=rules.eligible.centre_regions[0], cost_kind="compute")
    firm = replace(FIRM, region="GB", roles=("researcher",))
    assert not isinstance(ratio_for(held(rules, firm), plain), NotApplicable)
    assert isinstance(ratio_for(held(rules, firm), replace(plain, model="other")), NotApplicable)
    assert isinstance(ratio_for(held(NO_TIER), USED), NotApplicable)


def test_vouchers_burn_by_priority_last_usage_width_age_and_id() -> None:
    rules = terms()
    tier = ratio_for(held(rules), USED)
    assert not isinstance(tier, NotApplicable)
    made = candidate(held(rules), tier, USED)
    assert made.burn == (100, "2026-03-19T02:00:00+00:00", 1 + 1000 + 10, "2026-03-10T02:00:00+00:00", "id")
    assert (made.limit, made.ratio, made.level, made.direction) == (
        77,
        Fraction(3, 10),
        "city",
        "centre_claims",
    )
    assert [entry.ratio for entry in made.ceilings] == [Fraction(2, 5)]


def test_a_wider_region_burns_later() -> None:
    widths = [eligible(centre_regions=regions).scope_width for regions in (["330106"], ["3301"], ["33", "32"])]
    assert [width - widths[0] for width in widths] == [0, 25 - 16, 100 - 16]


def test_a_programme_may_last_a_day_and_ranks_in_the_middle_unless_it_says_otherwise() -> None:
    document = json.loads((EXAMPLES / "huangyan.json").read_text(encoding="utf-8"))
    del document["priority"]
    rules = parse_programme(document | {"effective": {"from": "2026-01-01", "until": "2026-01-01"}})
    assert rules.priority == 100
    parse_programme(document | {"effective": {"from": f"{YEAR_MIN}-01-01", "until": f"{YEAR_MAX}-12-31"}})


@pytest.mark.parametrize(
    ("cost", "card_ms", "refused"),
    [
        (1, 0, None),
        (MICROS_MAX, MICROS_MAX, None),
        (0, 0, ("cost_micros", 0, 1)),
        (MICROS_MAX + 1, 0, ("cost_micros", MICROS_MAX + 1, 1)),
        (1, -1, ("card_ms", -1, 0)),
        (1, MICROS_MAX + 1, ("card_ms", MICROS_MAX + 1, 0)),
    ],
)
def test_a_cost_is_from_one_millionth_and_card_time_from_nothing_to_the_most(
    cost: int, card_ms: int, refused: tuple[str, int, int] | None
) -> None:
    with nullcontext() if refused is None else pytest.raises(CostOutOfRange) as found:
        check_cost(cost, replace(USED, card_ms=card_ms))
    if refused is not None and found is not None:
        assert tuple(found.value.facts[name] for name in ("field", "value", "least")) == refused


CONDITIONS = [
    (Condition(), True),
    (Condition(size_classes=frozenset({"small"})), True),
    (Condition(size_classes=frozenset({"large"})), False),
    (Condition(industries=frozenset({"manufacturing"})), True),
    (Condition(industries=frozenset({"retail"})), False),
    (Condition(hardware=frozenset({"other"})), False),
    (Condition(cost_kinds=frozenset({"storage"})), False),
    (Condition(roles=frozenset({"lead"})), False),
    (Condition(yearly_contract_max_micros=600_000 * YUAN), True),
    (Condition(yearly_contract_max_micros=600_000 * YUAN - 1), False),
]


@pytest.mark.parametrize(("condition", "met"), CONDITIONS)
def test_a_condition_holds_when_everything_it_asks_is_met(condition: Condition, *, met: bool) -> None:
    assert condition.holds(FIRM, USED) is met
    of_usage = bool(condition.hardware or condition.cost_kinds)
    assert condition.holds(FIRM, None) is (met or of_usage)


def test_a_role_among_several_suffices() -> None:
    lead = replace(FIRM, roles=("other", "lead"))
    assert Condition(roles=frozenset({"lead", "member"})).holds(lead, USED)


def test_narrower_scopes_are_told_from_wider_ones() -> None:
    widths = [
        eligible(centre_regions=regions, hardware=hardware, cost_kinds=kinds).scope_width
        for regions, hardware, kinds in (
            (["330106"], ["domestic"], ["compute"]),
            (["3301"], ["domestic"], ["compute"]),
            (["33"], ["domestic"], ["compute"]),
            (["33"], ["domestic", "other"], ["compute", "storage"]),
            (["any"], ["domestic"], ["compute"]),
        )
    ]
    assert widths == [1 + 16 + 1, 1 + 25 + 1, 1 + 50 + 1, 2 + 50 + 2, 1 + 1000 + 1]


def test_the_first_ceiling_and_cap_whose_condition_holds_count() -> None:
    small = replace(FIRM, yearly_contract_micros=500_000 * YUAN)
    assert [entry.ratio for entry in terms().ceilings_for(small, USED)] == [Fraction(3, 5)]
    assert [entry.ratio for entry in terms().ceilings_for(FIRM, USED)] == [Fraction(2, 5)]
    caps = [
        {
            "clause": "a",
            "per": "enterprise",
            "cycle": "year",
            "amount": "1",
            "when": {"size_classes": ["large"]},
        },
        {"clause": "b", "per": "enterprise", "cycle": "year", "amount": "2"},
        {"clause": "c", "per": "enterprise", "cycle": "year", "amount": "3"},
        {"clause": "d", "per": "controller", "cycle": "year", "amount": "4"},
    ]
    assert [cap.clause for cap in terms(caps=caps).caps_for(FIRM)] == ["b", "d"]


def test_regions_are_prefixes_and_any_is_everywhere() -> None:
    assert in_region("330106", ["3302", "3301"])
    assert in_region("990000", ["any"])
    assert not in_region("330106", ["330107"])
    assert not in_region("330106", [])


def test_card_hours_are_whole() -> None:
    assert parse_amount("12", "card_ms:X", "budget.amount") == 12 * MS_PER_HOUR
    assert parse_amount("12.5", "CNY", "budget.amount") == 12_500_000
    for text in ("1.5", "-1", "", "١٢x"):
        with pytest.raises(ProgrammeInvalid, match=r"budget\.amount"):
            parse_amount(text, "card_ms:X", "budget.amount")


@pytest.mark.parametrize(
    ("rule", "ends"),
    [
        (Validity("§", 0, 0, date(2026, 3, 31)), datetime(2026, 3, 31, 16, tzinfo=UTC)),
        (Validity("§", 0, 12, None), datetime(2027, 3, 9, 16, tzinfo=UTC)),
        (Validity("§", 30, 0, None), datetime(2026, 4, 8, 16, tzinfo=UTC)),
    ],
)
def test_a_last_day_counts_in_full_in_the_programmes_zone(rule: Validity, ends: datetime) -> None:
    assert expiry(rule, ISSUED, SHANGHAI) == ends
    assert expiry(rule, ISSUED - timedelta(hours=9, minutes=59), SHANGHAI) == ends
    assert local_day(ISSUED - timedelta(hours=10, minutes=1), SHANGHAI) == date(2026, 3, 9)


@pytest.mark.parametrize(
    ("issued", "months", "last"),
    [
        (date(2026, 1, 31), 1, date(2026, 2, 28)),
        (date(2026, 1, 29), 1, date(2026, 2, 28)),
        (date(2026, 1, 28), 1, date(2026, 2, 27)),
        (date(2028, 1, 29), 1, date(2028, 2, 28)),
        (date(2028, 2, 29), 12, date(2029, 2, 28)),
        (date(2027, 3, 1), 12, date(2028, 2, 29)),
        (date(2026, 3, 1), 1, date(2026, 3, 31)),
        (date(2026, 8, 31), 6, date(2027, 2, 28)),
    ],
)
def test_months_end_before_the_day_comes_again_or_with_a_month_that_has_no_such_day(
    issued: date, months: int, last: date
) -> None:
    ends = expiry(Validity("§", 0, months, None), start_of_day(issued, SHANGHAI), SHANGHAI)
    assert local_day(ends - timedelta(microseconds=1), SHANGHAI) == last


@pytest.mark.parametrize(
    ("day", "months", "later"),
    [
        (date(2026, 1, 31), 1, date(2026, 2, 28)),
        (date(2024, 1, 31), 1, date(2024, 2, 29)),
        (date(2026, 11, 30), 1, date(2026, 12, 30)),
        (date(2026, 12, 1), 1, date(2027, 1, 1)),
        (date(2026, 12, 15), 13, date(2028, 1, 15)),
        (date(2026, 5, 31), 0, date(2026, 5, 31)),
    ],
)
def test_months_are_added_to_the_end_of_shorter_ones(day: date, months: int, later: date) -> None:
    assert add_months(day, months) == later


def test_clocks_that_change_keep_the_day() -> None:
    assert start_of_day(date(2026, 3, 29), "Europe/London") == datetime(2026, 3, 29, tzinfo=UTC)
    assert start_of_day(date(2026, 3, 30), "Europe/London") == datetime(2026, 3, 29, 23, tzinfo=UTC)


def test_periods_begin_and_end_in_the_programmes_zone_and_name_their_instants() -> None:
    monthly, quarterly = terms(), terms("henan") if terms("henan").settlement.cycle != "month" else None
    begins, ends = claim_period(monthly, "2026-12")
    assert (begins, ends) == (datetime(2026, 11, 30, 16, tzinfo=UTC), datetime(2026, 12, 31, 16, tzinfo=UTC))
    rules = quarterly or replace(monthly, settlement=replace(monthly.settlement, cycle="quarter"))
    begins, ends = claim_period(rules, "2026-Q4")
    assert (begins, ends) == (datetime(2026, 9, 30, 16, tzinfo=UTC), datetime(2026, 12, 31, 16, tzinfo=UTC))
    for wrong in ("2026-12", "2026-Q5", "1948-Q4", "2200-Q1"):
        with pytest.raises(MalformedPeriod):
            claim_period(rules, wrong)
    assert claim_period(rules, "1949-Q1")[0].year == 1948
    assert claim_period(rules, "2199-Q4")[1].year == 2199


def test_budget_cycles_turn_at_new_year_in_the_programmes_zone() -> None:
    turn = datetime(2026, 12, 31, 16, tzinfo=UTC)
    assert budget_cycle("year", turn, SHANGHAI) == "2027"
    assert budget_cycle("year", turn - timedelta(microseconds=1), SHANGHAI) == "2026"
    assert budget_cycle("once", turn, SHANGHAI) == "once"


def test_a_circle_is_refused_wherever_it_closes() -> None:
    edges = {"a": "b", "b": "c"}
    assert control_chain("a", edges | {"c": "a"}) == ("a", "b", "c")
    check_acyclic("x", "a", edges)
    for controller in ("a", "b", "c"):
        with pytest.raises(ControllerCycle):
            check_acyclic("c", controller, edges)
    check_acyclic("a", "c", edges)
    assert related("a", "y", edges, [("y", "other")]) == ()
    assert related("a", "y", edges, [("z", "q"), ("y", "b")]) == ("a", "y", "b", "y")


CONTRACT: Final = ContractFacts(number="c", supplier="B", amount_micros=100, days=1, cost_kind="compute")
NO_TIER: Final = terms(ratios=[{"clause": "§", "ratio": "0.5", "when": {"roles": ["hero"]}}])
LARGE_CENTRES: Final = eligible(centre_pflops_above=100)


def case(**changed: Any) -> Case:  # noqa: ANN401 - any field
    return replace(Case(terms(), FIRM, CONTRACT, 30), **changed)


def verdict(found: Case, rule: str) -> str:
    return next(check.verdict for check in run_checks(found) if check.rule == rule)


@pytest.mark.parametrize(
    ("changed", "rule", "expected"),
    [
        ({}, "within_contract", "pass"),
        ({"requested": 31}, "within_contract", "pass"),
        ({"requested": 51}, "within_contract", "fail"),
        ({"issued_enterprise": 8_000_000 * YUAN - 30}, "cap_per_enterprise", "pass"),
        ({"issued_enterprise": 8_000_000 * YUAN - 29}, "cap_per_enterprise", "fail"),
        ({"issued_controller": 8_000_000 * YUAN - 30}, "cap_per_controller", "pass"),
        ({"issued_controller": 8_000_000 * YUAN - 29}, "cap_per_controller", "fail"),
        ({"requested": 8_000_000 * YUAN}, "cap_per_enterprise", "pass"),
        ({"requested": 8_000_000 * YUAN}, "cap_per_controller", "pass"),
        ({"terms": NO_TIER, "requested": 1}, "within_contract", "fail"),
        (
            {"terms": LARGE_CENTRES, "contract": replace(CONTRACT, centre_pflops=100)},
            "contract_eligible",
            "fail",
        ),
        (
            {"terms": LARGE_CENTRES, "contract": replace(CONTRACT, centre_pflops=101)},
            "contract_eligible",
            "pass",
        ),
        ({"enterprise": replace(FIRM, region="310000")}, "enterprise_eligible", "fail"),
        ({"relation": ("A", "B")}, "supplier_unrelated", "look"),
        ({"contract_used_by": ("x",)}, "no_duplicate", "look"),
        ({"duplicates": ("x",)}, "no_duplicate", "fail"),
        ({"in_round": False}, "within_round", "fail"),
    ],
)
def test_checks_turn_at_their_edges(changed: dict[str, Any], rule: str, expected: str) -> None:
    loose = replace(FIRM, yearly_contract_micros=500_000 * YUAN)
    found = case(**({"enterprise": loose} | changed))
    assert verdict(found, rule) == expected


def test_a_face_within_the_contract_is_checked_by_the_ratios_clause_where_there_is_one() -> None:
    clauses = [
        next(check.clause for check in run_checks(case(terms=rules)) if check.rule == "within_contract")
        for rules in (terms(), NO_TIER)
    ]
    assert clauses == ["Hangzhou 2025 §3", "Hangzhou 2025 §1"]


@pytest.mark.parametrize(
    ("captured", "days_gone", "days_left", "remaining", "used"),
    [(10, 10, 5, 100, 5), (10, 10, 5, 4, 4), (10, 0, 5, 100, 0), (10, 10, -1, 100, 0), (90, 1, 30, 500, 100)],
)
def test_a_forecast_is_the_pace_so_far_and_never_more_than_there_is(
    captured: int, days_gone: int, days_left: int, remaining: int, used: int
) -> None:
    at = ISSUED + timedelta(days=days_gone)
    found = forecast(
        face=100,
        captured=captured,
        remaining=remaining,
        issued_at=ISSUED,
        use_by_at=at + timedelta(days=days_left),
        at=at,
    )
    assert found == Forecast(remaining, used, remaining - used)


def test_a_forecast_counts_whole_seconds_from_the_first_to_the_last() -> None:
    def used(age_s: int, left_s: int) -> int:
        at = ISSUED + timedelta(seconds=age_s)
        end = at + timedelta(seconds=left_s)
        found = forecast(face=100, captured=10, remaining=90, issued_at=ISSUED, use_by_at=end, at=at)
        return found.used_by_then

    assert [used(0, 5), used(1, 5), used(5, 5), used(1, -1), used(5, 0)] == [0, 50, 10, 0, 0]


def test_a_sample_is_of_the_asked_size_and_depends_on_seed_and_lines_only() -> None:
    lines = [f"line {number}" for number in range(20)]
    drawn = draw("seed", lines, 5)
    assert drawn == draw("seed", reversed(lines), 5)
    assert len(set(drawn)) == 5
    assert set(drawn) <= set(lines)
    assert draw("seed", lines, 20)[:5] == drawn
    assert draw("other", lines, 5) != drawn
    assert draw("1", ["2x"], 1) == ("2x",)


@pytest.mark.parametrize(
    ("granted", "parts", "faces"),
    [
        (100, (1, 1), [50, 50]),
        (101, (1, 1), [50, 51]),
        (10, (1, 2, 4), [1, 3, 6]),
        (7, (1,), [7]),
        (2, (1, 3), [0, 2]),
    ],
)
def test_tranches_divide_a_grant_by_their_parts_to_the_last_unit(
    granted: int, parts: tuple[int, ...], faces: list[int]
) -> None:
    needs = ["award", *["progress_report"] * (len(parts) - 1)]
    tranches = [{"clause": "§", "parts": part, "needs": need} for part, need in zip(parts, needs, strict=True)]
    assert tranche_faces(terms(tranches=tranches), granted) == faces


def test_governments_share_a_budget_by_their_parts_and_the_first_takes_the_rest() -> None:
    split = [
        {"level": "city", "authority": name, "parts": parts} for name, parts in (("a", 1), ("b", 2), ("c", 4))
    ]
    budget = {"clause": "§", "cycle": "year", "amount": "1.00", "split": split}
    rules = terms(budget=budget)
    assert shares_of(rules, 10) == [("a", 1 + 2), ("b", 2), ("c", 5)]
    assert shares_of(rules, 1) == [("a", 1)]
    assert shares_of(terms(), 10) == [("hangzhou-city", 10)]
