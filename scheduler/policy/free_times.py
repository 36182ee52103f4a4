"""When the nodes of a pool will certainly have so many devices free, kept in order between two questions.

Invariant: after `rows` every open node with so many healthy devices is in exactly one row, at its present time;
only nodes that changed since the last question are worked out again.
"""

from bisect import bisect_left, insort
from typing import Protocol


class Occupied(Protocol):
    """What must be known of a node."""

    bit: int
    opened: bool

    def device_times(self) -> tuple[int, ...]:
        """When each healthy device is wholly free, soonest first."""


class FreeTimes:
    """One pool's nodes, those first that soonest have `devices` devices free."""

    def __init__(self, devices: int) -> None:
        self._last = devices - 1
        self._rows: list[tuple[int, int]] = []
        self._row_of: dict[int, tuple[int, int]] = {}
        self.changed: dict[int, Occupied] = {}
        """Nodes that changed since the last question, by their bit."""

    def rows(self) -> list[tuple[int, int]]:
        """(when, the node's bit), soonest first. The list is not the caller's to change."""
        rows, row_of, last = self._rows, self._row_of, self._last
        for bit, state in self.changed.items():
            before, row = row_of.pop(bit, None), None
            if state.opened:
                times = state.device_times()
                if len(times) > last:
                    row = row_of[bit] = (times[last] if last >= 0 else 0, bit)
            if row != before:
                if before is not None:
                    del rows[bisect_left(rows, before)]
                if row is not None:
                    insort(rows, row)
        self.changed.clear()
        return rows
