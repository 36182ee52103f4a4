"""What a job may count on: the pools its quota allows, quota kept for claims, promises it may override.

Invariant: nobody starts on quota that a claim counts on which is guaranteed against it.
"""

from scheduler.policy.capacity import Pool
from scheduler.policy.pending import QueuedJob
from scheduler.policy.queues import QueueState
from scheduler.policy.state import SchedulerState


def allowed_pools(state: SchedulerState, queued: QueuedJob, *, once_free: bool = False) -> tuple[Pool, ...]:
    """The pools in which quota and limits allow the job now, or would `once_free` is what others use there."""
    job, leaf = queued.job, queued.leaf
    pools = queued.shape.pools
    if state.queues.plain and not job.array_running_max:
        return pools
    if state.queues.full_for(leaf, job.user) is not None:
        return ()
    if job.array_running_max and state.array_running[job.array_id] >= job.array_running_max:
        return ()
    milli, spare, queues = job.devices_milli, job.preemptible, state.queues
    contested = bool(state.promises.nominations.by_job)
    allowed = []
    for pool in pools:
        refusing = queues.refusal(leaf, pool.model, milli, usable_milli(state, pool), opportunistic=spare)
        if refusing is None:
            if once_free or not contested or leaves_nominated_quota(state, queued, pool):
                allowed.append(pool)
        elif (
            once_free
            and refusing.parent is None
            and queues.ever_allows(leaf, pool.model, milli, pool.capacity_milli, opportunistic=spare)
        ):
            allowed.append(pool)
    return pools if len(allowed) == len(pools) else tuple(allowed)


def usable_milli(state: SchedulerState, pool: Pool) -> int:
    """What quota may be given out of: all that is free, and all in use, on drained nodes and failed devices as well.

    What still runs on those takes nothing of what is free elsewhere.
    """
    return pool.free_milli + state.queues.root.used.get(pool.model, 0)


def leaves_nominated_quota(state: SchedulerState, queued: QueuedJob, pool: Pool) -> bool:
    """Whether a job may start without using up quota that a claim counts on which makes way for nobody like it.

    Room is kept by nodes, but the first of several victims to go leaves quota that any node would do for. Beside a
    claim also opportunistic jobs keep the bounds of the queues above both, since the claim has to keep them.
    """
    job = queued.job
    supposed, there_milli = _supposed(state, queued, pool), usable_milli(state, pool)
    claimed = {level for leaf, milli in supposed if milli > 0 for level in leaf.ancestry}
    for leaf, milli in supposed:
        state.queues.suppose(leaf, pool.model, milli)
    refusing = state.queues.refusal(
        queued.leaf,
        pool.model,
        job.devices_milli,
        there_milli,
        opportunistic=job.preemptible,
        firm=claimed,
    )
    for leaf, milli in supposed:
        state.queues.suppose(leaf, pool.model, -milli)
    return refusing is None


def _supposed(state: SchedulerState, queued: QueuedJob, pool: Pool) -> list[tuple[QueueState, int]]:
    """What claims guaranteed against the job will use, and what those who make way for them use no more.

    Of two claimants the earlier nominated one goes first.
    """
    claims: list[tuple[QueueState, int]] = []
    victims: dict[str, None] = {}
    for known in state.promises.nominations.by_job.values():
        if known.job_id == queued.job.id:
            break
        claimant = state.queued[known.job_id]
        leaf, milli = claimant.leaf, claimant.job.devices_milli
        if known.pool == pool.model and (
            leaf is queued.leaf or state.queues.guarantees(leaf, queued.leaf, pool.model, milli)
        ):
            claims.append((leaf, milli))
            victims |= dict.fromkeys(known.victims)
    leaving = (state.running.get(victim) for victim in victims)
    return claims + [(one.leaf, -one.job.devices_milli) for one in leaving if one is not None]


def overrides(state: SchedulerState, claim: QueuedJob, holder: QueuedJob, pool: Pool) -> bool:
    """Whether the claim is guaranteed against the holder of a promise, who would itself borrow."""
    if holder.leaf is claim.leaf:
        return False
    guarantees, model = state.queues.guarantees, pool.model
    stronger = guarantees(claim.leaf, holder.leaf, model, claim.job.devices_milli)
    return stronger and not guarantees(holder.leaf, claim.leaf, model, holder.job.devices_milli)
