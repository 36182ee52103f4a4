"""What one controller remembers of the nodes it syncs: who answers, and until when a lease could still hold.

Only CLOCK_BOOTTIME decides here. Invariant: a node is given up only when no lease this controller or the one before
could have renewed is left, and the supervisor had its time to end its runs; until then "unknown" is a state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scheduler.node.protocol import Report, RunSpec, RunState, SyncRequest

STOP_MARGIN_MS: Final = 5000
"""After a lease lapsed: the grace of a lapsed run (2 s) and the supervisor's dead man's margin (3 s)."""


@dataclass
class _Node:
    asked_boot_ms: int
    """When a lease was last renewed for certain or perhaps: the last request that was answered, or the first since."""
    answering: bool = False
    """Whether it answered this controller, and its last request."""
    doubtful_until_boot_ms: int = 0
    """Until then a request that was never answered may still arrive there."""
    known: bool = False
    acknowledged_usage: tuple[str, ...] = ()
    acknowledged_exits: tuple[str, ...] = ()
    described: Report | None = None


class Nodes:
    """The nodes of one term of leadership; all of it may be lost.

    Args:
        lease_ms: for how long a node may go on without an answer from its controller.
        began_boot_ms: when the term began; the controller before may have renewed leases until then.
    """

    def __init__(self, lease_ms: int, began_boot_ms: int) -> None:
        self._lease_ms = lease_ms
        self._began_boot_ms = began_boot_ms
        self._nodes: dict[str, _Node] = {}

    def answering(self) -> frozenset[str]:
        """Nodes whose last request was answered; only they may be given new jobs."""
        return frozenset(name for name, node in self._nodes.items() if node.answering)

    def request(self, name: str, epoch: int, desired: Sequence[RunSpec], now_ms: int) -> SyncRequest | None:
        """What to ask of a node, or None while its leases are left to lapse.

        A node that did not answer is asked again, but no lease goes beyond that of the first unanswered request:
        so the time after which it is given up does not move.
        """
        node = self._node(name)
        lease_ms = self._lease_ms
        if node.known and not node.answering:
            lease_ms -= now_ms - node.asked_boot_ms
            node.doubtful_until_boot_ms = now_ms + self._lease_ms
        if lease_ms <= 0:
            return None
        if node.answering or not node.known:
            node.asked_boot_ms = now_ms
        node.known, node.answering = True, False
        return SyncRequest(epoch, lease_ms, tuple(desired), node.acknowledged_usage, node.acknowledged_exits)

    def answered(self, name: str, report: Report) -> None:
        """Its report is safe in the database and need not be repeated."""
        node = self._node(name)
        node.answering = True
        node.acknowledged_usage = tuple(record.id for record in report.usage)
        node.acknowledged_exits = tuple(run.run_id for run in report.runs if run.state is RunState.ENDED)
        node.described = description(report)

    def certain(self, name: str, now_ms: int) -> bool:
        """Whether no earlier request can still be on its way to the node, so that what it reports stays so."""
        return now_ms >= self._node(name).doubtful_until_boot_ms

    def describes(self, name: str, report: Report) -> bool:
        """Whether the node says something new of itself."""
        return self._node(name).described != description(report)

    def lost(self, names: Iterable[str], now_ms: int) -> list[str]:
        """Of these nodes, those on which every lease has lapsed for certain."""
        patience_ms = self._lease_ms + STOP_MARGIN_MS
        return [name for name in sorted(names) if now_ms - self._node(name).asked_boot_ms > patience_ms]

    def forget(self, name: str) -> None:
        """The node was given up; it is asked anew, as one that was never heard of."""
        self._nodes.pop(name, None)

    def _node(self, name: str) -> _Node:
        return self._nodes.setdefault(name, _Node(asked_boot_ms=self._began_boot_ms))


def description(report: Report) -> Report:
    """The part of a report that describes the node rather than what happens on it."""
    return replace(report, runs=(), usage=(), usage_pending=0, refused=(), seq=0, epoch_seen=0)
