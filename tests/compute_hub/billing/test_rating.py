"""Rating against an oracle that looks at every single millisecond and adds up fractions."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_hub.billing.domain.days import Span
from compute_hub.billing.domain.rate_cards import SLOT_MS_PER_CARD_HOUR, RateCard, RateCardRefused, Traits
from compute_hub.billing.domain.rating import (
    Usage,
    cost_micros,
    dearest_micros,
    hold_micros,
    next_charge_micros,
    rate,
    share_out,
)
from compute_hub.billing.domain.timelines import Dated, Neighbour, Tariff, misfit

BEFORE_MS = 40
DAYS = {  # days that a card's calendar moves: a holiday begins, the weekend after it, a Sunday that is worked, Monday
    day: int(datetime(2026, 3, day, tzinfo=ZoneInfo("Asia/Shanghai")).timestamp() * 1000) - BEFORE_MS
    for day in (6, 7, 8, 9)
}
START_MS = DAYS[8]
CARD: dict[str, Any] = {
    "price_cny_per_card_hour": "12.345678",
    "kinds": {"distributed": "1.1"},
    "time_of_day": [
        {"days": "workdays", "from": "00:00", "until": "08:00", "factor": "0.6"},
        {"days": "workdays", "from": "08:00", "until": "24:00", "factor": "1.25"},
        {"days": "weekends", "from": "00:00", "until": "24:00", "factor": "0.5"},
    ],
    "calendar": {"holidays": ["2026-03-06"], "workdays": ["2026-03-08"]},
    "priority": [{"at_least": 0, "factor": "1"}, {"at_least": 10, "factor": "1.5"}],
    "fraction": [{"up_to_slots_milli": 250, "factor": "1.3"}, {"up_to_slots_milli": 1000, "factor": "1"}],
    "volume": [{"from_card_hours": 0, "factor": "1"}, {"from_card_hours": 100, "factor": "0.9"}],
    "pflops": {"precision": "fp16", "per_card": "0.256"},
}
OTHER = CARD | {"price_cny_per_card_hour": "99.999999", "volume": [{"from_card_hours": 0, "factor": "0.333"}]}

PIECES = st.lists(st.integers(0, 10**22), max_size=30)
PRICES = st.integers(1, 10**12)
USAGE = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=3)
TRAITS = st.builds(Traits, st.sampled_from(["batch", "distributed"]), st.integers(-5, 20), st.integers(1, 1000))
OFFSETS = st.none() | st.integers(0, 90)


def dated(number: int, document: dict[str, Any], from_ms: int, **more: Any) -> Dated:  # noqa: ANN401 - any field
    return Dated(UUID(int=number), RateCard.from_json(document), from_ms, **more)


def oracle_factor(document: dict[str, Any], traits: Traits, at_ms: int, volume: int) -> Fraction:
    """The price of a card-hour at one millisecond, read from the document as a person would."""
    local = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo("Asia/Shanghai"))
    calendar, day = document["calendar"], local.date().isoformat()
    off = day in calendar["holidays"] or (local.weekday() >= 5 and day not in calendar["workdays"])
    days = "weekends" if off else "workdays"
    minute = f"{local:%H:%M}"
    (window,) = [w for w in document["time_of_day"] if w["days"] == days and w["from"] <= minute < w["until"]]
    factors = [
        document["kinds"].get(traits.kind, "1"),
        next((s["factor"] for s in reversed(document["priority"]) if s["at_least"] <= traits.priority), "1"),
        next(s["factor"] for s in document["fraction"] if traits.slots_milli <= s["up_to_slots_milli"]),
        window["factor"],
        next(
            s["factor"]
            for s in reversed(document["volume"])
            if s["from_card_hours"] * SLOT_MS_PER_CARD_HOUR <= volume
        ),
    ]
    exact = Fraction(document["price_cny_per_card_hour"]) * 1_000_000
    for factor in factors:
        exact *= Fraction(factor)
    return Fraction(int(exact + Fraction(1, 2)))


@given(USAGE, TRAITS, OFFSETS, OFFSETS, st.integers(0, 150), st.sampled_from(sorted(DAYS)))
@settings(deadline=None, max_examples=50)
def test_every_millisecond_costs_what_the_documents_say_across_days_cards_and_volume_steps(
    stretches: list[tuple[int, int, int]],
    traits: Traits,
    public_ms: int | None,
    own_ms: int | None,
    short: int,
    day: int,
) -> None:
    start_ms = DAYS[day]
    cards = [(CARD, start_ms - 1000)]
    public, own = [dated(1, CARD, start_ms - 1000)], []
    if public_ms is not None:
        public.append(dated(2, OTHER, start_ms + public_ms, changes_running=True))
        cards.append((OTHER, start_ms + public_ms))
    if (
        own_ms is not None
    ):  # an agreement that comes later than the job is not its card: nobody said it changes jobs
        own.append(dated(3, OTHER, start_ms + own_ms))
    volume = 100 * SLOT_MS_PER_CARD_HOUR - short
    usage = [
        Usage(Span(start_ms + start, start_ms + start + length), length * width)
        for start, length, width in stretches
    ]
    pieces = rate(usage, Tariff(tuple(public), tuple(own)), traits, start_ms - 1, volume)
    assert pieces is not None
    exact = Fraction(0)
    for one in usage:
        width = one.slot_ms // one.span.duration_ms
        for at_ms in range(one.span.start_ms, one.span.end_ms):
            settled = max(begins for _, begins in cards if begins <= at_ms)
            document = [card for card, begins in cards if begins == settled][-1]
            if own and settled >= own[0].from_ms:
                document = OTHER
            for _ in range(width):
                exact += oracle_factor(document, traits, at_ms, volume)
                volume += 1
    assert sum(piece.units for piece in pieces) == exact
    assert sum(piece.slot_ms for piece in pieces) == sum(one.slot_ms for one in usage)
    span = Span(min(one.span.start_ms for one in usage), max(one.span.end_ms for one in usage))
    dearest = dearest_micros(Tariff(tuple(public), tuple(own)), traits, start_ms - 1, span)
    assert dearest is not None
    assert all(piece.price_micros <= dearest for piece in pieces)


@given(PIECES)
def test_charges_add_up_to_the_cost_of_the_whole_however_usage_is_cut(pieces: list[int]) -> None:
    before, total = 0, 0
    for piece in pieces:
        charge = next_charge_micros(before, piece)
        assert charge >= 0
        before, total = before + piece, total + charge
    assert total == cost_micros(sum(pieces))


@given(USAGE, st.integers(0, 10**20))
def test_the_lines_of_a_charge_add_up_to_it(stretches: list[tuple[int, int, int]], before: int) -> None:
    usage = [
        Usage(Span(START_MS + start, START_MS + start + length), length * width)
        for start, length, width in stretches
    ]
    pieces = rate(usage, Tariff((dated(1, CARD, 0),)), Traits(), 1, 0)
    assert pieces is not None
    assert sum(share_out(before, pieces)) == next_charge_micros(before, sum(piece.units for piece in pieces))


@given(st.lists(st.integers(0, 10**12), max_size=30), PRICES)
def test_holds_taken_in_pieces_cover_what_the_whole_costs(pieces: list[int], price: int) -> None:
    assert sum(hold_micros(piece, price) for piece in pieces) >= cost_micros(sum(pieces) * price)


def test_a_card_reads_back_as_it_was_written() -> None:
    card = RateCard.from_json(CARD)
    assert RateCard.from_json(card.to_json()) == card
    assert card.pflops_hours_micro(SLOT_MS_PER_CARD_HOUR * 10) == 2_560_000


def windows(*bounds: str) -> dict[str, Any]:
    return {
        "time_of_day": [{"from": a, "until": b, "factor": "1"} for a, b in (pair.split("-") for pair in bounds)]
    }


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"price_cny_per_card_hour": "0"}, "price_cny_per_card_hour"),
        ({"price_cny_per_card_hour": 3}, "price_cny_per_card_hour"),
        ({"price_cny_per_card_hour": "1000000.01"}, "price_cny_per_card_hour"),
        ({"price_cny_per_card_hour": "0.000001", "kinds": {"x": "0.1"}}, "price_cny_per_card_hour"),
        ({"kinds": {"x": "100"}, "price_cny_per_card_hour": "10000"}, "price_cny_per_card_hour"),
        ({"discount": "0.5"}, "discount"),
        ({"kinds": {"batch": "-1"}}, "kinds.batch"),
        ({"kinds": {"batch": "0"}}, "kinds.batch"),
        ({"kinds": []}, "kinds"),
        (windows("00:00-12:00", "11:00-24:00"), "time_of_day[1].from"),
        (windows("00:00-12:00", "13:00-24:00"), "time_of_day[1].from"),
        (windows("00:00-23:00"), "time_of_day"),
        (windows("22:00-08:00"), "time_of_day[0].until"),
        (windows("8:00-24:00"), "time_of_day[0].from"),
        (
            {"time_of_day": [{"days": "holidays", "from": "00:00", "until": "24:00", "factor": "1"}]},
            "time_of_day[0].days",
        ),
        ({"time_of_day": []}, "time_of_day"),
        ({"calendar": {"holidays": ["2026-10-01"], "workdays": ["2026-10-01"]}}, "calendar.workdays"),
        ({"calendar": {"holidays": ["2026-02-30"]}}, "calendar.holidays[0]"),
        ({"calendar": {"holidays": ["2026-10-01", "2026-10-01"]}}, "calendar.holidays[1]"),
        ({"calendar": {"holidays": ["1 October"]}}, "calendar.holidays[0]"),
        ({"calendar": {"holidays": []}}, "calendar.holidays"),
        ({"calendar": {"weekends": ["2026-10-01"]}}, "calendar.weekends"),
        ({"calendar": []}, "calendar"),
        (
            {"priority": [{"at_least": 5, "factor": "1"}, {"at_least": 5, "factor": "2"}]},
            "priority[1].at_least",
        ),
        ({"fraction": [{"up_to_slots_milli": 500, "factor": "1"}]}, "fraction"),
        ({"fraction": [{"up_to_slots_milli": 0, "factor": "1"}]}, "fraction[0].up_to_slots_milli"),
        ({"volume": [{"from_card_hours": 10, "factor": "1"}]}, "volume[0].from_card_hours"),
        ({"volume": [{"from_card_hours": True, "factor": "1"}]}, "volume[0].from_card_hours"),
        ({"pflops": {"precision": "fp12", "per_card": "1"}}, "pflops.precision"),
        ({"pflops": {"precision": "fp16", "per_card": "0"}}, "pflops.per_card"),
    ],
)
def test_a_card_that_contradicts_itself_or_leaves_a_gap_is_refused_by_the_name_of_its_field(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(RateCardRefused) as refused:
        RateCard.from_json(CARD | change)
    assert refused.value.facts["field"] == field


@pytest.mark.parametrize(
    ("new", "others", "gaps_allowed", "expected"),
    [
        ((10, None), [], False, None),
        ((10, None), [(5, None)], False, None),
        ((10, 20), [(5, None), (20, None)], False, None),
        ((10, 20), [(5, 11)], False, "overlap"),
        ((10, 20), [(19, None)], False, "overlap"),
        ((10, 20), [(5, 9)], False, "gap"),
        ((10, 20), [(21, None)], False, "gap"),
        ((10, 20), [(5, 9), (21, None)], True, None),
    ],
)
def test_cards_may_follow_each_other_but_neither_overlap_nor_leave_a_gap(
    new: tuple[int, int | None],
    others: list[tuple[int, int | None]],
    *,
    gaps_allowed: bool,
    expected: str | None,
) -> None:
    found = misfit(Neighbour(*new), [Neighbour(*one) for one in others], gaps_allowed=gaps_allowed)
    assert (found and found[0]) == expected


def test_an_agreement_goes_before_the_public_card_while_it_lasts_and_a_job_keeps_what_it_was_admitted_under() -> (
    None
):
    public, own = dated(1, CARD, 0), dated(2, OTHER, 100, until_ms=200)
    tariff = Tariff((public,), (own,))
    for admitted, expected in ((99, public), (100, own), (199, own), (200, public)):
        ((_, card),) = tariff.for_job(admitted, Span(150, 150 + timedelta(days=1).days))
        assert card == expected
    assert Tariff((own,)).for_job(50, Span(60, 70)) == []
