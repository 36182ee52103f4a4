"""What is promised to whom: nodes kept for a job from a time on, and nodes reserved or drained for a span.

A promise rests on enforced time limits alone, so it can be kept whatever predictions say. Backfill may use
promised nodes only if it must be gone before. Invariant: once a job's turn has come its promise is hard, and a
hard promise is only ever replaced by an earlier one; nothing but a node that is lost, drained or shrinks moves it back.
"""

from collections.abc import Container
from operator import itemgetter
from typing import NamedTuple

from scheduler.policy.capacity import NodeState, Pool
from scheduler.policy.model import Reservation, Topology
from scheduler.policy.nominations import Nomination, Nominations
from scheduler.policy.shapes import Shape

FOREVER_MS = 2**62


class Promise(NamedTuple):
    """These nodes of a pool are for this job from `from_ms` on."""

    job_id: str
    nodes: int
    from_ms: int
    hard: bool
    freed: int
    """The pool's counter of what was freed when the promise was last worked out."""
    moved: int = -1
    """The same of what moved in or out: as long as it stands still, the promise comes to the same."""


class Span(NamedTuple):
    """A reservation or drain as seen by one pool."""

    nodes: int
    from_ms: int
    to_ms: int
    for_jobs: Container[object]


class Promises:
    """Everything promised, by pool."""

    def __init__(self) -> None:
        self.by_pool: dict[str, Promise] = {}
        """One per pool: a second gang draining nodes at the same time costs more than it hastens."""
        self.spans: dict[str, list[Span]] = {}
        self.nominations = Nominations()
        self.names_jobs = self.names_tenants = False
        """Whether something is reserved for single jobs, and for tenants: then a bar is not the same for all."""

    def unreserve(self) -> None:
        """Nothing is reserved or drained any more."""
        self.spans.clear()
        self.names_jobs = self.names_tenants = False

    def reserve(
        self, reservation: Reservation, for_jobs: Container[object], nodes: dict[str, NodeState]
    ) -> None:
        """Enter an advance reservation or a drain. Unknown nodes are ignored: they cannot be given away."""
        kept: dict[str, int] = {}
        for name in reservation.nodes:
            state = nodes.get(name)
            if state is not None:
                kept[state.pool.model] = kept.get(state.pool.model, 0) | state.bit
        for model, bits in kept.items():
            span = Span(bits, reservation.from_ms, reservation.to_ms, for_jobs)
            self.spans.setdefault(model, []).append(span)
        self.names_jobs = self.names_jobs or bool(reservation.for_jobs)
        self.names_tenants = self.names_tenants or bool(reservation.for_tenant)

    def edges_after(self, now_ms: int) -> int | None:
        """The next time a reservation begins or ends."""
        edges = [
            edge
            for spans in self.spans.values()
            for span in spans
            for edge in (span.from_ms, span.to_ms)
            if edge > now_ms
        ]
        return min(edges, default=None)

    def barred(self, pool: str, job_id: str, now_ms: int, end_ms: int) -> int:
        """Nodes that a job running from now to its limit would take from somebody they are promised to.

        What is nominated to the job itself is kept from it by nothing but a reservation.
        """
        found = 0
        promise = self.by_pool.get(pool)
        if promise is not None and promise.from_ms < end_ms and promise.job_id != job_id:
            found = promise.nodes
        if self.nominations.by_job:
            found = (found | self.nominations.nodes_in(pool)) & ~self.nominations.own(pool, job_id)
        if self.spans:
            found |= self.reserved_from(pool, job_id, now_ms, end_ms)
        return found

    def reserved_from(self, pool: str, job_id: str, now_ms: int, end_ms: int) -> int:
        """Nodes whose reservations or drains a job running from now to its limit would run into."""
        found = 0
        for span in self.spans.get(pool, ()):
            if span.from_ms < end_ms and now_ms < span.to_ms and job_id not in span.for_jobs:
                found |= span.nodes
        return found

    def bars_by_end(self, pool: str, job_id: str, now_ms: int) -> list[tuple[int, int]]:
        """(end, nodes barred to whoever runs until then), the latest end first; what is reserved for the job is not."""
        rows = [
            (span.from_ms, span.nodes)
            for span in self.spans.get(pool, ())
            if now_ms < span.to_ms and job_id not in span.for_jobs
        ]
        promise = self.by_pool.get(pool)
        if promise is not None:
            rows.append((promise.from_ms, promise.nodes))
        barred = self.nominations.nodes_in(pool)
        found: list[tuple[int, int]] = []
        for from_ms, nodes in sorted(rows):
            if from_ms > now_ms and (not found or found[-1][0] != from_ms):
                found.append((from_ms, barred))
            barred |= nodes
        return [(FOREVER_MS, barred), *reversed(found)]

    def favours(self, job_id: str) -> tuple[bool, ...]:
        """Of every reservation, whether it is for the job; equal for those whom the same is kept from."""
        return tuple([job_id in span.for_jobs for spans in self.spans.values() for span in spans])

    def make(self, pool: str, promise: Promise) -> None:
        """Enter a promise. A hard one is only replaced by an earlier one for the same job."""
        held = self.by_pool.get(pool)
        if held is None or not held.hard or (promise.job_id == held.job_id and promise.from_ms <= held.from_ms):
            self.by_pool[pool] = promise

    def forget(self, job_id: str) -> None:
        """The job started or no longer waits."""
        for pool in [pool for pool, promise in self.by_pool.items() if promise.job_id == job_id]:
            del self.by_pool[pool]
        self.nominations.forget(job_id)

    def node_lost(self, pool: str, bit: int) -> None:
        """Promises on a node that is lost or drained are void; their jobs get new ones at the next cycle."""
        promise = self.by_pool.get(pool)
        if promise is not None and promise.nodes & bit:
            del self.by_pool[pool]
        self.nominations.node_lost(pool, bit)

    def nominate(self, nomination: Nomination) -> None:
        """Enter a nomination. A promise to somebody else on its nodes is void: the holder is promised others."""
        self.nominations.make(nomination)
        promise = self.by_pool.get(nomination.pool)
        if promise is not None and promise.job_id != nomination.job_id and promise.nodes & nomination.nodes:
            del self.by_pool[nomination.pool]


