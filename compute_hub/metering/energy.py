"""What a job's cards drew, where no sensor says it: the model's declared power, as far as the cards were busy.

Invariant: an estimate is always marked as one; nothing is billed by it.
"""

from dataclasses import dataclass

_SLOTS_PER_CARD = 1000

MEASURED = "measured"
ESTIMATED = "estimated"


@dataclass(frozen=True)
class Draw:
    """The declared power of one card, in watts, with nothing on it and at full work."""

    idle_watts: int
    peak_watts: int


def estimated_energy_mj(slot_ms: int, busy_ms: int, draw: Draw) -> int:
    """Millijoules of a stretch of card time: idle power for what was idle, peak power for what was busy.

    Args:
        slot_ms: slots times milliseconds; 1000 slots are a card.
        busy_ms: card milliseconds with work on them; at most all count.
        draw: of the model.
    """
    busy_slot_ms = min(busy_ms * _SLOTS_PER_CARD, slot_ms)
    idle_slot_ms = slot_ms - busy_slot_ms
    # A watt for a millisecond is a millijoule.
    return (busy_slot_ms * draw.peak_watts + idle_slot_ms * draw.idle_watts) // _SLOTS_PER_CARD
