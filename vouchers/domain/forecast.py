"""How much of a voucher will probably lapse unused, at the pace at which it was used so far."""

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Forecast:
    """What remains, what will probably still be used in time, and what will then lapse."""

    remaining: int
    used_by_then: int
    lapsing: int


def forecast(
    *, face: int, captured: int, remaining: int, issued_at: datetime, use_by_at: datetime, at: datetime
) -> Forecast:
    """Project the mean use since issue to the last usage the voucher pays for; a new one has no pace yet.

    Amounts are in the smallest unit of the voucher's asset.
    """
    elapsed = (at - issued_at) // timedelta(seconds=1)
    left = max((use_by_at - at) // timedelta(seconds=1), 0)
    projected = captured * left // elapsed if elapsed > 0 else 0
    used = min(projected, remaining, face)
    return Forecast(remaining, used, remaining - used)
