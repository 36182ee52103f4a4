"""One scheduling cycle: order, quota, place, backfill, preempt.

`plan_cycle` decides and leaves the state as it was; the controller commits the plan in the database and then
feeds the events. `run_cycle` decides and applies at once, which is what the simulator does.
Invariant: equal states and times give equal plans.
"""

from typing import Final

from scheduler.policy.capacity import Pool
from scheduler.policy.contest import Contest, may_still_start
from scheduler.policy.model import Eviction, Plan, Start
from scheduler.policy.pending import Entry, JobClass, QueuedJob, goes_before, turn_has_come
from scheduler.policy.placement import Found, as_placements
from scheduler.policy.placing import fits_somewhere, gone_before, gone_before_at_most, place, place_nominee
from scheduler.policy.preemption import CLAIMS_MAX, find_evictions, may_evict, renew_lapsed
from scheduler.policy.promises import Promise, earliest
from scheduler.policy.queues import QueueState
from scheduler.policy.rights import allowed_pools
from scheduler.policy.settings import Backfill
from scheduler.policy.shapes import Shape
from scheduler.policy.state import SchedulerState

_RESERVED: Final = Backfill.RESERVED  # looking a member up by its name costs as much as a small function
_NO_BACKFILL: Final = Backfill.NONE

CONTESTS_MAX: Final = 8
"""How often one cycle offers what is free again because a promise was redeemed or moved."""


def plan_cycle(state: SchedulerState, now_ms: int) -> Plan:
    """What to start and whom to evict now. The state is left as it was, except that time has passed in it."""
    state.wake(now_ms)
    if not state.pending.classes and not state.arrived:
        return _nothing_waits(state, now_ms)
    cycle = Cycle(state, now_ms)
    plan = cycle.run()
    cycle.undo()
    return plan


def run_cycle(state: SchedulerState, now_ms: int) -> Plan:
    """The same plan, with its starts applied to the state."""
    state.wake(now_ms)
    if not state.pending.classes and not state.arrived:
        return _nothing_waits(state, now_ms)
    cycle = Cycle(state, now_ms)
    plan = cycle.run()
    cycle.settle()
    return plan


def _nothing_waits(state: SchedulerState, now_ms: int) -> Plan:
    """There is nothing to decide."""
    return Plan(now_ms, (), (), state.next_alarm_ms())


