"""Jobs that wait, in classes of equal queue, shape, priority and preemptibility, each class a heap.

A job is enlisted by the first cycle that does not start it at once; from then on a cycle only looks at the heads of
the classes. Invariant: every ready job that is enlisted has exactly one live heap entry (stale ones, of withdrawn or
promoted jobs, are dropped when they surface).
"""

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from scheduler.policy.model import Job
from scheduler.policy.queues import QueueState
from scheduler.policy.shapes import Shape

OVERDUE: Final = -(2**62)
"""The order key of a job that has waited longer than first come, first served would have let it."""

SMALL: Final = -(2**61)
"""Added to the turn of a job so small that it hardly delays whom it passes."""

PROMOTED: Final = -(2**60)
"""The order key of a job that will soon have waited so long."""

Entry = tuple[int, int, int, "QueuedJob"]
"""(order key, submitted_ms, sequence, job); the sequence makes the order total."""


def turn_has_come(key: int, now_ms: int) -> bool:
    """Whether nobody who arrives later goes before the job with this order key."""
    if SMALL <= key < PROMOTED:
        return key - SMALL <= now_ms
    return key <= now_ms and key != PROMOTED


def goes_before(first: "QueuedJob", priority: int, entry: Entry) -> bool:
    """Whether a waiting job goes before the entry of a class of that priority; priorities count within a queue only."""
    assert first.entry is not None  # noqa: S101 - it waits
    if first.leaf is entry[3].leaf:
        return (-first.job.priority, first.entry[:3]) < (-priority, entry[:3])
    return first.entry[:3] < entry[:3]


class QueuedJob:
    """A queued job with what the policy has worked out about it."""

    __slots__ = ("entry", "home", "job", "leaf", "predicted_ms", "queued_ms", "ready", "sequence", "shape")

    def __init__(self, job: Job, leaf: QueueState, shape: Shape, sequence: int, queued_ms: int) -> None:
        self.job = job
        self.leaf = leaf
        self.shape = shape
        self.sequence = sequence
        self.queued_ms = queued_ms
        self.predicted_ms = job.time_limit_ms
        self.ready = False
        self.home: JobClass | None = None
        """The class it is enlisted in."""
        self.entry: Entry | None = None

    def give_place(self, key: int) -> None:
        """Let it go before all with a later key, in the order of submission among those with the same."""
        self.entry = (key, self.job.submitted_ms, self.sequence, self)


class ClassKey(NamedTuple):
    """What jobs of a class have in common."""

    queue: str
    shape: int
    priority: int
    preemptible: bool
    user: str
    """Only where a limit counts per user, so that one user's limit holds up nobody else."""
    array: str
    """Only where the array has a limit, for the same reason."""


class ByLimit:
    """Waiting jobs, those with the shortest time limit first, for backfill into what is free until a promise begins.

    Who has left goes when it surfaces, or when more have left than are here.
    """

    __slots__ = ("_heap", "_here")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, QueuedJob]] = []
        self._here = 0

    def add(self, queued: QueuedJob) -> None:
        """The job waits."""
        self._here += 1
        heappush(self._heap, (queued.job.time_limit_ms, queued.sequence, queued))

    def lose(self) -> None:
        """One of them waits no longer."""
        self._here -= 1
        if len(self._heap) > 2 * self._here + 64:
            self._heap = list({row[2]: row for row in self._heap if row[2].home is not None}.values())
            heapify(self._heap)

    def shortest(self) -> QueuedJob | None:
        """The one with the shortest limit."""
        heap = self._heap
        while heap:
            queued = heap[0][2]
            if queued.home is not None:
                return queued
            heappop(heap)
        return None

    def within(self, limit_ms: int) -> Iterator[QueuedJob]:
        """All whose limit is at most `limit_ms`, in no order; perhaps twice."""
        heap = self._heap
        edge = deque([0])
        while edge:
            at = edge.popleft()
            if at < len(heap) and heap[at][0] <= limit_ms:
                if heap[at][2].home is not None:
                    yield heap[at][2]
                edge.extend((2 * at + 1, 2 * at + 2))


class JobClass:
    """A heap of queued jobs that the policy need not tell apart except by order."""

    __slots__ = ("_of_shape", "by_limit", "heap", "key", "leaf", "preemptible", "priority", "shape", "size")

    def __init__(self, key: ClassKey, leaf: QueueState, shape: Shape, of_shape: ByLimit) -> None:
        self.key = key
        self.leaf = leaf
        self.shape = shape
        self.priority = key.priority
        self.preemptible = key.preemptible
        self.heap: list[Entry] = []
        self.by_limit = ByLimit()
        self._of_shape = of_shape
        """The same for all classes of the shape."""
        self.size = 0

    def push(self, queued: QueuedJob, entry: Entry) -> None:
        """The job waits here, at the place that its entry says."""
        self.size += 1
        queued.home = self
        heappush(self.heap, entry)
        self.by_limit.add(queued)
        self._of_shape.add(queued)

    def drop(self, queued: QueuedJob) -> None:
        """The job no longer waits here; its entry goes when it surfaces."""
        self.size -= 1
        queued.home = None
        self.by_limit.lose()
        self._of_shape.lose()

    def head(self) -> Entry | None:
        """The first live entry."""
        heap = self.heap
        while heap:
            entry = heap[0]
            queued = entry[3]
            if queued.entry is entry and queued.home is self:
                return entry
            heappop(heap)
        return None

    def first(self, most: int) -> list[QueuedJob]:
        """The first so many jobs in order, found without sorting the rest."""
        found: list[QueuedJob] = []
        edge = [(self.heap[0], 0)] if self.heap else []
        while edge and len(found) < most:
            entry, at = heappop(edge)
            queued = entry[3]
            if queued.entry is entry and queued.home is self:
                found.append(queued)
            for below in (2 * at + 1, 2 * at + 2):
                if below < len(self.heap):
                    heappush(edge, (self.heap[below], below))
        return found

    def within(self, limit_ms: int, most: int) -> list[QueuedJob]:
        """Up to so many jobs whose limit is at most `limit_ms`, the first in order last."""
        found: dict[QueuedJob, Entry] = {}
        for queued in self.by_limit.within(limit_ms):
            if queued.entry is not None:
                found[queued] = queued.entry
                if len(found) >= most:
                    break
        return [entry[3] for entry in sorted(found.values(), reverse=True)]


