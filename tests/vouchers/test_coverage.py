"""The coverage solver: proven cheapest for the tenant against brute force, and charges telescope into holds."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vouchers.domain.coverage import BUYER_REIMBURSED, Candidate, Plan, TooManyProgrammes, plan_coverage
from vouchers.domain.segments import Segment, Stretch, Unwound, fill_in_order, unwind
from vouchers.domain.terms import CNY, Ceiling, Exclusion
from vouchers.holding import segment_coverage

LEVELS = ("national", "province", "city", "district")


def voucher(name: str, ratio: str = "0.30", limit: int = 10**9, **rules: object) -> Candidate:
    plain = {
        "voucher": name,
        "number": name.upper(),
        "version": "v1",
        "programme": name,
        "level": "city",
        "asset": CNY,
        "ratio": Fraction(ratio),
        "limit": limit,
        "clause": f"{name} §3",
        "burn": (100, name),
    }
    return Candidate(**(plain | rules))  # type: ignore[arg-type]  # rules are named by the tests


def amounts(plan: Plan) -> dict[str, int]:
    return {
        share.candidate.voucher: share.amount_micros for share in plan.shares(plan.cost_micros, plan.card_ms)
    }


def test_a_single_voucher_pays_its_ratio_and_the_tenant_the_rest() -> None:
    plan = plan_coverage(100_000_000, 0, [voucher("a")])
    assert amounts(plan) == {"a": 30_000_000}
    assert plan.tenant_micros(100_000_000) == 70_000_000


def test_a_voucher_pays_no_more_than_remains_on_it() -> None:
    plan = plan_coverage(100, 0, [voucher("a", limit=7)])
    assert amounts(plan) == {"a": 7}


@pytest.mark.parametrize("cost", [1, 7, 100, 999])
def test_the_parts_of_a_segment_add_up_and_a_reimbursed_share_is_paid_by_the_buyer_first(cost: int) -> None:
    centre, buyer = voucher("a", "0.3"), voucher("b", "0.25", direction=BUYER_REIMBURSED)
    division = Segment(plan_coverage(999, 0, [centre, buyer]), (400, 300))
    paid, reimbursed = cost * 3 // 10, cost // 4
    tenant = cost - cost * 55 // 100
    parts = division.parts(cost, 0)
    assert [share.amount_micros for share in parts.shares] == [paid, reimbursed]
    assert sum(parts.own) == division.own_micros(cost) == tenant + reimbursed
    assert parts.own == (min(400, tenant + reimbursed), max(0, tenant + reimbursed - 400))
    assert paid + sum(parts.own) + parts.rounding == cost
    assert parts.rounding in {0, 1}


def test_what_sources_cannot_give_is_missing() -> None:
    assert fill_in_order(10, (4, 0, 3)) == ((4, 0, 3), 3)
    assert fill_in_order(5, (4, 2)) == ((4, 1), 0)


def test_a_charge_is_unwound_from_its_newest_end_and_only_where_something_goes_back() -> None:
    stretches = {0: Stretch(10, 30, 100, 200), 1: Stretch(0, 20, 0, 40)}
    newest, older = Unwound((20, 40), (15, 30)), Unwound((30, 200), (20, 150))
    assert list(unwind(stretches, 0, 5)) == [(1, newest)]
    assert list(unwind(stretches, 20, 30)) == [(0, older)]
    assert list(unwind(stretches, 15, 30)) == [(1, Unwound((5, 10), (0, 0))), (0, older)]
    assert list(unwind(stretches, 5, 5)) == []


def test_two_vouchers_of_one_programme_together_pay_one_ratio() -> None:
    pair = [voucher("a", programme="p", limit=20), voucher("b", programme="p")]
    assert amounts(plan_coverage(100, 0, pair)) == {"a": 20, "b": 10}


def test_a_lower_version_never_borrows_the_ratio_of_a_higher_one() -> None:
    three = [
        voucher("a", "0.30", programme="p", limit=20),
        voucher("b", "0.30", programme="p"),
        voucher("c", "0.50", programme="p"),
    ]
    assert amounts(plan_coverage(100, 0, three)) == {"a": 20, "b": 10, "c": 20}


def test_the_stacking_ceiling_binds_all_who_pay_with_it() -> None:
    city = voucher("city", ceilings=(Ceiling("city §9", "", Fraction("0.35")),))
    plan = plan_coverage(100, 0, [city, voucher("nation", "0.10", level="national", burn=(100, "z"))])
    assert amounts(plan) == {"city": 30, "nation": 5}
    assert [ceiling.clause for ceiling in plan.ceilings_reached(100)] == ["city §9"]


def test_what_a_reached_ceiling_keeps_out_takes_no_part_at_all() -> None:
    ceiling = Ceiling("city §9", "", Fraction("0.30"))
    city, nation = voucher("city", ceilings=(ceiling,)), voucher("nation", "0.10", burn=(100, "z"))
    plan = plan_coverage(100, 0, [city, nation])
    assert plan.candidates == (city,)
    assert plan.ceilings_reached(100) == (ceiling,)
    assert Plan(100, 0, (city, nation)).ceilings_reached(100) == (ceiling,)


def test_only_a_ceiling_that_lets_nothing_more_through_is_said_to_be_reached() -> None:
    roomy = voucher("roomy", "0.30", ceilings=(Ceiling("r §9", "", Fraction("0.31")),))
    assert plan_coverage(100, 0, [roomy]).ceilings_reached(100) == ()
    assert plan_coverage(100, 0, [voucher("all", "1")]).ceilings_reached(100) == ()


def test_a_programme_whose_ceiling_costs_more_than_it_brings_is_left_out() -> None:
    stingy = voucher("stingy", "0.10", burn=(1, "a"), ceilings=(Ceiling("s §1", "", Fraction("0.20")),))
    assert amounts(plan_coverage(100, 0, [stingy, voucher("b", "0.50")])) == {"b": 50}


def test_excluded_programmes_never_pay_for_the_same_charge() -> None:
    loner = voucher("loner", "0.20", burn=(1, "a"), exclusions=(Exclusion("l §5", "", "city"),))
    assert amounts(plan_coverage(100, 0, [loner, voucher("b", "0.15")])) == {"loner": 20}


def test_card_time_pays_first_and_money_shares_count_on_the_rest() -> None:
    cards = voucher("cards", "1", asset="card_ms:h", level="national", limit=25)
    plan = plan_coverage(1000, 100, [voucher("a", "0.50"), cards])
    shares = plan.shares(1000, 100)
    assert [(share.candidate.voucher, share.amount_micros, share.quantity) for share in shares] == [
        ("cards", 250, 25),
        ("a", 375, 375),
    ]
    assert plan.tenant_micros(1000) == 375


def test_card_time_is_left_out_where_it_takes_up_a_ceiling_that_money_would_use_better() -> None:
    national = {"level": "national", "ratio": "0.60"}
    cards = voucher("cards", limit=5, asset="card_ms:h", **national)
    money = voucher("money", ceilings=(Ceiling("m §9", "national", Fraction("0.60")),), **national)
    city = voucher("city", "0.60")
    assert amounts(plan_coverage(100, 5, [cards, city])) == {"cards": 60, "city": 24}
    assert amounts(plan_coverage(100, 5, [cards, money, city])) == {"city": 60, "money": 40}


def test_card_time_pays_nothing_for_usage_without_card_time() -> None:
    grant = voucher("grant", "1", 1_000, asset="card_ms:M")
    assert plan_coverage(100, 0, [grant]).candidates == ()
    assert plan_coverage(100, 1, [grant]).candidates == (grant,)


def test_a_grant_pays_for_a_single_millisecond_of_card_time() -> None:
    grant = voucher("grant", "1", 1, asset="card_ms:M")
    assert amounts(plan_coverage(100, 1, [grant])) == {"grant": 100}


def test_several_grants_of_card_time_share_the_time_and_one_programmes_ratio() -> None:
    def grant(name: str, limit: int, ratio: str = "1", programme: str = "") -> Candidate:
        return voucher(name, ratio, limit, asset="card_ms:h", programme=programme or name)

    both = plan_coverage(1000, 100, [grant("a", 60), grant("b", 60)])
    assert [(share.quantity, share.amount_micros) for share in both.shares(1000, 100)] == [(60, 600), (40, 400)]
    assert [share.quantity for share in both.shares(500, 50)] == [30, 20]
    assert [share.quantity for share in both.shares(1000, 400)] == [60, 60]
    assert [share.quantity for share in both.shares(0, 0)] == [0, 0]
    halves = [grant("a", 30, "0.5", "p"), grant("b", 60, "0.5", "p"), grant("c", 60, "0.5", "q")]
    assert amounts(plan_coverage(1000, 100, halves)) == {"a": 300, "b": 200, "c": 500}


def test_the_lines_of_a_coverage_add_up_to_its_cost_even_where_no_millisecond_is_drawn() -> None:
    half = voucher("half", "0.5", 10, asset="card_ms:M")
    division = Segment(plan_coverage(1_000, 1, [half]), (500,))
    covered = segment_coverage(division, [("prepaid", "me")], 1_000, 1, 0)
    assert [(line.amount_micros, line.quantity) for line in covered.lines] == [(500, 0), (500, 500)]


def test_ratios_that_add_up_to_one_leave_the_tenant_nothing_at_any_cost() -> None:
    pair = [voucher("city", "0.30"), voucher("district", "0.70", level="district")]
    plan = plan_coverage(1_000_003, 0, pair)
    assert all(plan.tenant_micros(cost) == 0 for cost in (1, 7, 999_999, 1_000_003))


def test_eleven_programmes_that_bind_each_other_are_refused() -> None:
    many = [voucher(f"p{n}", ceilings=(Ceiling("c", "", Fraction(1, 2)),)) for n in range(11)]
    with pytest.raises(TooManyProgrammes):
        plan_coverage(100, 0, many)


@pytest.mark.parametrize("harmless", [{"limit": 0}, {"ratio": "0"}, {"ceilings": ()}])
def test_eleven_programmes_are_weighed_where_no_ten_bind_each_other(harmless: dict[str, Any]) -> None:
    rules: dict[str, Any] = {"ratio": "0.01", "ceilings": (Ceiling("c", "", Fraction(1, 2)),)} | harmless
    eleven = [voucher(f"p{n}", **rules) for n in range(11)]
    assert amounts(plan_coverage(100, 0, [*eleven, voucher("z", "0.05")]))["z"] == 5


def test_of_two_equal_ceilings_the_one_that_burns_first_is_named() -> None:
    pair = [voucher(name, "0.50", ceilings=(Ceiling(f"{name} §9", "", Fraction(3, 5)),)) for name in "ab"]
    assert [ceiling.clause for ceiling in plan_coverage(100, 0, pair).ceilings_reached(100)] == ["a §9"]


HITS = [
    (Exclusion("§", "b", ""), "b", "city", True),
    (Exclusion("§", "b", ""), "c", "city", False),
    (Exclusion("§", "", "city"), "c", "city", True),
    (Exclusion("§", "", "city"), "c", "nation", False),
]


@pytest.mark.parametrize(("exclusion", "programme", "level", "hit"), HITS)
def test_an_exclusion_means_its_programme_or_its_level(
    exclusion: Exclusion, programme: str, level: str, *, hit: bool
) -> None:
    assert exclusion.hits(programme, level) is hit


def test_ten_programmes_that_bind_each_other_are_weighed() -> None:
    ten = [
        voucher(f"p{n}", "0.10", burn=(n, "x"), ceilings=(Ceiling("c", "", Fraction(5 + n, 20)),))
        for n in range(10)
    ]
    paid = amounts(plan_coverage(100, 0, ten))
    assert sum(paid.values()) == 50
    assert "p4" not in paid


def test_a_plan_is_the_same_after_it_was_asked() -> None:
    asked, other = (plan_coverage(100, 0, [voucher("a")]) for _ in range(2))
    asked.shares(10, 0)
    assert asked == other


def test_a_plan_survives_storage() -> None:
    stored = voucher(
        "a", ceilings=(Ceiling("c", "city", Fraction(1, 2)),), exclusions=(Exclusion("e", "x", ""),)
    )
    assert Candidate.from_json(stored.to_json()) == stored


# Costs of 20 and ratios in twentieths make every bound whole, so that brute force over whole amounts is exact.
twentieths = st.integers(1, 20).map(lambda n: Fraction(n, 20))
ceilings = st.builds(Ceiling, st.just("c"), st.sampled_from(("", *LEVELS)), twentieths)
exclusions = st.one_of(
    st.builds(Exclusion, st.just("e"), st.sampled_from("pqr"), st.just("")),
    st.builds(Exclusion, st.just("e"), st.just(""), st.sampled_from(LEVELS)),
)


@st.composite
def wallets(draw: st.DrawFn) -> list[Candidate]:
    programmes = {
        name: {
            "level": draw(st.sampled_from(LEVELS)),
            "ceilings": tuple(draw(st.lists(ceilings, max_size=2))),
            "exclusions": tuple(draw(st.lists(exclusions, max_size=1))),
        }
        for name in "pqr"
    }
    drawn = draw(st.lists(st.tuples(st.sampled_from("pqr"), twentieths, st.integers(1, 20)), max_size=3))
    return [
        voucher(f"v{n}", str(ratio), limit, programme=name, burn=(n, f"v{n}"), **programmes[name])
        for n, (name, ratio, limit) in enumerate(drawn)
    ]


def lawful(cost: int, paid: list[tuple[Candidate, int]]) -> bool:
    """The rules as sentences, one by one, on whole amounts."""
    taking_part = [candidate for candidate, amount in paid if amount > 0]
    if sum(amount for _, amount in paid) > cost:
        return False
    for candidate, amount in paid:
        together = sum(
            other_amount
            for other, other_amount in paid
            if other.programme == candidate.programme and other.ratio <= candidate.ratio
        )
        if amount > candidate.limit or together > candidate.ratio * cost:
            return False
    for candidate in taking_part:
        if any(candidate.excludes(other) for other in taking_part):
            return False
        for ceiling in candidate.ceilings:
            public = sum(amount for other, amount in paid if ceiling.level in {"", other.level})
            if public > ceiling.ratio * cost:
                return False
    return True


@settings(max_examples=200, deadline=None)
@given(wallets())
def test_no_lawful_split_is_cheaper_for_the_tenant(candidates: list[Candidate]) -> None:
    cost = 20
    plan = plan_coverage(cost, 0, candidates)
    chosen = amounts(plan)
    mine = [(candidate, chosen.get(candidate.voucher, 0)) for candidate in candidates]
    assert lawful(cost, mine)
    best = max(
        sum(split)
        for split in product(*(range(min(cost, candidate.limit) + 1) for candidate in candidates))
        if lawful(cost, list(zip(candidates, split, strict=True)))
    )
    assert cost - plan.tenant_micros(cost) == sum(chosen.values()) == best


# With card time a money share counts on what card time leaves: costs of 25, five milliseconds and ratios in fifths keep
# every bound whole.
FIFTHS, SIDE, COST = st.integers(1, 5).map(lambda n: Fraction(n, 5)), 5, 25


@st.composite
def wallets_with_card_time(draw: st.DrawFn) -> list[Candidate]:
    """Vouchers of up to three programmes, the first of which counts card time and the others either."""
    ceiling = st.builds(Ceiling, st.just("c"), st.sampled_from(("", *LEVELS)), FIFTHS)
    programmes = {
        name: {
            "level": draw(st.sampled_from(LEVELS)),
            "ceilings": tuple(draw(st.lists(ceiling, max_size=2))),
            "exclusions": tuple(draw(st.lists(exclusions, max_size=1))),
            "asset": "card_ms:h" if name == "p" else draw(st.sampled_from((CNY, "card_ms:h"))),
        }
        for name in "pqr"
    }
    names = ["p", *draw(st.lists(st.sampled_from("pqr"), max_size=2))]
    return [
        voucher(
            f"v{n}",
            str(draw(FIFTHS)),
            draw(st.integers(1, COST if programmes[name]["asset"] == CNY else SIDE)),
            programme=name,
            burn=(n, f"v{n}"),
            **programmes[name],
        )
        for n, name in enumerate(names)
    ]


def lawful_with_card_time(paid: list[tuple[Candidate, int]]) -> bool:
    """The same rules; card time is worth its part of the cost and pays first, and money counts on what it leaves."""
    timed = [(candidate, amount) for candidate, amount in paid if candidate.asset != CNY]
    money = [(candidate, amount) for candidate, amount in paid if candidate.asset == CNY]
    left = COST - sum(amount for _, amount in timed)
    worth = [
        (replace(candidate, asset=CNY, limit=candidate.limit * COST // SIDE), amount)
        for candidate, amount in timed
    ]
    within = lawful(
        COST, [*worth, *((replace(candidate, ratio=Fraction(1)), amount) for candidate, amount in money)]
    )
    return within and all(
        sum(amount for other, amount in money if other.programme == one.programme and other.ratio <= one.ratio)
        <= one.ratio * left
        for one, _ in money
    )


def draws_first(paid: list[tuple[Candidate, int]]) -> bool:
    """Whether no programme that draws card time could draw more under everybody's ceilings, had no money paid yet."""
    ceilings = tuple(ceiling for candidate, amount in paid if amount for ceiling in candidate.ceilings)
    before = [(candidate, 0 if candidate.asset == CNY else amount) for candidate, amount in paid]
    taking_part = {candidate.programme for candidate, amount in before if amount}
    return not any(
        lawful_with_card_time(
            [*before[:n], (replace(candidate, ceilings=ceilings), amount + SIDE), *before[n + 1 :]]
        )
        for n, (candidate, amount) in enumerate(before)
        if candidate.programme in taking_part
    )


