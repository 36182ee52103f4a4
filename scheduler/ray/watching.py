"""When a word about a node is due, on both sides of the line between a controller and its courier.

A controller orders a node to be watched after what it last heard of it; the courier says a word when it finds a change
after that, which ends the order. Invariant: whatever is late on the line, a node that has changed since it was last
heard of is told of, is still watched, or is ordered to be at the end of the step that heard of it.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from scheduler.node.protocol import Report
from scheduler.ray.sealing import Sealed


class Watches:
    """The controller's side: what it has heard of each node, and after what each is watched."""

    def __init__(self) -> None:
        self._heard: dict[str, int] = {}
        self._watched: dict[str, int] = {}
        self._lock = threading.Lock()

    def heard(self, name: str, seq: int) -> None:
        """A node's sequence number is known; nobody need be woken for it."""
        with self._lock:
            self._heard[name] = seq

    def order(self, names: Collection[str]) -> Mapping[str, int]:
        """What is to be ordered, so that each of these nodes is watched after what was heard of it."""
        with self._lock:
            due = {name: self._heard[name] for name in names if name in self._heard}
            due = {name: seq for name, seq in due.items() if self._watched.get(name) != seq}
            self._watched |= due
            return due

    def told(self, name: str, after: int, seq: int) -> bool:
        """A node ordered to be watched after that number has this one now: whether that is news."""
        with self._lock:
            if self._watched.get(name) != after:
                return False  # it was heard of since, and is watched after that
            del self._watched[name]
            return self._heard[name] != seq

    def forget(self, names: Collection[str]) -> None:
        """These nodes are watched no longer: they were ordered to be looked at for something else."""
        with self._lock:
            for name in names:
                self._watched.pop(name, None)

    def forget_orders(self) -> None:
        """Whoever was to watch is gone."""
        with self._lock:
            self._watched.clear()


class Early:
    """Reports of nodes that were asked ahead. Each is had once, and only by who asked last."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: dict[str, int] = {}
        self._reports: dict[str, Report] = {}
        self._lock = threading.Lock()

    def ask(self, names: Collection[str]) -> int:
        """These nodes are asked ahead from now on; the number under which their reports are to come."""
        with self._lock:
            self._number += 1
            self._forget(names)
            self._asked |= dict.fromkeys(names, self._number)
            return self._number

    def came(self, number: int, name: str, report: Report) -> bool:
        """A node's report came: whether it is wanted."""
        with self._lock:
            if self._asked.get(name) != number:
                return False  # it was asked again since
            del self._asked[name]
            self._reports[name] = report
            return True

    def take(self, names: Collection[str]) -> dict[str, Report]:
        """What came of these nodes; they are asked ahead no longer."""
        with self._lock:
            return self._forget(names)

    def _forget(self, names: Collection[str]) -> dict[str, Report]:
        for name in names:
            self._asked.pop(name, None)
        return {name: self._reports.pop(name) for name in names if name in self._reports}


@dataclass(frozen=True, slots=True)
class Look:
    """What a node is looked at for: that it changes after `after`; or, if there is one, for an answer to `ahead`."""

    after: int = 0
    ahead: Sealed | None = None
    number: int = 0
    within_ms: int = 0


class Watched:
    """The courier's side of one node: what is to be told, once; a later order replaces one before."""

    def __init__(self) -> None:
        self._look: Look | None = None
        self._ordered = threading.Condition()

    def look(self, look: Look) -> None:
        """Tell of this."""
        with self._ordered:
            self._look = look
            self._ordered.notify()

    def wanted(self) -> Look:
        """What is to be told; waits until there is such an order."""
        with self._ordered:
            while self._look is None:
                self._ordered.wait()
            return self._look

    def found(self, look: Look) -> bool:
        """This was found, or has taken too long: whether it is still wanted, which ends the order."""
        with self._ordered:
            told = self._look is look
            if told:
                self._look = None
            return told