def free_at_ms(state: NodeState, shape: Shape, now_ms: int) -> int:
    """When, by enforced limits, the node can certainly hold one part of the shape; FOREVER_MS if never."""
    needed = shape.devices_per_node
    times = state.device_times()
    if needed > len(times):
        return FOREVER_MS
    at = times[needed - 1] if needed else now_ms
    if shape.tail_devices:  # the one for what is left over must be empty, of jobs without devices as well
        at = max(at, max((ends_ms for ends_ms, _, _ in state.tenants.values()), default=0))
    cpu, memory = state.cpu_free_milli, state.memory_free_mib
    if cpu < shape.cpu_milli or memory < shape.memory_mib:
        for ends_ms, job_cpu, job_memory in sorted(state.tenants.values()):
            cpu += job_cpu
            memory += job_memory
            if cpu >= shape.cpu_milli and memory >= shape.memory_mib:
                at = max(at, ends_ms)
                break
        else:
            return FOREVER_MS
    return max(at, now_ms)


def earliest(
    shape: Shape, pool: Pool, promises: Promises, job_id: str, now_ms: int, limit_ms: int
) -> tuple[int, int] | None:
    """When the whole gang certainly fits beside all other promises, and on which nodes; None if never."""
    needed = shape.nodes + bool(shape.tail_devices)
    shut = promises.barred(pool.model, job_id, now_ms, FOREVER_MS)
    plain = not shape.cpu_milli and not shape.memory_mib and not shape.tail_devices
    if plain and not promises.spans:
        times = pool.free_times(shape.devices_per_node)
        if shut:  # by promises and nominations, which have no end
            times = [row for row in times if not shut & row[1]]
    else:
        times = []
        for state in pool.states:
            if not state.opened:
                continue
            at = free_at_ms(state, shape, now_ms)
            if shut & state.bit:
                at = _beside_others(state, promises, job_id, at, limit_ms)
            if at < FOREVER_MS:
                times.append((at, state.bit))
        times.sort()
    if shape.talks and len(pool.networks) > 1:
        sets = [nodes for _, nodes in sorted(pool.networks.items())]
        found = [
            _earliest_among(shape, pool, [row for row in times if row[1] & nodes], needed) for nodes in sets
        ]
        best = min((one for one in found if one is not None), key=itemgetter(0), default=None)
    else:
        best = _earliest_among(shape, pool, times, needed)
    return None if best is None else (max(best[0], now_ms), best[1])


def _earliest_among(
    shape: Shape, pool: Pool, times: list[tuple[int, int]], needed: int
) -> tuple[int, int] | None:
    if len(times) < needed:
        return None
    if needed > 1 and shape.topology is Topology.SAME_SWITCH and pool.domains:
        return _earliest_in_domain(pool, times, needed)
    nodes = 0
    for _, bit in times[:needed]:
        nodes |= bit
    return times[needed - 1][0], nodes


def _beside_others(state: NodeState, promises: Promises, job_id: str, at: int, limit_ms: int) -> int:
    """The first time from `at` on when the node is free of others' promises for the whole limit."""
    pool, bit = state.pool.model, state.bit
    spans = [span for span in promises.spans.get(pool, ()) if span.nodes & bit and job_id not in span.for_jobs]
    for span in sorted(spans, key=lambda one: (one.from_ms, one.to_ms)):
        if span.from_ms < at + limit_ms and at < span.to_ms:
            at = span.to_ms
    promise = promises.by_pool.get(pool)
    if promise is not None and promise.job_id != job_id and promise.nodes & bit:
        return FOREVER_MS
    if promises.nominations.nodes_in(pool) & ~promises.nominations.own(pool, job_id) & bit:
        return FOREVER_MS
    return at


def _earliest_in_domain(pool: Pool, times: list[tuple[int, int]], needed: int) -> tuple[int, int] | None:
    innermost = max(len(path) for path in pool.domains)
    best: tuple[int, int] | None = None
    for path in sorted(pool.domains):
        if len(path) != innermost:
            continue
        inside = [row for row in times if row[1] & pool.domains[path]][:needed]
        if len(inside) == needed and (best is None or inside[-1][0] < best[0]):
            best = (inside[-1][0], sum(bit for _, bit in inside))
    return best
