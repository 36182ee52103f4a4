"""How long first come, first served would have made jobs wait: the bound on waiting that a trace brings itself.

Beside each pool an imaginary one of equal size is played in strict order of arrival, with predicted durations
until the true ones are known. The longest wait seen there lately is what a job may have to wait in the real
pool. So no constant says how long is long; where first come, first served would make people wait for minutes it
is minutes, under a heavy load days. A job is promoted in two steps. When it will soon have waited so long it goes
before all but small jobs: those are most of a queue and hardly any of its work, so that letting them pass spares
many a wait and costs the one little. When it has waited so long, it goes before them, too: it is overdue, and the
overdue go in the order of submission. A queue's own `max_wait` makes its jobs overdue in place of all this.
Invariant: the imaginary pool never uses more than the pool has, and takes its jobs strictly in their order.
"""

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Final, Protocol

from scheduler.policy.capacity import Pool
from scheduler.policy.pending import OVERDUE, PROMOTED, QueuedJob

PROMOTED_PERCENT: Final = 95
"""After so much of the longest wait a job is promoted: it still needs its nodes to come free."""

OVERDUE_PERCENT: Final = 105
"""The imaginary pool knows no nodes, so nothing in it is wasted on their edges; the real one may take this long."""

MEMORY_IN_BOUNDS: Final = 20
"""A wait is forgotten after once to twice so many times the longest wait."""

_NEVER_MS: Final = 2**62


class Started(Protocol):
    """What must be known of a job that runs in the real pool."""

    started_ms: int


class Guest:
    """A job in the imaginary pool."""

    __slots__ = ("arrived_ms", "ends_ms", "lasts_ms", "milli")

    def __init__(self, arrived_ms: int, milli: int, lasts_ms: int) -> None:
        self.arrived_ms = arrived_ms
        self.milli = milli
        self.lasts_ms = lasts_ms
        self.ends_ms: int | None = None


