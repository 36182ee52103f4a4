"""Where one job goes among the pools that its quota allows, beside everything that is promised to others.

Invariant: what is found bars no promise; nothing is taken here.
"""

from typing import Final

from scheduler.policy.capacity import Pool
from scheduler.policy.pending import QueuedJob
from scheduler.policy.placement import Found, find, find_among_lasting
from scheduler.policy.promises import FOREVER_MS
from scheduler.policy.rights import overrides
from scheduler.policy.settings import PlacementRule
from scheduler.policy.shapes import Shape
from scheduler.policy.state import SchedulerState

_DEFAULT: Final = PlacementRule.DEFAULT


def place(
    state: SchedulerState, queued: QueuedJob, pools: tuple[Pool, ...], now_ms: int
) -> tuple[tuple[Pool, Found] | None, bool]:
    """Room in the first pool that has it; and whether somebody's promise stood in the way."""
    promises = state.promises
    hindered = False
    end_ms = now_ms + queued.job.time_limit_ms
    if queued.shape.scored:
        return _by_score(state, queued, pools, now_ms)
    for pool in pools:
        barred = promises.barred(pool.model, queued.job.id, now_ms, end_ms)
        found = _in_pool(state, queued, pool, barred, now_ms)
        if found is not None:
            return (pool, found), False
        hindered = hindered or (barred != 0 and find(queued.shape, pool) is not None)
    return None, hindered


def _in_pool(state: SchedulerState, queued: QueuedJob, pool: Pool, barred: int, now_ms: int) -> Found | None:
    """Room in one pool, as the placement rule of the policy chooses it."""
    shape = queued.shape
    aligned = state.settings.placement is _DEFAULT
    if aligned and shape.devices_per_node and shape.whole and shape.nodes == 1 and not shape.tail_devices:
        return find_among_lasting(shape, pool, barred, now_ms, now_ms + queued.predicted_ms)
    return find(shape, pool, barred)


def _by_score(
    state: SchedulerState, queued: QueuedJob, pools: tuple[Pool, ...], now_ms: int
) -> tuple[tuple[Pool, Found] | None, bool]:
    """The same by score: among all pools when the job names none, else in its order of preference."""
    shape, end_ms = queued.shape, now_ms + queued.job.time_limit_ms
    bars = [state.promises.barred(pool.model, queued.job.id, now_ms, end_ms) for pool in pools]
    groups = [(pool,) for pool in pools] if shape.models else [pools]
    for group in groups:
        barred = tuple(bars[pools.index(pool)] for pool in group)
        best = state.boards.find(shape, group, barred)
        if best is not None:
            return (best[0], ((best[1], best[2]),)), False
    return None, any(bars) and state.boards.find(shape, pools, (0,) * len(pools)) is not None


def place_nominee(
    state: SchedulerState, queued: QueuedJob, pool: Pool, pools: tuple[Pool, ...], now_ms: int
) -> tuple[Pool, Found] | None:
    """Room on the nodes nominated to the claimant in the pool; else anywhere in its pools.

    If need be also where it is promised to somebody against whom the claim is guaranteed: that promise is void then.
    """
    promises, job = state.promises, queued.job
    end_ms = now_ms + job.time_limit_ms
    reserved = promises.reserved_from(pool.model, job.id, now_ms, end_ms)
    found = find(queued.shape, pool, ~promises.nominations.own(pool.model, job.id) | reserved)
    if found is not None:
        return pool, found
    placed = place(state, queued, pools, now_ms)[0]
    for other in pools if placed is None else ():
        held = promises.by_pool.get(other.model)
        holder = None if held is None else state.queued.get(held.job_id)
        if holder is None or not overrides(state, queued, holder, other):
            continue
        nominated = promises.nominations.nodes_in(other.model) & ~promises.nominations.own(other.model, job.id)
        reserved = promises.reserved_from(other.model, job.id, now_ms, end_ms)
        found = find(queued.shape, other, nominated | reserved)
        if found is not None:
            del promises.by_pool[other.model]
            return other, found
    return placed


def fits_somewhere(shape: Shape) -> bool:
    """Whether one of its pools has room for the gang, whoever it is promised to."""
    demand = shape.demand_milli
    for pool in shape.pools:
        if pool.free_milli < demand:
            continue
        if shape.simple:
            if any(pool.buckets[shape.devices_per_node :]):
                return True
        elif find(shape, pool) is not None:
            return True
    return False


def gone_before(state: SchedulerState, queued: QueuedJob, pools: tuple[Pool, ...], now_ms: int) -> int:
    """How long a job of the same shape and with the same reservations may last to break no promise; never 0."""
    promises, shape = state.promises, queued.shape
    until_ms = [now_ms]
    for pool in pools:
        nominated = promises.nominations.nodes_in(pool.model)
        if nominated and not shape.scored and find(shape, pool, nominated) is None:
            continue  # what is nominated is for nobody else, however soon it would be gone
        if promises.spans.get(pool.model):
            until_ms.append(_until_reserved(state, queued, pool, now_ms))
        else:
            held = promises.by_pool.get(pool.model)
            until_ms.append(FOREVER_MS if held is None else held.from_ms)
    return max(1, max(until_ms) - now_ms)


def gone_before_at_most(state: SchedulerState, queued: QueuedJob, pools: tuple[Pool, ...], now_ms: int) -> int:
    """The same for any job of the shape, whatever is reserved for it."""
    if state.promises.names_jobs or state.promises.names_tenants:
        return FOREVER_MS
    return gone_before(state, queued, pools, now_ms)


def _until_reserved(state: SchedulerState, queued: QueuedJob, pool: Pool, now_ms: int) -> int:
    """The latest end with which there is room in a pool of which nodes are reserved; now, if there is none."""
    shape = queued.shape
    for end_ms, barred in state.promises.bars_by_end(pool.model, queued.job.id, now_ms):
        if shape.scored:
            fits = state.boards.find(shape, (pool,), (barred,)) is not None
        else:
            fits = find(shape, pool, barred) is not None
        if fits:
            return end_ms
    return now_ms
