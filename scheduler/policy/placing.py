"""Where one job goes among the pools that its quota allows, beside everything that is promised to others.

Invariant: what is found bars no promise; nothing is taken here.
"""

from scheduler.policy.capacity import Pool
from scheduler.policy.pending import QueuedJob
from scheduler.policy.placement import Found, find, find_among_lasting
from scheduler.policy.settings import PlacementRule
from scheduler.policy.state import SchedulerState


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
    aligned = state.settings.placement is PlacementRule.DEFAULT
    if not aligned or not shape.devices_per_node or not shape.whole or shape.nodes > 1 or shape.tail_devices:
        return find(shape, pool, barred)
    return find_among_lasting(shape, pool, barred, now_ms, now_ms + queued.predicted_ms)


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