class Pending:
    """All classes, by queue and by shape."""

    REFUSED_MAX = 16
    """Jobs of a shape whose quota is looked at for one that may start."""

    def __init__(self) -> None:
        self.classes: dict[ClassKey, JobClass] = {}
        self.by_shape: dict[Shape, dict[ClassKey, JobClass]] = {}
        self.by_leaf: dict[QueueState, dict[Shape, list[JobClass]]] = {}
        self.by_order: dict[Shape, list[Entry]] = {}
        """Per shape all its jobs in order, whatever their queue and priority."""
        self.by_limit: dict[Shape, ByLimit] = {}
        """Per shape all its jobs by time limit."""
        self._turn: deque[ClassKey] = deque()

    def enlist(self, queued: QueuedJob) -> None:
        """Let a ready job wait in its class, at the place it was given."""
        if queued.entry is not None:
            self.class_of(queued).push(queued, queued.entry)
            self._line_up(queued.shape, queued.entry)

    def promote(self, queued: QueuedJob, key: int) -> None:
        """Give a ready job a new place; if it is enlisted, its older entry becomes stale."""
        queued.give_place(key)
        if queued.home is not None and queued.entry is not None:
            heappush(queued.home.heap, queued.entry)
            self._line_up(queued.shape, queued.entry)

    def _line_up(self, shape: Shape, entry: Entry) -> None:
        """Give the job the same place among all of its shape."""
        line = self.by_order.get(shape)
        if line is None:
            line = self.by_order[shape] = []
        heappush(line, entry)

    def first_of(self, shape: Shape, allowed: Callable[[QueuedJob], bool]) -> Entry | None:
        """The first job of a shape that may start; None when none of the first few may."""
        line = self.by_order.get(shape, [])
        aside: list[Entry] = []
        found: Entry | None = None
        while line and found is None and len(aside) < self.REFUSED_MAX:
            entry = line[0]
            queued = entry[3]
            if queued.entry is not entry or queued.home is None:
                heappop(line)
            elif allowed(queued):
                found = entry
            else:
                aside.append(heappop(line))
        for row in aside:
            heappush(line, row)
        if not line:
            self.by_order.pop(shape, None)
        return found

    def class_of(self, queued: QueuedJob) -> JobClass:
        """The class of a queued job, made when it is the first."""
        job = queued.job
        user = job.user if queued.leaf.user_limited else ""
        array = job.array_id if job.array_running_max else ""
        key = ClassKey(job.queue, queued.shape.number, job.priority, job.preemptible, user, array)
        found = self.classes.get(key)
        if found is None:
            of_shape = self.by_limit.get(queued.shape)
            if of_shape is None:
                of_shape = self.by_limit[queued.shape] = ByLimit()
            found = self.classes[key] = JobClass(key, queued.leaf, queued.shape, of_shape)
            self.by_shape.setdefault(queued.shape, {})[key] = found
            self.by_leaf.setdefault(queued.leaf, {}).setdefault(queued.shape, []).append(found)
            self._turn.append(key)
        return found

    def rotation(self, most: int) -> list[ClassKey]:
        """The next so many classes, each in its turn, so that none is overlooked for ever."""
        chosen: list[ClassKey] = []
        for _ in range(min(2 * most, len(self._turn))):
            key = self._turn.popleft()
            if key in self.classes and len(chosen) < most:
                chosen.append(key)
            if key in self.classes:
                self._turn.append(key)
        return chosen

    def forget_empty(self, emptied: JobClass) -> None:
        """Drop a class nobody waits in, so that shapes seen once do not cost for ever."""
        if emptied.size == 0 and self.classes.pop(emptied.key, None) is not None:
            siblings = self.by_shape[emptied.shape]
            del siblings[emptied.key]
            if not siblings:
                del self.by_shape[emptied.shape]
                del self.by_limit[emptied.shape]
                self.by_order.pop(emptied.shape, None)
            beside = self.by_leaf[emptied.leaf]
            beside[emptied.shape].remove(emptied)
            if not beside[emptied.shape]:
                del beside[emptied.shape]
            if not beside:
                del self.by_leaf[emptied.leaf]