@settings(max_examples=200, deadline=None)
@given(wallets_with_card_time())
def test_no_lawful_split_is_cheaper_for_the_tenant_where_vouchers_give_card_time(
    candidates: list[Candidate],
) -> None:
    plan = plan_coverage(COST, SIDE, candidates)
    chosen = amounts(plan)
    mine = [(candidate, chosen.get(candidate.voucher, 0)) for candidate in candidates]
    assert lawful_with_card_time(mine)
    assert draws_first(mine)
    steps = [
        range(candidate.limit + 1) if candidate.asset == CNY else range(0, candidate.limit * SIDE + 1, SIDE)
        for candidate in candidates
    ]
    splits = (list(zip(candidates, split, strict=True)) for split in product(*steps))
    best = max(
        sum(amount for _, amount in split)
        for split in splits
        if lawful_with_card_time(split) and draws_first(split)
    )
    assert COST - plan.tenant_micros(COST) == sum(chosen.values()) == best


@settings(max_examples=150, deadline=None)
@given(wallets(), st.integers(1, 10**7), st.lists(st.integers(0, 10**7), max_size=6), st.integers(0, 10**6))
def test_every_part_of_a_hold_can_be_captured_from_it(
    candidates: list[Candidate], cost: int, stops: list[int], time_limit: int
) -> None:
    cards = voucher("cards", "1", asset="card_ms:h", level="national", limit=time_limit)
    scaled = [
        Candidate(**(vars(candidate) | {"limit": candidate.limit * cost // 20})) for candidate in candidates
    ]
    plan = plan_coverage(cost, cost // 3, [*scaled, cards])
    previous = [0] * len(plan.candidates)
    tenant = 0
    for stop in sorted({min(stop, cost) for stop in stops} | {cost}):
        shares = plan.shares(stop, stop // 3)
        now = [share.quantity for share in shares]
        assert all(after >= before for before, after in zip(previous, now, strict=True))
        assert all(share.quantity <= share.candidate.limit for share in shares)
        assert plan.tenant_micros(stop) >= tenant
        dust = stop - plan.tenant_micros(stop) - sum(share.amount_micros for share in shares)
        assert 0 <= dust <= max(len(shares) - 1, 0)
        previous, tenant = now, plan.tenant_micros(stop)
