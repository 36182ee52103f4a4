"""Stopping running jobs for a stronger claim, with every safeguard; decides whom, never acts.

A claim may evict when it is inside its queue's guarantee (then others' borrowers and preemptible jobs give
way), when it has a higher priority than preemptible jobs of its own queue, or when afterwards its queue's
share is still strictly below the victim's queue's (then preemptible jobs give way). Invariant: victims are
past their minimum run time, whole gangs, capped per cycle and per job, and the claimant's room is verified on
what would then be free; the freed nodes are nominated to the claimant.
"""

from typing import Final

from scheduler.policy.capacity import Pool
from scheduler.policy.model import Eviction
from scheduler.policy.pending import QueuedJob
from scheduler.policy.placement import find
from scheduler.policy.queues import QueueState, Tier
from scheduler.policy.state import RunningJob, SchedulerState

CLAIMS_MAX: Final = 64
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
    state: SchedulerState, claims: list[QueuedJob], now_ms: int
) -> tuple[tuple[Eviction, ...], int | None]:
    """Evictions for the claims in their order, and when the next protected victim has run its minimum."""
    evictions: list[Eviction] = []
    wake: int | None = None
    leaving = {running.evicted_for for running in state.running.values() if running.evicted_for}
    ordered: set[str] = set()
    for claim in claims:
        if claim.job.id in leaving:
            continue  # room is already being made for it
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


def _victims(
    state: SchedulerState, claim: QueuedJob, pool: Pool, ordered: set[str], now_ms: int
) -> tuple[list[RunningJob], str, int | None]:
    matures: int | None = None
    rows: list[tuple[int, int, int, str, RunningJob, str]] = []
    for running in state.running.values():
        if running.pool != pool.model or running.evicted_for or running.job.id in ordered:
            continue
        reason = _entitled(claim, running, pool)
        if reason is None or state.evictions_of[running.job.id] >= state.settings.evictions_per_job_max:
            continue
        mature_ms = running.started_ms + state.settings.min_run_ms
        if mature_ms > now_ms:
            matures = mature_ms if matures is None else min(matures, mature_ms)
            continue
        rows.append(
            (
                not running.job.preemptible,
                running.job.priority,
                -running.started_ms,
                running.job.id,
                running,
                reason,
            )
        )
    rows.sort(key=lambda row: row[:4])
    chosen = _smallest_set(state, claim, pool, [row[4] for row in rows], now_ms)
    reasons = {row[3]: row[5] for row in rows}
    return chosen, reasons[chosen[0].job.id] if chosen else "", None if chosen else matures


def _entitled(claim: QueuedJob, running: RunningJob, pool: Pool) -> str | None:
    """Why the claim may stop this job, or None."""
    milli = claim.job.devices_milli
    if running.leaf is claim.leaf:
        stronger = running.job.preemptible and running.job.priority < claim.job.priority
        return _PRIORITY if stronger else None
    mine, theirs = _below_common(claim.leaf, running.leaf)
    guaranteed = mine.tier(pool.model, milli) is Tier.GUARANTEED
    above = theirs.used.get(pool.model, 0) - theirs.quota(pool.model).guarantee_milli
    if guaranteed and above > 0:
        return _GUARANTEE
    if guaranteed and running.job.preemptible and mine.quota(pool.model).guarantee_milli:
        return _GUARANTEE
    if not running.job.preemptible or above <= 0:
        return None
    after = (mine.used.get(pool.model, 0) + milli) * theirs.quota(pool.model).weight
    before = (theirs.used.get(pool.model, 0) - running.job.devices_milli) * mine.quota(pool.model).weight
    return _FAIRNESS if after < before else None


def _below_common(left: QueueState, right: QueueState) -> tuple[QueueState, QueueState]:
    """The two siblings under the lowest common ancestor on the ways to these leaves."""
    ways = list(reversed(list(left.path()))), list(reversed(list(right.path())))
    for mine, theirs in zip(*ways, strict=False):
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
