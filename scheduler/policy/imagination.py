"""What would be free if some running jobs were gone: played through on the real accounts and taken back again.

Whoever has been told to stop is imagined gone and whoever has been nominated is imagined started, so that claims
planned one after another never count on the same room or the same share of a guarantee twice. Invariant: after
`undo` the state is what it was.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from scheduler.policy.capacity import Pool
from scheduler.policy.pending import QueuedJob
from scheduler.policy.placement import Found, as_placements, find
from scheduler.policy.queues import QueueState, Tier
from scheduler.policy.rights import overrides, usable_milli
from scheduler.policy.state import RunningJob, SchedulerState

GUARANTEE: Final = "reclaims its guarantee"
BORROWING: Final = "may borrow what was lent beyond a borrow limit"
PRIORITY: Final = "has a higher priority"
FAIRNESS: Final = "is further below its fair share"

ATTEMPTS_MAX: Final = 16
"""How often one claim is tried again without a victim that turned out to be beyond its rights."""


class Outcome(NamedTuple):
    """How room can be made for a claim: whom to stop, why, where it will lie, and when the last victim is ripe.

    `beside` are on its nodes as well, but leave for the sake of other claims; their minimum counts too.
    """

    pool: str
    victims: tuple[RunningJob, ...]
    beside: tuple[RunningJob, ...]
    reason: str
    nodes: int
    due_ms: int | None


@dataclass(slots=True)
class _Attempt:
    """Victims imagined gone for one claim in one pool."""

    claim: QueuedJob
    pool: Pool
    guaranteed: bool
    """Whether the claim was inside a guarantee before anybody was imagined gone for it."""
    barred: int
    taken: list[RunningJob]
    reasons: dict[str, str]


class _Asked(dict[QueueState, bool]):
    """What a question about leaves comes to, each asked once."""

    def __init__(self, ask: Callable[[QueueState], bool]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, leaf: QueueState) -> bool:
        answer = self[leaf] = self._ask(leaf)
        return answer


class Imagination:
    """The state with imagined ends and starts on top of it."""

    def __init__(self, state: SchedulerState, now_ms: int, claims: Iterable[QueuedJob]) -> None:
        self._state = state
        self._now_ms = now_ms
        self._inside = {claim.job.id for claim in claims if in_guarantee(claim)}
        """Claims that are inside a guarantee as things are, not only once others have left."""
        self._freed = {pool: pool.freed for pool in state.capacity.pools.values()}
        self._gone: dict[str, RunningJob] = {}
        self._known: dict[str, tuple[list[RunningJob], list[RunningJob]]] = {}
        """Per pool what runs there: those past their minimum, by preference, and the others, by start."""
        self._gives: dict[str, _Asked] = {}
        """Per pool, whether a leaf may have to give something to another one."""
        self._giving: dict[str, tuple[list[RunningJob], list[RunningJob]]] = {}
        """What runs of those that may, until somebody is imagined gone or started."""
        self._come: list[tuple[QueuedJob, Pool, Found]] = []
        self._coming: Counter[tuple[str, str]] = Counter()
        """By queue and pool, what imagined starts use: nobody is beyond its guarantee by what it has not started."""
        self._replaced: Counter[tuple[str, str]] = Counter()
        """By queue and pool, what leaves for a claim of the same queue: it is used as before when that has started."""
        self._unsettled: Counter[str] = Counter()
        """By pool, nodes nominated to claimants who would not even fit there with everybody gone who is to go."""
        self._yielding = state.yielding.copy()
        self.matures_ms: int | None = None
        """When the next victim that a claim could use is past its minimum run time."""
        nominations = state.promises.nominations.by_job.values()
        self._replaced.update(replaced(state))
        leaving = {victim for known in nominations for victim in known.victims}
        leaving.update(state.leaving)
        for job_id in sorted(leaving):
            if job_id in state.running:
                self._lift(state.running[job_id])
        for known in nominations:
            for victim_id in known.victims:
                self._yielding.note(victim_id, known.job_id)
            queued, pool = state.queued[known.job_id], state.capacity.pools[known.pool]
            found = find(queued.shape, pool, ~known.nodes)
            if found is not None:
                self._settle(queued, pool, found)
            else:
                self._unsettled[pool.model] |= known.nodes

    def undo(self) -> None:
        """Take everything back, the last first."""
        for queued, pool, found in reversed(self._come):
            job = queued.job
            self._state.capacity.give(as_placements(found), job.cpu_milli, job.memory_mib)
            self._state.queues.charge(queued.leaf, pool.model, -job.devices_milli, self._now_ms)
        self._come.clear()
        for running in reversed(list(self._gone.values())):
            self._lower(running)
        for pool, freed in self._freed.items():
            pool.freed = freed

    def plan(self, claim: QueuedJob) -> Outcome | None:
        """The fewest victims past their minimum; else, for a claim inside its guarantee, the soonest ripe ones.

        The plan stays imagined, so that the next claim sees it.
        """
        best: tuple[Outcome, _Attempt, Found] | None = None
        for pool in claim.shape.pools:
            guaranteed = in_guarantee(claim, pool)
            if not guaranteed and not self._state.preemptible_running:
                continue
            ripe, green = self._candidates(claim, pool)
            found = self._attempt(claim, pool, self._by_preference(ripe, claim, pool), guaranteed=guaranteed)
            if found is None and guaranteed and green:
                both = sorted([*ripe, *green], key=lambda one: (one.started_ms, one.job.id))
                both = self._causes_last(both, claim)
                found = self._attempt(claim, pool, both, guaranteed=True)
            if found is None:
                continue
            if found[0].due_ms is None:
                best = found
                break
            if best is None or found[0].due_ms < (best[0].due_ms or 0):
                best = found
        if best is None:
            return None
        outcome, attempt, place = best
        for victim in outcome.victims:
            self._lift(victim)
            self._yielding.note(victim.job.id, claim.job.id)
            for level in common(victim.leaf, claim.leaf):
                self._replaced[level.name, outcome.pool] += victim.job.devices_milli
        self._reconsider(claim, outcome)
        self._settle(claim, attempt.pool, place)
        return outcome

    def _reconsider(self, claim: QueuedJob, outcome: Outcome) -> None:
        """What these leaves may have to give is another question once the outcome is imagined."""
        self._giving.clear()
        for gives in self._gives.values():
            if self._state.queues.bounded:
                gives.clear()
            for leaf in (claim.leaf, *(victim.leaf for victim in outcome.victims)):
                gives.pop(leaf, None)

    # -- who may be stopped ------------------------------------------------------------------------------

    def _candidates(self, claim: QueuedJob, pool: Pool) -> tuple[list[RunningJob], list[RunningJob]]:
        """Running jobs of the pool some rule might give up: those past their minimum, and the others.

        The first by preference: preemptible ones, low priorities, the latest started; the others by start.
        """
        model, mine = pool.model, claim.leaf
        if model not in self._known:
            self._known[model] = self._running_in(model)
            self._gives[model] = _Asked(lambda leaf: self._may_give(leaf, model))
        gives = self._gives[model]
        if self._state.preemptible_running:
            ripe, green = self._of(_Asked(lambda leaf: leaf is mine or gives[leaf]), model)
        else:
            if model not in self._giving:
                self._giving[model] = self._of(gives, model)
            ripe, green = ([one for one in rows if one.leaf is not mine] for rows in self._giving[model])
        if green:
            matures_ms = green[0].started_ms + self._state.settings.min_run_ms
            self.matures_ms = matures_ms if self.matures_ms is None else min(self.matures_ms, matures_ms)
        return ripe, green

    def _of(self, gives: "_Asked", model: str) -> tuple[list[RunningJob], list[RunningJob]]:
        """What still runs of the leaves that give."""
        gone, (ripe, green) = self._gone, self._known[model]
        return (
            [one for one in ripe if gives[one.leaf] and one.job.id not in gone],
            [one for one in green if gives[one.leaf] and one.job.id not in gone],
        )

    def _running_in(self, model: str) -> tuple[list[RunningJob], list[RunningJob]]:
        latest_ms = self._now_ms - self._state.settings.min_run_ms
        rows = [one for one in self._state.running.values() if one.pool == model]
        ripe = [one for one in rows if one.started_ms <= latest_ms]
        ripe.sort(key=lambda one: (not one.job.preemptible, one.job.priority, -one.started_ms, one.job.id))
        green = [one for one in rows if one.started_ms > latest_ms]
        green.sort(key=lambda one: (one.started_ms, one.job.id))
        return ripe, green

    def _may_give(self, leaf: QueueState, model: str) -> bool:
        return self._is_borrowing((leaf,), model) or self._beyond_bound(leaf, model)

    def _is_borrowing(self, levels: tuple[QueueState, ...], model: str) -> bool:
        """Whether each of these queues has more of the pool than its guarantee, what it does not lend included."""
        coming, known = self._coming, self._replaced
        for level in levels:
            used = level.effective.get(model, level.used.get(model, 0))
            more_milli = coming.get((level.name, model), 0)
            if more_milli:
                used -= max(0, more_milli - known.get((level.name, model), 0))
            if used <= level.quota(model).guarantee_milli:
                return False
        return True

    def _by_preference(self, rows: list[RunningJob], claim: QueuedJob, pool: Pool) -> list[RunningJob]:
        """Users of what stood idle first, else in their order."""
        if self._state.queues.bounded:
            beyond = _Asked(lambda leaf: self._beyond_bound(leaf, pool.model))
            rows = sorted(rows, key=lambda one: not beyond[one.leaf])
        return self._causes_last(rows, claim)

    def _causes_last(self, rows: list[RunningJob], claim: QueuedJob) -> list[RunningJob]:
        """Those for whom the claimant has made way itself last: only a guarantee may turn that round."""
        if claim.job.id not in self._yielding:
            return rows
        return sorted(rows, key=lambda one: self._yielding.leads(claim.job.id, one.job.id))

    def _reason(self, attempt: _Attempt, victim: RunningJob) -> str | None:
        """The rule by which the claim may stop the job as things are imagined, or None."""
        claim, model = attempt.claim, attempt.pool.model
        job = claim.job
        levels = apart(victim.leaf, claim.leaf)
        if levels and victim.covered:
            return None  # its queue's guarantee is its own: who came later, beyond it, has to go first
        if (
            levels
            and self._is_borrowing(levels, model)
            and self._state.queues.guarantees(claim.leaf, victim.leaf, model, job.devices_milli)
            and (attempt.guaranteed or not self._yielding.leads(job.id, victim.job.id))
        ):
            return GUARANTEE
        if not victim.job.preemptible or self._is_spared(claim, victim):
            return None
        if not levels:
            if victim.job.priority < job.priority:
                return PRIORITY
        elif self._is_borrowing(levels, model) and self._is_fairer(claim, victim, model):
            return FAIRNESS
        return BORROWING if (levels or not job.preemptible) and self._is_excess(victim, model) else None

    def _is_spared(self, claim: QueuedJob, victim: RunningJob) -> bool:
        """Whether it has been evicted often enough, or the claimant has itself made way for it."""
        state = self._state
        if state.evictions_of[victim.job.id] >= state.settings.evictions_per_job_max:
            return True
        return self._yielding.leads(claim.job.id, victim.job.id)

    # -- trying victims ----------------------------------------------------------------------------------

    def _attempt(
        self, claim: QueuedJob, pool: Pool, rows: list[RunningJob], *, guaranteed: bool
    ) -> tuple[Outcome, _Attempt, Found] | None:
        """Imagine victims gone in order until the claim has room and quota, then take back whom it can spare."""
        attempt = _Attempt(claim, pool, guaranteed, self._barred(claim, pool, guaranteed=guaranteed), [], {})
        found: Found | None = None
        for _ in range(ATTEMPTS_MAX):
            found = self._take_until_it_fits(attempt, rows, guaranteed=guaranteed)
            if found is None:
                break
            self._spare(attempt, found)
            without_right = self._first_without_right(attempt)
            if without_right is None:
                found = self._fit(attempt)
                break
            found = None  # once the others are gone nothing speaks for this one: the claim must do without it
            rows = [one for one in rows if one is not without_right]
            self._put_back(attempt)
        outcome = None
        if found is not None and (guaranteed or attempt.taken):
            outcome = self._outcome(attempt, found)
        for victim in reversed(attempt.taken):
            self._lower(victim)
        return None if outcome is None or found is None else (outcome, attempt, found)

    def _put_back(self, attempt: _Attempt) -> None:
        """Imagine all of its victims back."""
        for victim in reversed(attempt.taken):
            self._lower(victim)
        attempt.taken.clear()
        attempt.reasons.clear()

    def _barred(self, claim: QueuedJob, pool: Pool, *, guaranteed: bool) -> int:
        """Nodes the claim may not use: reserved ones, and those promised to a claim as strong as itself."""
        job, promises = claim.job, self._state.promises
        end_ms = self._now_ms + job.time_limit_ms
        barred = promises.reserved_from(pool.model, job.id, self._now_ms, end_ms) | self._unsettled[pool.model]
        promise = promises.by_pool.get(pool.model)
        if promise is None or promise.job_id == job.id or promise.from_ms >= end_ms:
            return barred
        holder = self._state.queued.get(promise.job_id)
        if holder is None or promise.job_id in promises.nominations.by_job:
            return barred  # what has been nominated to it takes the promise's place
        if guaranteed and job.id in self._inside and overrides(self._state, claim, holder, pool):
            return barred
        return barred | promise.nodes

    def _fit(self, attempt: _Attempt) -> Found | None:
        claim, pool = attempt.claim, attempt.pool
        found = find(claim.shape, pool, attempt.barred)
        if found is None:
            return None
        refusal = self._state.queues.refusal
        milli = claim.job.devices_milli
        there_milli = usable_milli(self._state, pool)
        refused = refusal(claim.leaf, pool.model, milli, there_milli, opportunistic=False)
        return found if refused is None else None

    def _take_until_it_fits(
        self, attempt: _Attempt, rows: list[RunningJob], *, guaranteed: bool
    ) -> Found | None:
        found = self._fit(attempt) if guaranteed else None  # only then may a promise have been in its way
        grown = True
        while found is None and grown:
            grown = False
            skipped: list[RunningJob] = []
            for victim in rows:
                reason = self._reason(attempt, victim)
                if reason is None or (reason != GUARANTEE and not self._is_ripe(victim)):
                    skipped.append(victim)
                    continue
                self._lift(victim)
                attempt.taken.append(victim)
                attempt.reasons[victim.job.id] = reason
                grown = True
                found = self._fit(attempt)
                if found is not None:
                    break
            rows = skipped
        return found

    def _spare(self, attempt: _Attempt, found: Found) -> None:
        """Take back everybody who need not go: first all who are elsewhere, then one by one, the last first."""
        nodes = {state.node.name for state, _ in found}
        elsewhere = [one for one in attempt.taken if not any(part.node in nodes for part in one.placements)]
        self._can_do_without(attempt, elsewhere)
        for victim in sorted(attempt.taken, key=lambda one: (-one.started_ms, one.job.id)):
            self._can_do_without(attempt, [victim])

    def _can_do_without(self, attempt: _Attempt, victims: list[RunningJob]) -> bool:
        """Put these back if the claim then still has room, quota and a right to all the others."""
        for victim in victims:
            self._lower(victim)
            attempt.taken.remove(victim)
        if self._fit(attempt) is not None and self._first_without_right(attempt) is None:
            return True
        for victim in victims:
            self._lift(victim)
            attempt.taken.append(victim)
        return False

    def _first_without_right(self, attempt: _Attempt) -> RunningJob | None:
        """The first one taken that no rule gives up any more once the others are gone."""
        for victim in list(attempt.taken):
            self._lower(victim)
            reason = self._reason(attempt, victim)
            self._lift(victim)
            if reason is None or (reason != GUARANTEE and not self._is_ripe(victim)):
                return victim
            attempt.reasons[victim.job.id] = reason
        return None

    def _outcome(self, attempt: _Attempt, found: Found) -> Outcome:
        victims = tuple(sorted(attempt.taken, key=lambda one: one.job.id))
        reason = attempt.reasons[victims[0].job.id] if victims else GUARANTEE
        nodes = 0
        for state, _ in found:
            nodes |= state.bit
        names, taken = {state.node.name for state, _ in found}, {one.job.id for one in victims}
        beside = tuple(
            one
            for name, one in self._gone.items()
            if name not in taken and any(part.node in names for part in one.placements)
        )
        green_ms = [
            one.started_ms for one in (*victims, *beside) if not one.evicted_for and not self._is_ripe(one)
        ]
        due_ms = max(green_ms) + self._state.settings.min_run_ms if green_ms else None
        return Outcome(attempt.pool.model, victims, beside, reason, nodes, due_ms)

    def _is_ripe(self, running: RunningJob) -> bool:
        return running.started_ms + self._state.settings.min_run_ms <= self._now_ms

    # -- imagining ---------------------------------------------------------------------------------------

    def _lift(self, victim: RunningJob) -> None:
        """Imagine the victim gone."""
        job = victim.job
        self._gone[job.id] = victim
        self._state.capacity.give(victim.placements, job.cpu_milli, job.memory_mib)
        self._state.queues.charge(victim.leaf, victim.pool, -job.devices_milli, self._now_ms)

    def _lower(self, victim: RunningJob) -> None:
        """Take the imagination back."""
        job = victim.job
        self._gone.pop(job.id, None)
        self._state.capacity.take(victim.placements, job.cpu_milli, job.memory_mib)
        self._state.queues.charge(victim.leaf, victim.pool, job.devices_milli, self._now_ms)

    def _settle(self, queued: QueuedJob, pool: Pool, found: Found) -> None:
        """Imagine the claimant started."""
        job = queued.job
        self._state.capacity.take(as_placements(found), job.cpu_milli, job.memory_mib)
        self._state.queues.charge(queued.leaf, pool.model, job.devices_milli, self._now_ms)
        self._come.append((queued, pool, found))
        for level in queued.leaf.ancestry:
            self._coming[level.name, pool.model] += job.devices_milli

    def _runs_milli(self, level: QueueState, model: str) -> int:
        return level.used.get(model, 0) - self._coming[level.name, model]

    def _beyond_bound(self, leaf: QueueState, model: str) -> bool:
        """Whether what runs in the leaf's queues exceeds a borrow limit of one of them."""
        return self._state.queues.bounded and any(
            bound is not None and self._runs_milli(level, model) > bound
            for level, bound in ((level, level.bound(model)) for level in leaf.ancestry)
        )

    def _is_excess(self, victim: RunningJob, model: str) -> bool:
        """Whether a queue of its is beyond its borrow limit and was so with its start already."""
        return victim.exceeding > 0 and any(
            victim.exceeding >> depth & 1 and self._runs_milli(level, model) > (level.bound(model) or 0)
            for depth, level in enumerate(victim.leaf.ancestry)
        )

    def _is_fairer(self, claim: QueuedJob, victim: RunningJob, model: str) -> bool:
        """Whether the claimant's weighted use with the claim is strictly below the victim's without the victim."""
        mine, theirs = apart(claim.leaf, victim.leaf)[0], apart(victim.leaf, claim.leaf)[0]
        after = (mine.used.get(model, 0) + claim.job.devices_milli) * theirs.quota(model).weight
        before = (self._runs_milli(theirs, model) - victim.job.devices_milli) * mine.quota(model).weight
        return after < before


