"""Stopping running jobs for a stronger claim, with every safeguard; decides whom, never acts.

A claim may evict when it is inside its queue's guarantee (then others' borrowers and preemptible jobs give
way), when it has a higher priority than preemptible jobs of its own queue, or when afterwards its queue's
share is still strictly below the victim's queue's (then preemptible jobs give way). Invariant: victims are
past their minimum run time, whole gangs, capped per cycle and per job, and the claimant's room is verified on
what would then be free; the freed nodes are nominated to the claimant.
"""

from collections.abc import Callable
from typing import Final

from scheduler.policy.capacity import Pool
from scheduler.policy.model import Eviction
from scheduler.policy.pending import QueuedJob
from scheduler.policy.placement import find
from scheduler.policy.queues import QueueState, Tier
from scheduler.policy.state import RunningJob, SchedulerState

CLAIMS_MAX: Final = 8
"""Waiting heads that one cycle examines for evictions."""

_GUARANTEE: Final = "reclaims its guarantee"
_PRIORITY: Final = "has a higher priority"
_FAIRNESS: Final = "is further below its fair share"


def may_evict(state: SchedulerState) -> bool:
    """Whether any eviction is thinkable, so that cycles without one do not pay for it."""
    return (
        state.settings.evicts
        and bool(state.running)
        and (not state.queues.plain or state.preemptible_running > 0)
    )


def find_evictions(
    state: SchedulerState, unserved: list[QueuedJob], now_ms: int
) -> tuple[tuple[Eviction, ...], int | None]:
    """Evictions for the claims in their order, and when the next protected victim has run its minimum."""
    evictions: list[Eviction] = []
    wake: int | None = None
    leaving = {claimant for nominees in state.promises.nominated.values() for claimant in nominees}
    ordered: set[str] = set()
    for claim in _claims(state, unserved):
        if claim.job.id in leaving or claim.job.id not in state.queued:
            continue  # room is already being made for it, or it has just started
        room = state.settings.evictions_per_cycle_max - len(evictions)
        for pool in claim.shape.pools:
            victims, reason, matures_ms = _victims(state, claim, pool, ordered, now_ms)
            if matures_ms is not None:
                wake = matures_ms if wake is None else min(wake, matures_ms)
            if victims and len(victims) <= room:
                evictions += [Eviction(victim.job.id, claim.job.id, reason) for victim in victims]
                ordered.update(victim.job.id for victim in victims)
                break
    return tuple(evictions), wake


def _claims(state: SchedulerState, unserved: list[QueuedJob]) -> list[QueuedJob]:
    """The heads that did not start in this cycle, and in turn the heads of classes not looked at in it."""
    claims = dict.fromkeys(unserved[:CLAIMS_MAX])
    keys = state.pending.rotation(CLAIMS_MAX)
    for key in keys:
        entry = state.pending.classes[key].head()
        if entry is not None and state.pending.classes[key].shape.pools:
            claims[entry[3]] = None
    return sorted(claims, key=lambda one: (-one.job.priority, one.entry or (0,), one.sequence))[:CLAIMS_MAX]


def _victims(
    state: SchedulerState, claim: QueuedJob, pool: Pool, ordered: set[str], now_ms: int
) -> tuple[list[RunningJob], str, int | None]:
    matures: int | None = None
    rows: list[tuple[bool, int, int, str, RunningJob, str]] = []
    mine = claim.leaf
    guaranteed = any(one.tier(pool.model, claim.job.devices_milli) is Tier.GUARANTEED for one in mine.ancestry)
    if not guaranteed and not state.preemptible_running:
        return [], "", None
    min_run_ms, most = state.settings.min_run_ms, state.settings.evictions_per_job_max
    for leaf, jobs in state.running_in.items():
        entitled = _entitlement(claim, leaf, pool) if jobs else None
        if entitled is None:
            continue
        for running in jobs.values():
            if running.started_ms + min_run_ms > now_ms:
                mature_ms = running.started_ms + min_run_ms
                matures = mature_ms if matures is None else min(matures, mature_ms)
                break  # the rest started later
            if running.pool != pool.model or running.evicted_for or running.job.id in ordered:
                continue
            reason = entitled(running)
            if reason is not None and state.evictions_of[running.job.id] < most:
                job = running.job
                rows.append((not job.preemptible, job.priority, -running.started_ms, job.id, running, reason))
    if not rows:
        return [], "", matures
    rows.sort(key=lambda row: row[:4])
    chosen = _smallest_set(state, claim, pool, [row[4] for row in rows], now_ms)
    reasons = {row[3]: row[5] for row in rows}
    return chosen, reasons[chosen[0].job.id] if chosen else "", None if chosen else matures


