"""Making room for a stronger claim by stopping running jobs, with every safeguard; decides whom, never acts.

A waiting job has a claim against a running one when

1. it is inside its queue's guarantee and the other's queue is beyond its own, at every level that is not common to
   both (guarantees of children are part of their parent's, so the claim need only be inside one),
2. the other is preemptible and its queue, or one above it, is beyond its borrow limit, while the claim is not,
3. both are of one queue, the other is preemptible and has a lower priority,
4. the other is preemptible and after the exchange the claimant's weighted use is still strictly the smaller.

Invariant: victims are past their minimum run time and whole gangs; nobody is ordered to stop before the claimant's
room and quota are verified on what is then free; the room is nominated to the claimant. Only rule 1 may plan with
victims that are not past their minimum yet: their nodes are nominated at once, so that its wait has an end.
"""

from collections import Counter
from typing import Final

from scheduler.policy.imagination import Imagination, Outcome, apart, in_guarantee, replaced
from scheduler.policy.model import Eviction
from scheduler.policy.nominations import Nomination
from scheduler.policy.pending import JobClass, QueuedJob
from scheduler.policy.queues import Tier
from scheduler.policy.state import SchedulerState

CLAIMS_MAX: Final = 8
"""Claims one cycle plans for when there are many classes."""

CLASSES_FEW: Final = 64
"""Up to so many classes every cycle examines all of them."""

OUTSTANDING_MAX: Final = 128
"""Claimants for whom room is being made at the same time."""

CLAIMS_PER_JOB_MAX: Final = 16
"""A job for which others were stopped so often without its starting makes no further claim: no cycle is endless."""


def may_evict(state: SchedulerState) -> bool:
    """Whether any claim is thinkable (on jobs, or on promised nodes), so that other cycles do not pay for it."""
    return state.settings.evicts and (not state.queues.plain or state.preemptible_running > 0)


def find_evictions(
    state: SchedulerState, unserved: list[QueuedJob], now_ms: int
) -> tuple[tuple[Eviction, ...], int | None]:
    """Evictions for the claims in their order, and when the next protected victim has run its minimum."""
    nominations = state.promises.nominations
    wakes: list[int] = []
    evictions: list[Eviction] = []
    told: set[str] = set()
    postponed: set[str] = set()
    claims = _strongest_first(state, unserved, now_ms)
    if claims and len(nominations.by_job) < OUTSTANDING_MAX:
        imagination = Imagination(state, now_ms, claims)
        for claim in claims:
            if len(nominations.by_job) >= OUTSTANDING_MAX:
                break
            outcome = imagination.plan(claim)
            if outcome is None:
                continue
            _nominate(state, claim, outcome, now_ms)
            if not _is_ripe(outcome, evictions):
                continue
            count = len(evictions) + len(outcome.victims)
            if evictions and count > state.settings.evictions_per_cycle_max:
                postponed.add(claim.job.id)
            elif outcome.victims:
                told.add(claim.job.id)
                evictions += [
                    Eviction(victim.job.id, claim.job.id, outcome.reason) for victim in outcome.victims
                ]
        imagination.undo()
        if imagination.matures_ms is not None:
            wakes.append(imagination.matures_ms)
    wakes += [
        known.due_ms
        for known in nominations.by_job.values()
        if known.due_ms is not None
        and known.job_id not in told
        and known.victims
        # Who waits for the victims of another claim is planned anew with it, not every instant until then.
        and (known.due_ms > now_ms or known.job_id in postponed)
    ]
    return tuple(evictions), min((max(wake, now_ms + 1) for wake in wakes), default=None)


def renew_lapsed(state: SchedulerState, now_ms: int) -> None:
    """Plan anew for claimants with a victim whose queue has come back inside its guarantee by what ended elsewhere.

    Before anybody starts: what came free with that end is the claimant's, if need be where it is promised to
    somebody it is guaranteed against. Found out only when the victims' minimum is over, it would be too late.
    """
    nominations = state.promises.nominations
    lapsed = [state.queued[known.job_id] for known in _lapsed(state)]
    if not lapsed:
        return
    for queued in lapsed:
        nominations.forget(queued.job.id)
    claims = _in_order(lapsed, lapsed)
    imagination = Imagination(state, now_ms, claims)
    for claim in claims:
        outcome = imagination.plan(claim)
        if outcome is not None:
            _nominate(state, claim, outcome, now_ms)
    imagination.undo()


def _lapsed(state: SchedulerState) -> list[Nomination]:
    """Nominations with a victim that, everybody else gone who is to go, uses no more than its queue's guarantee."""
    outstanding = [
        (known, [state.running[victim] for victim in known.victims if victim in state.running])
        for known in state.promises.nominations.by_job.values()
    ]
    leaving = {victim.job.id: victim for _, victims in outstanding for victim in victims}
    going: Counter[tuple[str, str]] = Counter()
    for victim in leaving.values():
        for level in victim.leaf.ancestry:
            going[level.name, victim.pool] += victim.job.devices_milli
    coming: Counter[tuple[str, str]] = Counter()
    for known, _ in outstanding:
        claimant = state.queued[known.job_id]
        for level in claimant.leaf.ancestry:
            coming[level.name, known.pool] += claimant.job.devices_milli
    for key, milli in replaced(state).items():
        going[key] -= min(milli, coming[key])  # somebody of the same queue comes in its place
    return [
        known
        for known, victims in outstanding
        if known.due_ms is not None
        and any(
            level.effective.get(known.pool, 0) - going[level.name, known.pool] + victim.job.devices_milli
            <= level.quota(known.pool).guarantee_milli
            for victim in victims
            if not victim.evicted_for
            for level in apart(victim.leaf, state.queued[known.job_id].leaf)
        )
    ]