class Cycle:
    """The working memory of one cycle; what was waiting for the time has been woken."""

    def __init__(self, state: SchedulerState, now_ms: int) -> None:
        self.state = state
        self.now_ms = now_ms
        self.starts: list[Start] = []
        self._begun: list[QueuedJob] = []
        self._unserved: list[QueuedJob] = []
        self._hindered: dict[Shape, int] = {}
        """Shapes a promise stands in the way of, and how long a job of it may last to be gone before."""
        self._some_hindered = False
        """Whether one stands in the way of a job without doing so for all of its shape."""
        self._redeemed = False
        self._vacant: dict[Pool, QueuedJob] = {}
        """Pools that promise nothing yet, and the first job known not to fit there."""
        self._may_evict = may_evict(state)
        self._nominated = dict(state.promises.nominations.by_job)

    def run(self) -> Plan:
        """The pipeline.

        1. Start whom a promise is due to and whom others have made room for.
        2. Order: queues by tier and weighted share, at every level of the tree; inside a queue by priority and
           latest turn.
        3. Quota: a claim beyond a bound of any level waits.
        4. Place: the whole gang or nothing, never on nodes promised to somebody before its limit ends.
        5. Backfill: the first job that does not fit is promised nodes; what ends before may use them.
        6. Preempt: for entitled claims that are still waiting.
        """
        state = self.state
        if not self._start_alone():
            state.enlist_arrived()
            if state.promises.nominations.by_job:
                promised = dict(state.promises.by_pool)
                if self._may_evict:
                    renew_lapsed(state, self.now_ms)
                self._start_nominees(planned=False)
                self._make_up(promised)
            if state.promises.by_pool:
                self._start_promised()
            self._hold_contests()
        evictions: tuple[Eviction, ...] = ()
        next_wake_ms = state.next_alarm_ms()
        if self._may_evict:
            evictions, wake_ms = self._preempt()
            if wake_ms is not None and (next_wake_ms is None or wake_ms < next_wake_ms):
                next_wake_ms = wake_ms
        return Plan(self.now_ms, tuple(self.starts), evictions, next_wake_ms)

    def _preempt(self) -> tuple[tuple[Eviction, ...], int | None]:
        """Whom to stop, and when to look again; a promise that gave way to a nomination is a chance for others."""
        state = self.state
        promised = dict(state.promises.by_pool)
        evictions, wake_ms = find_evictions(state, self._unserved, self.now_ms)
        self._start_nominees(planned=True)
        if self._make_up(promised):
            self._hindered.clear()
            self._hold_contests()
        return evictions, wake_ms

    def _start_alone(self) -> bool:
        """Start the only job that waits if nothing is promised and it fits: then there is no turn to ask for."""
        state = self.state
        promises = state.promises
        if len(state.queued) != 1 or promises.by_pool or promises.nominations.by_job:
            return False
        queued = next(iter(state.queued.values()))
        shape = queued.shape
        shape.resolve(state.capacity)
        if not queued.ready or not shape.may_fit():
            return False
        placed = place(state, queued, allowed_pools(state, queued), self.now_ms)[0]
        if placed is None:
            return False
        state.arrived.clear()
        self._start(queued, *placed)
        return True

    def _hold_contests(self) -> None:
        for _ in range(CONTESTS_MAX):
            if not self._hold_contest():
                return
            self._hindered.clear()  # whom the promise hindered may go now

    def _hold_contest(self) -> bool:
        """Offer what is free to everybody in turn; whether a promise that hindered somebody was redeemed or moved."""
        self._redeemed = False
        shapes = self._fitting_shapes()
        if not shapes:
            if self._vacant:
                self._fill_vacancies(None, 0)
            return False
        contest = Contest(self.state, self.now_ms, shapes, self._hindered)
        narrowed = False
        while (leaf := contest.next_leaf()) is not None:
            if not narrowed and len(self._hindered) >= len(shapes):
                if all(self._hindered.get(shape) == 0 for shape in shapes):
                    break  # nothing of any shape fits any more, whoever asks
                claims = self._may_evict and len(self._unserved) < CLAIMS_MAX
                keep = None if self._vacant or claims else may_still_start(self.state, shapes, self._hindered)
                if keep is not None:
                    contest.narrow(keep)
                    narrowed = True
                    continue
            job_class, entry = contest.head_of(leaf)
            if self._vacant:
                self._fill_vacancies(entry, job_class.priority)
            self._consider(contest, leaf, job_class, entry)
            if narrowed and not self._hindered:
                break  # a promise was redeemed: what it hindered is offered to everybody again
        if self._vacant:
            self._fill_vacancies(None, 0)
        return self._redeemed

    def settle(self) -> None:
        """The starts are for good: let go of places in line, so that jobs gone are no circles for the collector."""
        for queued in self._begun:
            queued.entry = None

    def undo(self) -> None:
        """Take every start back, the last first."""
        state = self.state
        for queued in reversed(self._begun):
            state.stop(queued.job.id, self.now_ms)
            state.queued[queued.job.id] = queued
            state.pending.enlist(queued)
            queued.ready = True
        kept = state.promises.nominations.by_job
        begun = {queued.job.id for queued in self._begun}
        before = {name: known for name, known in self._nominated.items() if name in kept or name in begun}
        state.promises.nominations.restore({**before, **kept})

    def _start_promised(self) -> None:
        """Start every holder of a hard promise that fits, sooner or on time, whoever is ahead of it in its class."""
        state = self.state
        for model, promise in list(state.promises.by_pool.items()):
            queued = state.queued.get(promise.job_id)
            if queued is None or not queued.ready or queued.entry is None:
                continue
            if not promise.hard and not turn_has_come(queued.entry[0], self.now_ms):
                continue  # its turn has not come: it goes in its order
            pool = state.capacity.pools[model]
            if pool in allowed_pools(self.state, queued):
                placed = place(self.state, queued, (pool,), self.now_ms)[0]
                if placed is not None:
                    self._start(queued, *placed)

    def _start_nominees(self, *, planned: bool) -> None:
        """Start every claimant whose room is there; void a nomination that nobody is leaving for any more."""
        state = self.state
        nominations = state.promises.nominations
        for known in list(nominations.by_job.values()):
            queued, pool = state.queued[known.job_id], state.capacity.pools[known.pool]
            pools = allowed_pools(self.state, queued)
            if queued.ready and pool in pools:
                placed = place_nominee(state, queued, pool, pools, self.now_ms)
                if placed is not None:
                    self._start(queued, *placed)
                    continue
            if not nominations.awaits_any(known.pool, state.running):
                if planned or not self._may_evict:
                    nominations.forget(known.job_id)
                else:  # what it counts on stays kept until it is planned for anew, in this cycle
                    nominations.make(known._replace(due_ms=self.now_ms))

    def _make_up(self, promised: dict[str, Promise]) -> bool:
        """Promise anew what was hard and gave way to a guarantee, before others are asked; whether any gave way."""
        state = self.state
        void = [held for model, held in promised.items() if model not in state.promises.by_pool]
        for model, held in promised.items():
            if held in void and held.hard and held.job_id in state.queued:
                self._promise(state.queued[held.job_id], (state.capacity.pools[model],))
        return bool(void)

    def _fitting_shapes(self) -> list[Shape]:
        """Shapes that fit now; the first job of those that do not is promised nodes."""
        state = self.state
        capacity = state.capacity
        arrived, state.arrived = state.arrived, []
        found: list[Shape] = []
        if state.settings.backfill is _NO_BACKFILL:
            for shape in state.pending.by_shape:
                shape.resolve(capacity)
                found.append(shape)
            return found
        freed, version = False, capacity.shape_version
        for shape in state.pending.by_shape:
            pools = shape.pools if shape.pools_version == version else shape.resolve(capacity)
            if shape.freed_seen == (pools[0].freed if len(pools) == 1 else shape.freed_now()):
                continue
            if shape.scored or fits_somewhere(shape):
                found.append(shape)
            else:
                shape.does_not_fit()
                freed = True
        if state.settings.backfill is _RESERVED:
            self._promise_to_first(arrived, freed=freed)
        return found

    def _promise_to_first(self, arrived: list[QueuedJob], *, freed: bool) -> None:
        """Promise nodes of each pool to the first job in order whose shape does not fit.

        A promise stays with its holder until that starts; an earlier job that arrives takes it over.
        """
        state = self.state
        by_pool = state.promises.by_pool
        for queued in arrived:
            if queued.ready and queued.entry is not None and not queued.shape.may_fit():
                self._claim(queued)
                pools = allowed_pools(self.state, queued, once_free=True)
                self._promise(queued, tuple([pool for pool in pools if pool.model in by_pool]))
                freed = freed or len(by_pool) < len(state.capacity.pools)
        for model, pool in state.capacity.pools.items():
            held = by_pool.get(model)
            if held is not None and held.job_id in state.queued:
                if held.freed != pool.freed or not held.hard:
                    self._promise(state.queued[held.job_id], (pool,))
            elif freed:
                self._vacate(pool)

    def _vacate(self, pool: Pool) -> None:
        """Nobody holds the pool's promise: the first that does not fit is due it, unless an earlier one fails, too."""
        first = self._first_unfit(pool)
        if first is not None:
            self._vacant[pool] = first

    def _fill_vacancies(self, entry: Entry | None, priority: int) -> None:
        """Promise what is vacant to those who come before the job that is considered next (None: nobody is left)."""
        for pool, first in list(self._vacant.items()):
            if pool.model in self.state.promises.by_pool or first.entry is None or first.home is None:
                del self._vacant[pool]
            elif entry is None or goes_before(first, priority, entry):
                del self._vacant[pool]
                if pool in allowed_pools(self.state, first, once_free=True):
                    self._promise(first, (pool,))

    def _first_unfit(self, pool: Pool) -> QueuedJob | None:
        """The first job in order whose shape is known not to fit in the pool, or not beside what is promised.

        Its queue is the one whose turn comes first; priorities count within that queue only.
        """
        best: Entry | None = None
        pending = self.state.pending
        for shape in list(pending.by_order):
            if self._is_unfit(shape, pool):
                entry = pending.first_of(shape, lambda queued: self._due(queued, pool))
                if entry is not None and (best is None or entry < best):
                    best = entry
        if best is None:
            return None
        first = best[3]
        for shape, classes in pending.by_leaf[first.leaf].items():
            for job_class in classes:
                higher = job_class.priority > first.job.priority and self._is_unfit(shape, pool)
                entry = job_class.head() if higher else None
                if entry is not None and self._due(entry[3], pool):
                    first = entry[3]
        return first

    def _is_unfit(self, shape: Shape, pool: Pool) -> bool:
        """Whether jobs of the shape could run in the pool, but are known not to fit now."""
        if pool not in shape.pools or shape.possible == ():
            return False
        return not shape.may_fit() or shape in self._hindered

    def _due(self, queued: QueuedJob, pool: Pool) -> bool:
        return pool in allowed_pools(self.state, queued, once_free=True)

    def _consider(self, contest: Contest, leaf: QueueState, job_class: JobClass, entry: Entry) -> None:
        queued, shape = entry[3], job_class.shape
        over = contest.passed_over(job_class) if shape in self._hindered else self._is_full(shape)
        pools = () if over else allowed_pools(self.state, queued)
        if not pools:
            self._pass_over(queued, entry)
            contest.drop(leaf, job_class)
            return
        hindered = False
        if shape.may_fit():
            aside = self._set_aside(queued, entry, pools)
            if aside and self._hinders():
                self._redeemed = True
            placed, hindered = place(self.state, queued, pools, self.now_ms)
            if placed is not None:
                self._start(queued, *placed)
                for holder, pool in aside:
                    self._promise(holder, (pool,))
                contest.advance(leaf)
                return
            self._note_failure(queued, pools, hindered=hindered)
        self._claim(queued)
        if self.state.settings.backfill is _NO_BACKFILL:
            contest.close(leaf)
            return
        if self.state.settings.backfill is _RESERVED:
            self._promise(queued, pools)
        # Those behind it may fit where it does not: shorter ones, or those for whom something is reserved.
        longest_ms = gone_before(self.state, queued, pools, self.now_ms) if hindered else 0
        if not contest.line_up(leaf, job_class, queued, longest_ms):
            contest.drop(leaf, job_class)

    def _note_failure(self, queued: QueuedJob, pools: tuple[Pool, ...], *, hindered: bool) -> None:
        shape = queued.shape
        if pools is not shape.pools:  # its queue may use some of them only: that says nothing of others
            self._some_hindered = self._some_hindered or hindered
        elif hindered:
            self._hindered[shape] = gone_before_at_most(self.state, queued, pools, self.now_ms)
        else:
            shape.does_not_fit()
            self._hindered[shape] = 0

    def _hinders(self) -> bool:
        """Whether somebody may start if a promise no longer stands."""
        return self._some_hindered or any(self._hindered.values())

    def _is_full(self, shape: Shape) -> bool:
        """Whether no pool has so many slots free at all; then nobody's job of this shape can start."""
        if self.state.settings.backfill is _NO_BACKFILL:
            return False
        demand = shape.demand_milli
        for pool in shape.pools:
            if pool.free_milli >= demand:
                return False
        shape.does_not_fit()
        self._hindered[shape] = 0
        return True

    def _set_aside(
        self, queued: QueuedJob, entry: Entry, pools: tuple[Pool, ...]
    ) -> list[tuple[QueuedJob, Pool]]:
        """Void soft promises to jobs that come after this one; they get new ones when it has its place."""
        state = self.state
        if not state.promises.by_pool:
            return []
        later: list[tuple[QueuedJob, Pool]] = []
        for pool in pools:
            held = state.promises.by_pool.get(pool.model)
            if held is None or held.hard or held.job_id == queued.job.id:
                continue
            if not self._before(held.job_id, queued, entry):
                del state.promises.by_pool[pool.model]
                if held.job_id in state.queued:
                    later.append((state.queued[held.job_id], pool))
        return later

    def _claim(self, queued: QueuedJob) -> None:
        if self._may_evict and queued.shape.pools and len(self._unserved) < CLAIMS_MAX:
            self._unserved.append(queued)

    def _promise(self, queued: QueuedJob, pools: tuple[Pool, ...]) -> bool:
        """Promise nodes to a job that does not fit; false when earlier ones hold the promises."""
        promises, job = self.state.promises, queued.job
        entry = queued.entry
        made = False
        for pool in pools:
            held = promises.by_pool.get(pool.model)
            if entry is None or (
                held is not None
                and held.job_id != job.id
                and (held.hard or self._before(held.job_id, queued, entry))
            ):
                continue
            hard = turn_has_come(entry[0], self.now_ms)
            if held is not None and held.job_id == job.id and self._stands(held, pool):
                if hard != held.hard:
                    promises.make(pool.model, held._replace(hard=hard))
                made = True
                continue
            found = earliest(queued.shape, pool, promises, job.id, self.now_ms, job.time_limit_ms)
            if found is not None:
                beside = held is not None and held.job_id != job.id  # worked out beside the one it replaces
                again = beside or bool(promises.spans) or bool(promises.nominations.by_job)
                moved = -1 if again else pool.moved
                promises.make(pool.model, Promise(job.id, found[1], found[0], hard, pool.freed, moved))
                self._redeemed = self._redeemed or (beside and self._hinders())
                made = True
        return made

    def _stands(self, held: Promise, pool: Pool) -> bool:
        """Whether a promise worked out before would come to the same now."""
        promises = self.state.promises
        return (
            held.moved == pool.moved
            and held.from_ms >= self.now_ms
            and not promises.nominations.by_job
            and not promises.spans
        )

    def _pass_over(self, queued: QueuedJob, entry: Entry) -> None:
        """Nobody of the class fits or may start now; its head may still be due a promise."""
        self._claim(queued)
        if self.state.settings.backfill is _RESERVED and self._deserves_promise(queued, entry):
            self._promise(queued, allowed_pools(self.state, queued, once_free=True))

    def _deserves_promise(self, queued: QueuedJob, entry: Entry) -> bool:
        """Whether some pool promises nothing yet, or to somebody who comes later."""
        promises = self.state.promises.by_pool
        for pool in queued.shape.pools:
            held = promises.get(pool.model)
            if held is None or not (held.hard or self._before(held.job_id, queued, entry)):
                return True
        return False

    def _before(self, job_id: str, queued: QueuedJob, entry: Entry) -> bool:
        """Whether a job that holds a promise still goes before this one."""
        holder = self.state.queued.get(job_id)
        if holder is None or holder.entry is None or not holder.ready:
            return False
        if holder.leaf is not queued.leaf:
            return True
        return (-holder.job.priority, holder.entry[:3]) < (-queued.job.priority, entry[:3])

    def _start(self, queued: QueuedJob, pool: Pool, found: Found) -> None:
        state, job = self.state, queued.job
        whole = queued.shape.whole
        for node, pieces in found:
            if whole:
                pool.take_whole(node, len(pieces))
            else:
                for piece in pieces:
                    pool.take(node, piece)
            node.cpu_free_milli -= job.cpu_milli
            node.memory_free_mib -= job.memory_mib
        placements = as_placements(found)
        state.unready(queued)
        del state.queued[job.id]
        promises = state.promises
        redeemed: list[str] = []
        if promises.by_pool or promises.nominations.by_job:
            redeemed = [model for model, promise in promises.by_pool.items() if promise.job_id == job.id]
            if redeemed or promises.nominations.by_job:
                promises.forget(job.id)
        state.begin(queued, placements, self.now_ms)
        self.starts.append(Start(job.id, placements))
        self._begun.append(queued)
        if redeemed:
            self._redeemed = self._redeemed or self._hinders()
            for model in redeemed:
                self._vacate(state.capacity.pools[model])
            self._hindered.clear()
