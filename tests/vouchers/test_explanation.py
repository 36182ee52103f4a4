"""A coverage in words states a programme's ratio as the programme does, whatever was rounded."""

from fractions import Fraction

import pytest

from tests.vouchers.test_restoration import lot
from vouchers.domain.coverage import Plan, plan_coverage
from vouchers.domain.explanation import Line, percent_of, voucher_line, yuan


def said(plan: Plan, cost: int, which: int = 0) -> Line:
    share = plan.shares(cost, 0)[which]
    amount, quantity = share.amount_micros, share.quantity
    return voucher_line(plan, share, share.exact, cost, amount=amount, quantity=quantity)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        ("0.3", "30 %"),
        ("1", "100 %"),
        ("0", "0 %"),
        ("0.125", "12.5 %"),
        ("0.333333", "33.3333 %"),
        ("0.000001", "0.0001 %"),
        ("1/3", "33.33 %"),
        ("2/3", "66.66 %"),
    ],
)
def test_a_ratio_with_six_places_is_told_exactly_and_any_other_rounded_down(ratio: str, words: str) -> None:
    assert percent_of(Fraction(ratio)) == words


@pytest.mark.parametrize("cost", [1, 3, 7, 3_333_333, 6_250_001])
def test_rounding_down_does_not_change_the_ratio_that_is_told(cost: int) -> None:
    plan = plan_coverage(cost, 0, [lot(1, Fraction(3, 10), 10**9)])
    line = said(plan, cost)
    assert line.amount_micros == cost * 3 // 10
    assert line.sentence.startswith("city voucher 1 pays 30 % (§), ")


def test_a_voucher_that_ends_before_its_ratio_says_both() -> None:
    plan = plan_coverage(1_000, 0, [lot(1, Fraction(3, 10), 100)])
    assert said(plan, 1_000).sentence == (
        "city voucher 1 pays 10 % (up to 30 %, §), bound by: nothing more remains on it, ¥0.000100"
    )


@pytest.mark.parametrize(
    ("micros", "words"),
    [(1_000_000, "¥1.00"), (10_000, "¥0.01"), (9_999, "¥0.009999"), (1_230_001, "¥1.230001")],
)
def test_an_amount_hides_no_millionth(micros: int, words: str) -> None:
    assert yuan(micros) == words
