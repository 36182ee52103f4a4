import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.money import MICROS_MAX, MalformedAmount, format_yuan, parse_yuan


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("0", 0),
        ("1", 1_000_000),
        ("0.000001", 1),
        ("1250.50", 1_250_500_000),
        ("9007199254.740992", MICROS_MAX),
    ],
)
def test_decimal_yuan_becomes_micros(text: str, micros: int) -> None:
    assert parse_yuan(text) == micros


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "1.", ".5", "1.0000001", "01", "1e3", "NaN", "１", "1,000", " 1", "9007199254.740993"],
)
def test_anything_else_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(MalformedAmount) as refusal:
        parse_yuan(text, field="face")
    assert refusal.value.code == "malformed_amount"
    assert repr(text) in str(refusal.value)
    assert "face" in str(refusal.value)


@given(st.integers(min_value=0, max_value=MICROS_MAX))
def test_formatting_and_parsing_are_inverse(micros: int) -> None:
    assert parse_yuan(format_yuan(micros)) == micros