Entitlement = Callable[[RunningJob], str | None]


def _entitlement(claim: QueuedJob, leaf: QueueState, pool: Pool) -> Entitlement | None:
    """Why the claim may stop a job of this leaf, as a test of the job; None when it may stop none."""
    milli = claim.job.devices_milli
    if leaf is claim.leaf:
        return lambda running: (
            _PRIORITY if running.job.preemptible and running.job.priority < claim.job.priority else None
        )
    mine, theirs = _below_common(claim.leaf, leaf)
    their_quota, my_quota = theirs.quota(pool.model), mine.quota(pool.model)
    above = theirs.used.get(pool.model, 0) - their_quota.guarantee_milli
    if mine.tier(pool.model, milli) is Tier.GUARANTEED:
        if above > 0:
            return lambda _running: _GUARANTEE
        if my_quota.guarantee_milli:
            return lambda running: _GUARANTEE if running.job.preemptible else None
    if above <= 0:
        return None
    after = (mine.used.get(pool.model, 0) + milli) * their_quota.weight
    used = theirs.used.get(pool.model, 0)

    def fairer(running: RunningJob) -> str | None:
        before = (used - running.job.devices_milli) * my_quota.weight
        return _FAIRNESS if running.job.preemptible and after < before else None

    return fairer


def _below_common(left: QueueState, right: QueueState) -> tuple[QueueState, QueueState]:
    """The two siblings under the lowest common ancestor on the ways to these leaves."""
    for mine, theirs in zip(left.ancestry, right.ancestry, strict=False):
        if mine is not theirs:
            return mine, theirs
    return left, right


def _smallest_set(
    state: SchedulerState, claim: QueuedJob, pool: Pool, victims: list[RunningJob], now_ms: int
) -> list[RunningJob]:
    """Victims in order until the claim fits and its quota allows it, then without those it can do without."""
    job = claim.job
    barred = state.promises.barred(pool.model, job.id, now_ms, now_ms + job.time_limit_ms)
    taken: list[RunningJob] = []

    def fits() -> bool:
        allowed = state.queues.refusal(claim.leaf, pool.model, job.devices_milli, pool.capacity_milli) is None
        return allowed and find(claim.shape, pool, barred) is not None

    enough = False
    for victim in victims:
        if not _still_above(state, claim, victim, pool):
            continue
        _lift(state, victim, now_ms)
        taken.append(victim)
        if fits():
            enough = True
            break
    needed: list[RunningJob] = []
    for victim in list(taken) if enough else ():
        _lower(state, victim, now_ms)
        if fits():
            taken.remove(victim)
        else:
            _lift(state, victim, now_ms)
            needed.append(victim)
    for victim in reversed(taken):
        _lower(state, victim, now_ms)
    return needed


def _still_above(state: SchedulerState, claim: QueuedJob, victim: RunningJob, pool: Pool) -> bool:
    """Whether the victim's queue is still beyond its guarantee after those already taken from it."""
    if victim.leaf is claim.leaf or victim.job.preemptible:
        return True
    _, theirs = _below_common(claim.leaf, victim.leaf)
    return state.settings.evicts and theirs.used.get(pool.model, 0) > theirs.quota(pool.model).guarantee_milli


def _lift(state: SchedulerState, victim: RunningJob, now_ms: int) -> None:
    """Imagine the victim gone."""
    job = victim.job
    state.capacity.give(victim.placements, job.cpu_milli, job.memory_mib)
    state.queues.charge(victim.leaf, victim.pool, -job.devices_milli, now_ms)


def _lower(state: SchedulerState, victim: RunningJob, now_ms: int) -> None:
    """Take the imagination back."""
    job = victim.job
    state.capacity.take(victim.placements, job.cpu_milli, job.memory_mib)
    state.queues.charge(victim.leaf, victim.pool, job.devices_milli, now_ms)
