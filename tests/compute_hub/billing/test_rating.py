from hypothesis import given
from hypothesis import strategies as st

from compute_hub.billing.rating import cost_micros, hold_micros, next_charge_micros

PIECES = st.lists(st.integers(0, 10**12), max_size=30)
PRICES = st.integers(1, 10**12)


@given(PIECES, PRICES)
def test_charges_add_up_to_the_cost_of_the_whole_however_usage_is_cut(pieces: list[int], price: int) -> None:
    before, total = 0, 0
    for piece in pieces:
        charge = next_charge_micros(before, piece, price)
        assert charge >= 0
        before, total = before + piece, total + charge
    assert total == cost_micros(sum(pieces), price)


@given(PIECES, PRICES)
def test_holds_taken_in_pieces_cover_what_the_whole_costs(pieces: list[int], price: int) -> None:
    assert sum(hold_micros(piece, price) for piece in pieces) >= cost_micros(sum(pieces), price)
