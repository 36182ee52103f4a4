"""Rating as arithmetic: what card time costs, rounded so that the parts always add up to the whole.

Usage is counted in slot-milliseconds: 1000 slots are one card, so a card-hour is 3 600 000 000 slot-ms.
"""

from typing import Final

SLOT_MS_PER_CARD_HOUR: Final = 1000 * 3_600_000


def cost_micros(slot_ms: int, micros_per_card_hour: int) -> int:
    """The cost of some usage in micro-yuan, rounded half up."""
    return (2 * slot_ms * micros_per_card_hour + SLOT_MS_PER_CARD_HOUR) // (2 * SLOT_MS_PER_CARD_HOUR)


def next_charge_micros(slot_ms_before: int, slot_ms_more: int, micros_per_card_hour: int) -> int:
    """What further usage of one job at one rate adds to its bill.

    Rated cumulatively: cost(before + more) − cost(before), so the charges of a job telescope to the cost of
    its whole usage however it was cut into records.
    """
    after = cost_micros(slot_ms_before + slot_ms_more, micros_per_card_hour)
    return after - cost_micros(slot_ms_before, micros_per_card_hour)


def hold_micros(slot_ms: int, micros_per_card_hour: int) -> int:
    """What to hold for some usage ahead: its cost rounded up, so that no cut of it can cost more."""
    return -(-slot_ms * micros_per_card_hour // SLOT_MS_PER_CARD_HOUR) + 1
