"""Which job of a queue goes first: each gets a latest turn when it arrives; the earliest turn goes first.

    turn = submitted + horizon × √min(1, size / large)

`size` is the predicted duration × √devices (a gang waits for its nodes as well as for its turn, so its width
counts less than its length), `large` is six mean sizes, and `horizon` is the queue's `max_wait` or, without
one, 25 mean predicted durations. So small jobs are ordered nearly by size as in shortest-service-first, the
large ones nearly by arrival. Small jobs, far below the mean size, go before the others in any case; a job that is
overdue (`congestion`) goes before them, too. The rule has no unit of time of its own: a trace played ten times
faster gives the same order.
"""

from math import isqrt
from typing import Final

HORIZON_IN_MEAN_DURATIONS: Final = 25
LARGE_IN_MEAN_SIZES: Final = 6
SMALL_PERCENT_OF_MEAN_SIZE: Final = 30
"""Where sizes have heavy tails, four in five jobs are smaller, and together they are a twentieth of the work."""
_ROOT_SHIFT: Final = 20


class Sizes:
    """Mean predicted duration and mean size of the jobs seen so far."""

    __slots__ = ("_durations_ms", "_seen", "_sizes")

    def __init__(self) -> None:
        self._seen = 0
        self._durations_ms = 0
        self._sizes = 0

    def turn_of(
        self, submitted_ms: int, devices_milli: int, predicted_ms: int, max_wait_ms: int | None
    ) -> tuple[int, bool]:
        """Count the job; its latest turn, and whether it is small."""
        size = predicted_ms * isqrt(devices_milli or 1)
        self._seen += 1
        self._durations_ms += predicted_ms
        self._sizes += size
        if max_wait_ms is None:
            max_wait_ms = HORIZON_IN_MEAN_DURATIONS * self._durations_ms // self._seen
        large = max(1, LARGE_IN_MEAN_SIZES * self._sizes // self._seen)
        if size >= large:
            return submitted_ms + max_wait_ms, False
        after_ms = max_wait_ms * isqrt((size << 2 * _ROOT_SHIFT) // large) >> _ROOT_SHIFT
        return submitted_ms + after_ms, size * self._seen * 100 < SMALL_PERCENT_OF_MEAN_SIZE * self._sizes
