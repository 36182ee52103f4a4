"""Whose job is next: at every inner queue the child of the best tier, then of the lowest weighted share.

Invariant: a start moves only the queues above its leaf, so that the next question costs a walk down the tree.
"""

from heapq import heapify, heappop, heappush

from scheduler.policy.pending import Entry, JobClass
from scheduler.policy.queues import QueueState, Tier
from scheduler.policy.shapes import Shape
from scheduler.policy.state import SchedulerState


class Contest:
    """Who is next: a heap of children at every inner queue, and the candidate classes of every leaf."""

    def __init__(
        self,
        state: SchedulerState,
        now_ms: int,
        candidates: list[JobClass],
        hindered: dict[Shape, int],
    ) -> None:
        self._now_ms = now_ms
        self._hindered = hindered
        self._promises = state.promises.by_pool
        self._queued = state.queued
        self._capacities = state.capacities()
        self._classes: dict[QueueState, list[JobClass]] = {}
        for job_class in candidates:
            self._classes.setdefault(job_class.leaf, []).append(job_class)
        self._heads: dict[QueueState, tuple[JobClass, Entry]] = {}
        self._children: dict[QueueState, list[tuple[Tier, int, str, QueueState]]] = {}
        self._root = state.queues.root
        inner: dict[QueueState, None] = {}
        for leaf in sorted(self._classes, key=lambda one: one.name):
            if self._refresh(leaf):
                for above in leaf.path():
                    if above is not leaf:
                        inner[above] = None
        self._fill(inner)

    def _fill(self, inner: dict[QueueState, None]) -> None:
        for queue in sorted(inner, key=lambda one: -sum(1 for _ in one.path())):
            rows = [self._row(child) for child in queue.children if child in self._heads]
            heapify(rows)
            self._children[queue] = rows
            if rows:
                self._heads[queue] = self._heads[rows[0][3]]

    def next_leaf(self) -> QueueState | None:
        """The leaf that may start a job next, or None when no candidate is left."""
        at = self._root
        if not self._children.get(at):
            return None
        while at in self._children:
            at = self._children[at][0][3]
        return at

    def head_of(self, leaf: QueueState) -> tuple[JobClass, Entry]:
        """The leaf's first job and its class."""
        return self._heads[leaf]

    def drop(self, leaf: QueueState, job_class: JobClass) -> None:
        """This class cannot start anything in this cycle."""
        self._classes[leaf].remove(job_class)
        self.advance(leaf)

    def close(self, leaf: QueueState) -> None:
        """The leaf starts nothing more in this cycle."""
        self._classes[leaf].clear()
        self.advance(leaf)

    def advance(self, leaf: QueueState) -> None:
        """Work out the leaf's next candidate and where its ancestors now stand."""
        alive = self._refresh(leaf)
        below = leaf
        for queue in leaf.path():
            if queue is leaf:
                continue
            rows = self._children[queue]
            heappop(rows)
            if alive:
                heappush(rows, self._row(below))
            alive = bool(rows)
            if alive:
                self._heads[queue] = self._heads[rows[0][3]]
            else:
                self._heads.pop(queue, None)
            below = queue

    def _refresh(self, leaf: QueueState) -> bool:
        best: tuple[int, Entry, JobClass] | None = None
        for job_class in self._classes[leaf]:
            if self.passed_over(job_class):
                continue
            entry = job_class.head()
            if entry is None:
                continue
            row = (-job_class.priority, entry, job_class)
            if best is None or row[:2] < best[:2]:
                best = row
        if best is None:
            self._heads.pop(leaf, None)
            return False
        self._heads[leaf] = (best[2], best[1])
        return True

    def passed_over(self, job_class: JobClass) -> bool:
        """Whether nobody of the class can start in this cycle, as has been found for its shape.

        Not so in the queue of a promise's holder: there somebody earlier may set the promise aside.
        """
        shape = job_class.shape
        longest_ms = self._hindered.get(shape)
        if longest_ms is None:
            return False
        shortest = job_class.shortest()
        if shortest is None:
            return True
        if shortest[3].job.time_limit_ms <= longest_ms:
            return False
        holders = (self._queued.get(promise.job_id) for promise in self._promises.values())
        return all(holder is None or holder.leaf is not job_class.leaf for holder in holders)

    def _row(self, queue: QueueState) -> tuple[Tier, int, str, QueueState]:
        if queue.lonely:
            return (Tier.BORROWING, 0, queue.name, queue)
        job_class, _ = self._heads[queue]
        shape = job_class.shape
        pool = shape.pools[0].model if shape.pools else ""
        tier = queue.tier(pool, shape.demand_milli())
        return (tier, queue.share(self._capacities, self._now_ms), queue.name, queue)