def _strongest_first(state: SchedulerState, unserved: list[QueuedJob], now_ms: int) -> list[QueuedJob]:
    """The claims in their order; those whose nominations come due or are outranked lose them and claim anew."""
    nominations = state.promises.nominations
    again = [state.queued[job_id] for job_id in nominations.due(now_ms)]
    for queued in again:
        nominations.forget(queued.job.id)  # its victims are ripe: it is planned for anew, on what is true now
    claims = _claims(state, unserved, again)
    outranked = _outranked(state, claims)
    for queued in outranked:
        nominations.forget(queued.job.id)
    return _in_order([*claims, *outranked], [*again, *outranked]) if outranked else claims


def _nominate(state: SchedulerState, claim: QueuedJob, outcome: Outcome, now_ms: int) -> None:
    victims = tuple(victim.job.id for victim in (*outcome.victims, *outcome.beside))
    due_ms = outcome.due_ms or now_ms
    state.promises.nominate(Nomination(claim.job.id, outcome.pool, outcome.nodes, victims, due_ms))


def _is_ripe(outcome: Outcome, ordered: list[Eviction]) -> bool:
    """Whether the victims may be told now: past their minimum, and whoever else is on the nodes has been told."""
    told = {eviction.job_id for eviction in ordered}
    return outcome.due_ms is None and all(one.evicted_for or one.job.id in told for one in outcome.beside)


def _claims(state: SchedulerState, unserved: list[QueuedJob], again: list[QueuedJob]) -> list[QueuedJob]:
    """Who may claim: the heads that did not start in this cycle, and the first of the classes, each in its turn.

    A class gives its next job as well as long as its queue stays inside a guarantee with it. Whose nomination has
    come due goes before others who are inside a guarantee: it has waited for its victims' minimum.
    """
    few = len(state.pending.classes) <= CLASSES_FEW
    most = CLASSES_FEW if few else CLAIMS_MAX
    claims = dict.fromkeys(again)
    for key in state.pending.rotation(most):
        job_class = state.pending.classes[key]
        if job_class.shape.pools:
            claims |= dict.fromkeys(job_class.first(_claims_of_class(job_class, most)))
    claims |= dict.fromkeys(unserved[:CLAIMS_MAX])
    known = state.promises.nominations.by_job
    rows = [
        claim
        for claim in claims
        if claim.job.id not in known
        and claim.job.id in state.queued
        and state.claims_of[claim.job.id] < CLAIMS_PER_JOB_MAX
        and _may_claim(state, claim)
    ]
    rows = _in_order(rows, again)
    return rows if few else rows[:CLAIMS_MAX]


def _in_order(claims: list[QueuedJob], again: list[QueuedJob]) -> list[QueuedJob]:
    """The strongest claims first; among equals those that were nominated before."""
    waited = {queued.job.id: place for place, queued in enumerate(again)}
    return sorted(
        claims,
        key=lambda one: (
            not in_guarantee(one),
            not _inside_own(one),
            waited.get(one.job.id, len(waited)),
            -one.job.priority,
            one.entry or (0,),
            one.sequence,
        ),
    )


def _outranked(state: SchedulerState, claims: list[QueuedJob]) -> list[QueuedJob]:
    """Nominated claimants beyond their own queue's guarantee, in pools that somebody claims who is inside his.

    What is being cleared for them counts as theirs while others plan; so whoever is stronger has it planned anew, and
    themselves after him.
    """
    known = state.promises.nominations.by_job
    if not known:
        return []
    coming: Counter[tuple[str, str]] = Counter()
    for one in known.values():
        queued = state.queued[one.job_id]
        coming[queued.leaf.name, one.pool] += queued.job.devices_milli
    claimed = {
        pool.model
        for claim in claims
        for pool in claim.shape.pools
        if claim.leaf.tier(pool.model, claim.job.devices_milli + coming[claim.leaf.name, pool.model])
        is Tier.GUARANTEED
    }
    return [
        queued
        for one in known.values()
        if one.pool in claimed
        and (queued := state.queued[one.job_id]).leaf.tier(one.pool, queued.job.devices_milli)
        is not Tier.GUARANTEED
    ]


def _inside_own(claim: QueuedJob) -> bool:
    """Whether its own queue guarantees the claim: what a queue above guarantees is its children's first."""
    milli, leaf = claim.job.devices_milli, claim.leaf
    return any(leaf.tier(pool.model, milli) is Tier.GUARANTEED for pool in claim.shape.pools)


def _claims_of_class(job_class: JobClass, most: int) -> int:
    """How many jobs of a class its queue's guarantee has room for; at least the first may try."""
    milli = max(1, job_class.shape.demand_milli)
    rooms = (
        (level.quota(pool.model).guarantee_milli - level.used.get(pool.model, 0)) // milli
        for pool in job_class.shape.pools
        for level in job_class.leaf.ancestry
    )
    return max(1, min(most, max(rooms)))


def _may_claim(state: SchedulerState, claim: QueuedJob) -> bool:
    """Whether any rule could speak for it: it is inside a guarantee, or something preemptible runs."""
    job, leaf = claim.job, claim.leaf
    if state.queues.full_for(leaf, job.user) is not None:
        return False
    if job.array_running_max and state.array_running[job.array_id] >= job.array_running_max:
        return False
    return state.preemptible_running > 0 or in_guarantee(claim)
