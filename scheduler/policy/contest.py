"""Whose job is next: at every inner queue the child of the best tier, then of the lowest weighted share.

Invariant: a start moves only the queues above its leaf, so that the next question costs a walk down the tree.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from heapq import heapify, heappop, heapreplace
from typing import Final

from scheduler.policy.pending import Entry, JobClass, QueuedJob
from scheduler.policy.promises import FOREVER_MS
from scheduler.policy.queues import QueueState, Tier
from scheduler.policy.settings import Backfill
from scheduler.policy.shapes import Shape
from scheduler.policy.state import SchedulerState

BACKFILL_MAX: Final = 1000
"""Short enough jobs of a class that one cycle looks at for backfill."""


class Contest:
    """Who is next: a heap of children at every inner queue, and the candidate classes of every leaf."""

    __slots__ = (
        "_capacities",
        "_children",
        "_classes",
        "_heads",
        "_hindered",
        "_lines",
        "_now_ms",
        "_promises",
        "_queued",
        "_root",
        "_shapes",
        "_sole",
        "_state",
        "_unseen",
        "_waiting",
    )

    def __init__(
        self,
        state: SchedulerState,
        now_ms: int,
        shapes: list[Shape],
        hindered: dict[Shape, int],
    ) -> None:
        self._now_ms = now_ms
        self._hindered = hindered
        self._promises = state.promises.by_pool
        self._queued = state.queued
        self._capacities: dict[str, int] | None = None
        self._state = state
        self._shapes = shapes
        self._waiting = state.pending.by_leaf
        self._classes: dict[QueueState, list[JobClass]] = {}
        """The candidate classes of the leaves that have been looked at."""
        self._heads: dict[QueueState, tuple[JobClass, Entry]] = {}
        self._children: dict[QueueState, list[tuple[Tier, int, str, QueueState]]] = {}
        self._lines: dict[JobClass, list[QueuedJob]] = {}
        """Of classes whose head a promise hinders: who would be gone before, the first in order last."""
        self._root = state.queues.root
        self._unseen: set[QueueState] = set(self._waiting)
        """Leaves whose first job nobody has looked up yet; until then they stand where they could at best."""
        self._sole = len(self._unseen) == 1
        """Whether all who wait are of one leaf: then nobody's share is compared."""
        if not self._sole:
            self._stand_up(now_ms)

    def _stand_up(self, now_ms: int) -> None:
        """Say where every queue with somebody waiting below it stands among its siblings."""
        inner: dict[QueueState, None] = {}
        for leaf in self._waiting:
            at = leaf.parent
            while at is not None and at not in inner:
                inner[at] = None
                at = at.parent
        unseen, row_of = self._unseen, self._row
        for queue in inner:
            rows = [
                child.row if child.row is not None and now_ms < child.share_until_ms else row_of(child)
                for child in queue.children
                if child in unseen or child in inner
            ]
            heapify(rows)
            self._children[queue] = rows

    def narrow(self, keep: AbstractSet[QueueState]) -> None:
        """Nobody of other leaves can start any more."""
        self._unseen &= keep
        if self._sole:
            self._heads = {leaf: head for leaf, head in self._heads.items() if leaf in keep}
        for queue in sorted(self._children, key=lambda one: -len(one.ancestry)):
            rows = [
                self._row(row[3])
                for row in self._children[queue]
                if (bool(self._children[row[3]]) if row[3] in self._children else row[3] in keep)
            ]
            heapify(rows)
            self._children[queue] = rows
            head = self._heads.get(rows[0][3]) if rows else None
            if head is None:
                self._heads.pop(queue, None)
            else:
                self._heads[queue] = head

    def next_leaf(self) -> QueueState | None:
        """The leaf that may start a job next, or None when no candidate is left."""
        children, unseen, root = self._children, self._unseen, self._root
        if self._sole:
            if unseen:
                leaf = next(iter(unseen))
                self._refresh(leaf)
                unseen.remove(leaf)
            return next(iter(self._heads), None)
        while children.get(root):
            at = root
            while at in children:
                at = children[at][0][3]
            if at not in unseen:
                return at
            self.advance(at)
            unseen.remove(at)
        return None

    def head_of(self, leaf: QueueState) -> tuple[JobClass, Entry]:
        """The leaf's first job and its class."""
        return self._heads[leaf]

    def line_up(self, leaf: QueueState, job_class: JobClass, failed: QueuedJob, longest_ms: int) -> bool:
        """A promise hinders this job of the class: let those go on that are gone before, in their order.

        Nobody lasts longer than `longest_ms` but those for whom other nodes are reserved than for this one.
        """
        if not longest_ms:
            return False
        limit_ms = min(longest_ms, failed.job.time_limit_ms - 1)
        known, apart = self._lines.get(job_class), self._told_apart(failed)
        if known is None:
            known = job_class.within(limit_ms if apart is None else FOREVER_MS, BACKFILL_MAX)
        line = [
            queued
            for queued in known
            if queued.job.time_limit_ms <= limit_ms or (apart is not None and apart(queued))
        ]
        self._lines[job_class] = line
        self.advance(leaf)
        return True

    def _told_apart(self, failed: QueuedJob) -> Callable[[QueuedJob], bool] | None:
        """Who has other reservations than this job; None where reservations tell nobody of its queue apart."""
        promises = self._state.promises
        if not promises.names_jobs and not (promises.names_tenants and len(failed.leaf.tenants) > 1):
            return None
        favours = promises.favours(failed.job.id)
        return lambda queued: promises.favours(queued.job.id) != favours

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
        if self._sole:
            return
        below = leaf
        for queue in leaf.ancestry[-2::-1]:
            rows = self._children[queue]
            if not alive:
                heappop(rows)
            elif len(rows) > 1:
                heapreplace(rows, self._row(below))
            alive = bool(rows)
            head = self._heads.get(rows[0][3]) if rows else None
            if head is None:
                self._heads.pop(queue, None)
            else:
                self._heads[queue] = head
            below = queue

    def _refresh(self, leaf: QueueState) -> bool:
        first: tuple[int, Entry] | None = None
        best: JobClass | None = None
        lines, hindered = self._lines, self._hindered
        seen = leaf not in self._unseen  # the first job is considered once, whatever is known of its shape
        classes = self._classes.get(leaf)
        if classes is None:
            waiting = self._waiting[leaf]
            classes = self._classes[leaf] = [one for shape in self._shapes for one in waiting.get(shape, ())]
        barred = hindered if seen else ()
        for job_class in classes:
            if barred and hindered.get(job_class.shape) == 0:
                continue
            entry = self._first_of(job_class) if lines and job_class in lines else job_class.head()
            if entry is None:
                continue
            row = (-job_class.priority, entry)
            if first is not None and first < row:
                continue
            if barred and job_class.shape in hindered and self.passed_over(job_class):
                continue
            first, best = row, job_class
        if best is None or first is None:
            self._heads.pop(leaf, None)
            return False
        self._heads[leaf] = (best, first[1])
        return True

    def _first_of(self, job_class: JobClass) -> Entry | None:
        line = self._lines[job_class]
        while line and line[-1].home is not job_class:
            line.pop()
        return line[-1].entry if line else None

    def passed_over(self, job_class: JobClass) -> bool:
        """Whether nobody of the class can start in this cycle, as has been found for its shape.

        Not so in the queue of a promise's holder: there somebody earlier may set the promise aside.
        """
        shape = job_class.shape
        longest_ms = self._hindered.get(shape)
        if longest_ms is None:
            return False
        if not longest_ms:
            return True
        shortest = job_class.by_limit.shortest()
        if shortest is None:
            return True
        if shortest.job.time_limit_ms <= longest_ms:
            return False
        for promise in self._promises.values():
            holder = self._queued.get(promise.job_id)
            if holder is not None and holder.leaf is job_class.leaf:
                return False
        return True

    def _row(self, queue: QueueState) -> tuple[Tier, int, str, QueueState]:
        if queue.lonely and queue.row is not None:
            return queue.row
        if self._capacities is None:
            self._capacities = self._state.capacities()
        share = queue.share(self._capacities, self._now_ms)
        head = self._heads.get(queue)
        if head is None:
            queue.row = (queue.best_tier(), share, queue.name, queue)
            return queue.row
        shape = head[0].shape
        pool = shape.pools[0].model if shape.pools else ""
        return (queue.tier(pool, shape.demand_milli), share, queue.name, queue)


def may_still_start(
    state: SchedulerState, shapes: list[Shape], hindered: dict[Shape, int]
) -> set[QueueState] | None:
    """The leaves that matter once every shape is known to be hindered; None while all of them do.

    Those are the leaves of jobs that are gone before the promises begin, and those of the promises' holders, as
    somebody there may come earlier. For the rest there is nothing left to start, to promise or to claim.
    """
    by_pool = state.promises.by_pool
    if state.settings.backfill is not Backfill.RESERVED or any(shape not in hindered for shape in shapes):
        return None
    if any(pool.model not in by_pool for shape in shapes for pool in shape.pools):
        return None
    holders = [state.queued.get(promise.job_id) for promise in by_pool.values()]
    keep = {holder.leaf for holder in holders if holder is not None}
    for shape in shapes:
        if hindered[shape]:
            keep.update(queued.leaf for queued in state.pending.by_limit[shape].within(hindered[shape]))
    return keep