class FirstCome:
    """One pool as first come, first served would run it."""

    def __init__(self) -> None:
        self._guests: dict[str, Guest] = {}
        self._line: deque[str] = deque()
        self._ends: list[tuple[int, str]] = []
        self._used_milli = 0
        self._capacity_milli = 0
        self._blocked_until_ms = 0
        """Until then the first of the line only waits, unless somebody ends or leaves."""
        self.longest_ms = 0
        self.before_ms = 0
        self.since_ms = 0
        self._forget_ms = 0
        self.promoted_after_ms = 0
        self.overdue_after_ms = 0
        self.patient = Waiting()
        """The jobs that are not promoted yet, by submission."""
        self.promoted = Waiting()
        """The jobs that are not overdue yet, by submission."""

    def inherit(self, before: "FirstCome") -> None:
        """Remember the waits an earlier imagination of the same pool has seen."""
        self.longest_ms = max(self.longest_ms, before.longest_ms)
        self.before_ms = max(self.before_ms, before.before_ms)
        self.since_ms = before.since_ms
        self._settle()

    def _settle(self) -> None:
        """Work out what follows from the longest wait remembered: when it is forgotten, how long jobs may wait."""
        longest_ms = max(self.longest_ms, self.before_ms)
        self._forget_ms = self.since_ms + MEMORY_IN_BOUNDS * longest_ms
        self.promoted_after_ms = longest_ms * PROMOTED_PERCENT // 100
        self.overdue_after_ms = longest_ms * OVERDUE_PERCENT // 100

    def arrived(self, job_id: str, milli: int, lasts_ms: int, now_ms: int) -> None:
        """A job starts if nobody stands in line and it fits, else joins the line; unless it is here already."""
        if job_id in self._guests:
            return
        guest = self._guests[job_id] = Guest(now_ms, milli, lasts_ms)
        if not self._line and self._used_milli + milli <= self._capacity_milli:
            self._start(job_id, guest, now_ms)
        else:
            self._line.append(job_id)

    def _start(self, job_id: str, guest: Guest, at_ms: int) -> None:
        guest.ends_ms = at_ms + guest.lasts_ms
        self._used_milli += guest.milli
        heappush(self._ends, (guest.ends_ms, job_id))

    def ended(self, job_id: str, ran_ms: int) -> None:
        """How long a job lasts is known better."""
        guest = self._guests.get(job_id)
        if guest is None:
            return
        if guest.ends_ms is not None:
            guest.ends_ms += ran_ms - guest.lasts_ms
            heappush(self._ends, (guest.ends_ms, job_id))
        guest.lasts_ms = ran_ms

    def left(self, job_id: str) -> None:
        """The job will not run, or not yet."""
        guest = self._guests.pop(job_id, None)
        self._blocked_until_ms = 0
        if guest is not None and guest.ends_ms is not None:
            self._used_milli -= guest.milli

    def advance(self, now_ms: int, capacity_milli: int, running: Mapping[str, Started]) -> None:
        """Play until now."""
        ends, line = self._ends, self._line
        if capacity_milli != self._capacity_milli:
            self._capacity_milli, self._blocked_until_ms = capacity_milli, 0
        elif (
            now_ms <= self._forget_ms
            and (not ends or now_ms < ends[0][0])
            and (not line or now_ms <= self._blocked_until_ms)
        ):
            return
        if now_ms > self._forget_ms:
            self.before_ms, self.longest_ms, self.since_ms = self.longest_ms, 0, now_ms
            self._settle()
        while ends and ends[0][0] <= now_ms:
            ends_ms, job_id = heappop(ends)
            guest = self._guests.get(job_id)
            if guest is not None and guest.ends_ms == ends_ms:
                real = running.get(job_id)
                if real is not None and guest.lasts_ms < now_ms - real.started_ms:
                    # it outlives its prediction in the real pool, so it does in the imaginary one
                    self.ended(job_id, max(now_ms - real.started_ms, guest.lasts_ms * 9 // 8))
                    continue
                del self._guests[job_id]
                self._used_milli -= guest.milli
                if line:
                    self._admit(ends_ms)
        if line:
            self._admit(now_ms)

    def _admit(self, at_ms: int) -> None:
        """Start the first of the line as long as it fits."""
        line, guests, capacity_milli = self._line, self._guests, self._capacity_milli
        while line:
            guest = guests.get(line[0])
            if guest is not None:
                if at_ms - guest.arrived_ms > self.longest_ms:
                    self.longest_ms = at_ms - guest.arrived_ms
                    self._settle()
                if self._used_milli + guest.milli <= capacity_milli:
                    self._start(line[0], guest, max(at_ms, guest.arrived_ms))
                elif guest.milli <= capacity_milli:
                    self._blocked_until_ms = guest.arrived_ms + self.longest_ms
                    return
                else:
                    del guests[line[0]]  # it fits no more; the line does not wait for it
            line.popleft()

    def promote(self, now_ms: int) -> list[tuple[QueuedJob, int]]:
        """Those who are promoted from now on, with their new order keys; from here on they may become overdue."""
        found: list[tuple[QueuedJob, int]] = []
        for queued in self.patient.before(now_ms - self.promoted_after_ms):
            self.promoted.add(queued.job.submitted_ms, queued)
            if queued.entry is not None and queued.entry[0] > PROMOTED:
                found.append((queued, PROMOTED))
        return found


class Waiting:
    """Jobs that may become due, the first due first; those of one instant in the order of their submission."""

    def __init__(self) -> None:
        self.first_ms = _NEVER_MS
        """After which the first of them is due."""
        self._heap: list[tuple[int, int, int, QueuedJob]] = []
        self._counted = 0

    def add(self, at_ms: int, queued: QueuedJob) -> None:
        """The job is due after `at_ms`."""
        heap = self._heap
        while heap and not heap[0][3].ready:
            heappop(heap)
        self._counted += 1
        heappush(heap, (at_ms, queued.sequence, self._counted, queued))
        self.first_ms = heap[0][0]

    def before(self, now_ms: int) -> list[QueuedJob]:
        """Take out who is due and still waits."""
        heap = self._heap
        found = []
        while heap and heap[0][0] < now_ms:
            queued = heappop(heap)[3]
            if queued.ready:
                found.append(queued)
        self.first_ms = heap[0][0] if heap else _NEVER_MS
        return found


class Congestion:
    """The imaginary pools, and who has waited longer than they would have made it wait."""

    def __init__(self) -> None:
        self.pools: dict[str, FirstCome] = {}
        self._bounded = Waiting()
        """Jobs of queues with a `max_wait`, by the time they are overdue."""

    def inherit(self, before: "Congestion") -> None:
        """Remember the waits of an earlier state's imaginary pools."""
        for model, first_come in before.pools.items():
            self.pools.setdefault(model, FirstCome()).inherit(first_come)

    def arrived(self, queued: QueuedJob, now_ms: int) -> None:
        """A job may start from now on; it counts in the pool it likes best."""
        if not queued.shape.pools:
            return
        model, milli = queued.shape.pools[0].model, queued.shape.demand_milli
        first_come = self.pools.get(model)
        if first_come is None:
            first_come = self.pools[model] = FirstCome()
        if milli:
            first_come.arrived(queued.job.id, milli, queued.predicted_ms, now_ms)
        max_wait_ms = queued.leaf.queue.max_wait_ms
        if max_wait_ms is None:
            first_come.patient.add(queued.job.submitted_ms, queued)
        else:
            self._bounded.add(queued.job.submitted_ms + max_wait_ms, queued)

    def ended(self, job_id: str, ran_ms: int) -> None:
        """A job ran so long and no longer."""
        for first_come in self.pools.values():
            first_come.ended(job_id, ran_ms)

    def left(self, queued: QueuedJob) -> None:
        """A job was withdrawn or held."""
        for first_come in self.pools.values():
            first_come.left(queued.job.id)

    def due(
        self, now_ms: int, pools: Mapping[str, Pool], running: Mapping[str, Started]
    ) -> list[tuple[QueuedJob, int]]:
        """The jobs that are promoted or overdue from now on, with their new order keys."""
        due: list[tuple[QueuedJob, int]] = []
        for model, first_come in self.pools.items():
            first_come.advance(now_ms, pools[model].capacity_milli, running)
            if first_come.patient.first_ms + first_come.promoted_after_ms < now_ms:
                due += first_come.promote(now_ms)
            if first_come.promoted.first_ms + first_come.overdue_after_ms < now_ms:
                overdue = first_come.promoted.before(now_ms - first_come.overdue_after_ms)
                due += [(queued, OVERDUE) for queued in overdue]
        if self._bounded.first_ms < now_ms:
            due += [(queued, OVERDUE) for queued in self._bounded.before(now_ms)]
        return due
