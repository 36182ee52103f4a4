"""What one controller remembers of the nodes it syncs: who answers, and until when a lease could still hold.

Only CLOCK_BOOTTIME decides here. Invariant: a node is given up only when no lease this controller or the one before
could have renewed is left, and the supervisor had its time to end its runs; until then "unknown" is a state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scheduler.node.protocol import Report, RunSpec, RunState, SyncRequest

STOP_MARGIN_MS: Final = 2000
"""After a lease lapsed: the grace of a lapsed run (0.5 s), the dead man's margin (1 s) and the kill itself."""


@dataclass
class _Node:
    heard_boot_ms: int
    """When its last answer came; no lease there goes on longer than one lease after this (see `SyncRequest`)."""
    as_of_boot_ms: int = 0
    """When the node gave that answer, by its own clock."""
    instance: str = ""
    """Which supervisor gave it."""
    answering: bool = False
    """Whether it answered this controller, and its last request."""
    acknowledged_usage: tuple[str, ...] = ()
    acknowledged_exits: tuple[str, ...] = ()
    reported: frozenset[str] = frozenset()
    """Runs its last report named."""
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
        self._up: frozenset[str] = frozenset()
        self._asked = 0

    def answering(self) -> frozenset[str]:
        """Nodes whose last request was answered; only they may be given new jobs."""
        return frozenset(name for name, node in self._nodes.items() if node.answering)

    def request(
        self,
        name: str,
        epoch: int,
        desired: Sequence[RunSpec],
        going_on: Sequence[str],
        notices: Mapping[str, str],
    ) -> SyncRequest:
        """What to ask of a node. One that was never heard of only answers: it obeys from the second request on."""
        node = self._node(name)
        node.answering = False
        self._asked += 1
        return SyncRequest(
            epoch,
            self._lease_ms,
            tuple(desired),
            tuple(going_on),
            node.acknowledged_usage,
            node.acknowledged_exits,
            dict(notices),
            as_of_boot_ms=node.as_of_boot_ms,
            instance=node.instance,
            number=self._asked,
        )

    def answered(self, name: str, report: Report, heard_boot_ms: int) -> None:
        """Its report came then, is safe in the database and need not be repeated."""
        node = self._node(name)
        node.answering, node.heard_boot_ms = True, heard_boot_ms
        node.as_of_boot_ms, node.instance = report.boot_ms, report.instance
        node.acknowledged_usage = tuple(record.id for record in report.usage)
        node.acknowledged_exits = tuple(run.run_id for run in report.runs if run.state is RunState.ENDED)
        node.reported = frozenset(run.run_id for run in report.runs)
        node.described = description(report)

    def reported(self, names: Iterable[str]) -> dict[str, frozenset[str]]:
        """By node, the runs its last report named: it knows them and need not be told of them whole again."""
        return {name: self._node(name).reported for name in names}

    def describes(self, name: str, report: Report) -> bool:
        """Whether the node says something new of itself."""
        return self._node(name).described != description(report)

    def lost(self, names: Iterable[str], now_ms: int) -> list[str]:
        """Of these nodes, which are all that were not given up, those on which every lease has lapsed for certain."""
        self._up = frozenset(names)
        return [name for name in sorted(self._up) if now_ms >= self._lost_at(name)]

    def lost_next(self) -> int | None:
        """When the first of the nodes that do not answer will be lost; None while all answer that were not given up."""
        return min((self._lost_at(name) for name in self._up if not self._node(name).answering), default=None)

    def forget(self, name: str) -> None:
        """The node was given up; it is asked anew, as one that was never heard of."""
        self._nodes.pop(name, None)
        self._up -= {name}

    def _lost_at(self, name: str) -> int:
        return self._node(name).heard_boot_ms + self._lease_ms + STOP_MARGIN_MS

    def _node(self, name: str) -> _Node:
        return self._nodes.setdefault(name, _Node(heard_boot_ms=self._began_boot_ms))


def description(report: Report) -> Report:
    """The part of a report that describes the node rather than what happens on it."""
    return replace(report, boot_ms=0, runs=(), usage=(), usage_pending=0, refused=(), seq=0, epoch_seen=0)
