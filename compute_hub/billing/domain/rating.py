"""Rating as arithmetic: what card time costs, cut where its price changes, rounded so that parts add up to the whole.

Usage is counted in slot-milliseconds: 1000 slots are one card, so a card-hour is 3 600 000 000 slot-ms. Exact costs are
counted in units of micro-yuan × slot-ms ÷ card-hour, whole numbers of any size; only a job's running total is rounded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from compute_hub.billing.domain.days import Span, instant_ms, local_date
from compute_hub.billing.domain.rate_cards import SLOT_MS_PER_CARD_HOUR, WHOLE_MILLI, RateCard, Step, Traits
from compute_hub.billing.domain.timelines import Tariff


@dataclass(frozen=True, slots=True)
class Usage:
    """A stretch of usage of so many slots all the time."""

    span: Span
    slot_ms: int


@dataclass(frozen=True, slots=True)
class Priced:
    """Usage at one price. `window` names the time of day that made it, `from_slot_ms` the volume step."""

    rate_id: UUID
    window: str
    from_slot_ms: int
    price_micros: int
    slot_ms: int

    @property
    def units(self) -> int:
        """Its exact cost."""
        return self.slot_ms * self.price_micros


def cost_micros(units: int) -> int:
    """An exact cost in micro-yuan, rounded half up."""
    return (2 * units + SLOT_MS_PER_CARD_HOUR) // (2 * SLOT_MS_PER_CARD_HOUR)


def next_charge_micros(units_before: int, units_more: int) -> int:
    """What further usage adds to a job's bill: cost(before + more) − cost(before), so that charges telescope."""
    return cost_micros(units_before + units_more) - cost_micros(units_before)


def share_out(units_before: int, pieces: Sequence[Priced]) -> list[int]:
    """What each piece adds to the bill, in order; together exactly what all of them add at once."""
    shares = []
    for piece in pieces:
        shares.append(next_charge_micros(units_before, piece.units))
        units_before += piece.units
    return shares


def hold_micros(slot_ms: int, micros_per_card_hour: int) -> int:
    """What to hold for some usage ahead: its cost rounded up, so that no cut of it can cost more."""
    return -(-slot_ms * micros_per_card_hour // SLOT_MS_PER_CARD_HOUR) + 1


def rate(
    usage: Iterable[Usage], tariff: Tariff, traits: Traits, admitted_ms: int, volume_before: int
) -> list[Priced] | None:
    """Price usage, cut where its card, its time of day or the tenant's volume step changes.

    Args:
        usage: in any order.
        tariff: the cards that may hold.
        traits: the job's.
        admitted_ms: when the job was first admitted, which settles its cards.
        volume_before: slot-milliseconds of the model that the tenant has used in the month before this.

    Returns:
        One entry per price, in order of their first occurrence; None where no card holds.
    """
    found: dict[tuple[UUID, str, int, int], int] = {}
    volume = volume_before
    for stretch in usage:
        if stretch.slot_ms == 0:
            continue
        cards = tariff.for_job(admitted_ms, stretch.span)
        if not cards:
            return None
        width = stretch.slot_ms // stretch.span.duration_ms
        for span, dated in cards:
            for part, window, factor in by_time_of_day(dated.card, span):
                for slot_ms, step in by_volume(dated.card.volume, volume, part.duration_ms * width):
                    price = dated.card.price_micros(traits, factor, step.factor_milli)
                    key = (dated.rate_id, window, step.threshold, price)
                    found[key] = found.get(key, 0) + slot_ms
                volume += part.duration_ms * width
    return [Priced(*key, slot_ms) for key, slot_ms in found.items()]


def dearest_micros(tariff: Tariff, traits: Traits, admitted_ms: int, span: Span) -> int | None:
    """The highest price a card-hour may have within a span, whatever the volume; None where no card holds."""
    cards = tariff.for_job(admitted_ms, span)
    prices = [
        dated.card.price_micros(traits, factor, dated.card.dearest_volume_milli())
        for part, dated in cards
        for _, _, factor in by_time_of_day(dated.card, part)
    ]
    return max(prices, default=None)


def by_time_of_day(card: RateCard, span: Span) -> Iterator[tuple[Span, str, int]]:
    """A span cut at the borders of the card's windows, with each part's window and factor."""
    if not card.windows:
        yield span, "", WHOLE_MILLI
        return
    day = local_date(span.start_ms)
    reached = span.start_ms
    while reached < span.end_ms:
        for window in card.windows:
            if not window.holds_on(day, card.calendar):
                continue
            start = max(reached, instant_ms(day, window.from_minute))
            end = min(span.end_ms, instant_ms(day, window.until_minute))
            if start < end:
                yield Span(start, end), window.label, window.factor_milli
                reached = end
        day += timedelta(days=1)


def by_volume(steps: Sequence[Step], before: int, slot_ms: int) -> Iterator[tuple[int, Step]]:
    """Usage cut at the volume steps it passes, with each part's step."""
    if not steps:
        yield slot_ms, Step(0, WHOLE_MILLI)
        return
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        start = max(before, step.threshold)
        end = before + slot_ms if following is None else min(before + slot_ms, following.threshold)
        if start < end:
            yield end - start, step