def apart(leaf: QueueState, other: QueueState) -> tuple[QueueState, ...]:
    """The queues on the way to a leaf that are not on the way to the other one, the highest first."""
    shared = sum(1 for mine, theirs in zip(leaf.ancestry, other.ancestry, strict=False) if mine is theirs)
    return leaf.ancestry[shared:]


def common(leaf: QueueState, other: QueueState) -> tuple[QueueState, ...]:
    """The queues on the way to both leaves, the root first."""
    return leaf.ancestry[: len(leaf.ancestry) - len(apart(leaf, other))]


def replaced(state: SchedulerState) -> Counter[tuple[str, str]]:
    """By queue and pool, what leaves for nominated claims of the same queue; each job counts once."""
    found: Counter[tuple[str, str]] = Counter()
    counted: set[tuple[str, str]] = set()
    for known in state.promises.nominations.by_job.values():
        claimant = state.queued[known.job_id]
        for victim in (state.running[name] for name in known.victims if name in state.running):
            for level in common(victim.leaf, claimant.leaf):
                if (level.name, victim.job.id) not in counted:
                    counted.add((level.name, victim.job.id))
                    found[level.name, known.pool] += victim.job.devices_milli
    return found


def in_guarantee(claim: QueuedJob, only: Pool | None = None) -> bool:
    """Whether some level of its queue guarantees the claim (in this pool, or in any it may use)."""
    milli = claim.job.devices_milli
    return any(
        level.tier(pool.model, milli) is Tier.GUARANTEED
        for pool in ((only,) if only else claim.shape.pools)
        for level in claim.leaf.ancestry
    )
