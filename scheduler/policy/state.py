"""Everything the policy knows, kept up to date by events; the database's truth, derived and rebuildable.

The controller rebuilds it at start by replaying events from the database in a fixed order and feeds it one
event for each committed change; the simulator feeds it directly. No method does I/O or reads a clock.
Invariant: a job is in exactly one of `queued` and `running`.
"""

from collections import Counter
from collections.abc import Container, Iterable
from copy import copy
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from scheduler.policy.boards import Boards
from scheduler.policy.capacity import Capacity, NodeState
from scheduler.policy.congestion import Congestion
from scheduler.policy.errors import DuplicateJob, MalformedJob, UnknownJob, UnknownModel
from scheduler.policy.model import WHOLE_MILLI, Eviction, Job, Node, Placement, Queue, Reservation, Start
from scheduler.policy.nominations import Nomination
from scheduler.policy.ordering import Sizes
from scheduler.policy.pending import SMALL, Pending, QueuedJob
from scheduler.policy.prediction import Predictor
from scheduler.policy.promises import Promises
from scheduler.policy.queues import QueueState, QueueTree
from scheduler.policy.settings import SCORES_ALWAYS, Order, PolicySettings
from scheduler.policy.shapes import Shape, Shapes
from scheduler.policy.yielding import Yielding

_TURN: Final = Order.TURN


@dataclass(slots=True)
class RunningJob:
    """A job that holds slices.

    Attributes:
        covered: whether its queue was inside its own guarantee when it started. What starts later counts after it,
            so it is covered as long as it runs, and what a queue has covered never exceeds its guarantee.
        exceeding: the levels of its queue, as bits from the root on, beyond whose bound it was when it started.
    """

    job: Job
    leaf: QueueState
    shape: Shape
    pool: str
    placements: tuple[Placement, ...]
    started_ms: int
    ends_by_ms: int
    predicted_ms: int
    evicted_for: str = ""
    covered: bool = False
    exceeding: int = 0


class _JobsOf(Container[object]):
    """The ids named, and those of a tenant's waiting jobs, whichever they are when it is asked."""

    def __init__(self, state: "SchedulerState", tenant: str, named: Container[object]) -> None:
        self._state = state
        self._tenant = tenant
        self._named = named

    def __contains__(self, job_id: object) -> bool:
        if job_id in self._named:
            return True
        known = self._state.queued.get(str(job_id))
        return known is not None and known.job.tenant == self._tenant


def _has_shrunk(state: NodeState, before: Node, healthy_mask: int) -> bool:
    """Whether the node offers less of anything than it did."""
    now = state.node
    return (
        not state.opened
        or healthy_mask & ~state.healthy_mask != 0
        or now.cpu_milli < before.cpu_milli
        or now.memory_mib < before.memory_mib
        or now.topology != before.topology
        or now.network != before.network
    )


class SchedulerState:
    """Nodes, queues, waiting and running jobs.

    Args:
        queues: all queues; jobs may be queued at the leaves.
        settings: the policy's rules.

    Raises:
        UnknownQueue, CyclicQueues: when the queues do not form a tree.
    """

    def __init__(self, queues: Iterable[Queue], settings: PolicySettings | None = None) -> None:
        self.settings = settings or PolicySettings()
        self.capacity = Capacity()
        self.queues = QueueTree(queues)
        self.pending = Pending()
        self.shapes = Shapes(always_scored=self.settings.placement in SCORES_ALWAYS)
        self.predictor = Predictor()
        self.sizes = Sizes()
        self.congestion = Congestion()
        self.queued: dict[str, QueuedJob] = {}
        self.running: dict[str, RunningJob] = {}
        self.held: set[str] = set()
        self.succeeded: set[str] = set()
        self.failed: set[str] = set()
        self.preemptible_running = 0
        self.leaving: dict[str, None] = {}
        """Running jobs that have been told to stop."""
        self.arrived: list[QueuedJob] = []
        """What became ready since the last cycle."""
        self.array_running: Counter[str] = Counter()
        self.evictions_of: Counter[str] = Counter()
        self.claims_of: Counter[str] = Counter()
        """How often others were told to stop for a job."""
        self.yielding = Yielding()
        self.promises = Promises()
        self.boards = Boards(self.capacity, self.settings.placement)
        self._awaiting: dict[str, set[str]] = {}
        self._alarms: list[tuple[int, str]] = []
        self._sequence = 0

    def queue_added(self, queue: Queue) -> None:
        """A queue more; nothing that is known of the others is lost. Raises UnknownQueue, DuplicateQueue."""
        self.queues.add(queue)

    def inherit(self, before: "SchedulerState") -> None:
        """Begin with what an earlier state had learned, which no node, queue or live job says."""
        self.predictor = before.predictor
        self.sizes = copy(before.sizes)
        self.congestion.inherit(before.congestion)
        self.succeeded = set(before.succeeded)
        self.failed = set(before.failed)

    def recall(self, before: "SchedulerState") -> None:
        """After live jobs and evictions were replayed: counts and past use are those of the earlier state."""
        self.evictions_of = Counter(before.evictions_of)
        self.claims_of = Counter(before.claims_of)
        self.yielding = before.yielding.copy()
        self.queues.inherit(before.queues)

    # -- nodes ---------------------------------------------------------------------------------------

    def node_joined(self, node: Node) -> None:
        """A node is there, for the first time or again, with these devices."""
        known = self.capacity.nodes.get(node.name)
        before = None if known is None else (known.node, known.healthy_mask)
        state = self.capacity.join(node)
        self.yielding.forget()
        if before is not None and state is known and _has_shrunk(state, *before):
            self._withdraw(state)

    def node_drained(self, name: str) -> None:
        """The node takes no new jobs. Raises UnknownNode."""
        state = self.capacity.state_of(name)
        state.pool.close(state)
        self._withdraw(state)

    def node_resumed(self, name: str) -> None:
        """The node takes jobs again. Raises UnknownNode."""
        state = self.capacity.state_of(name)
        state.pool.open(state)

    def node_left(self, name: str) -> tuple[str, ...]:
        """The node is gone; returns the jobs on it, whose ends the caller reports when they are confirmed."""
        state = self.capacity.state_of(name)
        state.pool.close(state)
        self._withdraw(state)
        self.yielding.forget()
        return tuple(
            sorted(
                running.job.id
                for running in self.running.values()
                if any(placement.node == name for placement in running.placements)
            )
        )

    def _withdraw(self, state: NodeState) -> None:
        """What was promised or is being cleared on the node is void, and looked for elsewhere by the next cycle."""
        self.promises.node_lost(state.pool.model, state.bit)
        state.pool.freed += 1

    def reservations_changed(self, reservations: Iterable[Reservation], now_ms: int) -> None:
        """These are all there are from now on. What was promised on their nodes is promised anew."""
        self.promises.unreserve()
        for reservation in sorted(reservations):
            self.reserved(reservation)
            for name in reservation.nodes:
                node = self.capacity.nodes.get(name)
                if node is not None and now_ms < reservation.to_ms:
                    self.promises.node_lost(node.pool.model, node.bit)
        for pool in self.capacity.pools.values():
            pool.freed += 1

    def reserved(self, reservation: Reservation) -> None:
        """Nodes are promised away for a span: an advance reservation or a drain."""
        tenant = reservation.for_tenant
        for_jobs = _JobsOf(self, tenant, reservation.for_jobs) if tenant else reservation.for_jobs
        self.promises.reserve(reservation, for_jobs, self.capacity.nodes)
        heappush(self._alarms, (reservation.from_ms, ""))
        heappush(self._alarms, (reservation.to_ms, ""))

    def capacities(self) -> dict[str, int]:
        """Milli-slots of every pool's open nodes."""
        return {model: pool.capacity_milli for model, pool in self.capacity.pools.items()}

    # -- waiting jobs --------------------------------------------------------------------------------

    def job_queued(self, job: Job, now_ms: int | None = None) -> None:
        """A job waits, for the first time or for another attempt.

        Raises:
            DuplicateJob: it is already here.
            UnknownQueue, QueueIsNotALeaf, UnknownModel, MalformedJob: it cannot be meant.
        """
        if job.id in self.queued or job.id in self.running:
            raise DuplicateJob(field="id", job=job.id)
        leaf = self.queues.leaf(job.queue)
        shape = self.shapes.known(job)
        if shape is None or job.time_limit_ms < 1:  # what else there is to check is the shape's
            self._check(job)
            shape = self.shapes.of(job)
        self._sequence += 1
        now = job.submitted_ms if now_ms is None else now_ms
        queued = QueuedJob(job, leaf, shape, self._sequence, now)
        self.queued[job.id] = queued
        leaf.tenants.add(job.tenant)
        if shape.scored:
            self.boards.mix.see(shape)
        if job.depends_on:
            for needed in job.depends_on:
                if needed not in self.succeeded:
                    self._awaiting.setdefault(needed, set()).add(job.id)
        if job.not_before_ms > now:
            heappush(self._alarms, (job.not_before_ms, job.id))
        self._make_ready(queued, now)

    def _check(self, job: Job) -> None:
        possible = (
            job.nodes >= 1
            and job.devices_per_node >= 0
            and 1 <= job.slots_milli <= WHOLE_MILLI
            and job.time_limit_ms >= 1
            and job.tail_devices >= 0
        )
        if not possible:
            self._refuse(job)
        for model in job.models:
            if model not in self.capacity.pools:
                known = ", ".join(sorted(self.capacity.pools)) or "none"
                raise UnknownModel(field="models", model=model, known=known)

    @staticmethod
    def _refuse(job: Job) -> None:
        facts = (
            ("nodes", job.nodes, job.nodes >= 1, "at least 1"),
            ("devices_per_node", job.devices_per_node, job.devices_per_node >= 0, "not negative"),
            ("slots_milli", job.slots_milli, 1 <= job.slots_milli <= WHOLE_MILLI, "from 1 to 1000"),
            ("time_limit_ms", job.time_limit_ms, job.time_limit_ms >= 1, "at least 1"),
            ("tail_devices", job.tail_devices, job.tail_devices >= 0, "not negative"),
        )
        for field, value, possible, why in facts:
            if not possible:
                raise MalformedJob(field=field, value=value, job=job.id, why=f"it must be {why}")

    def _make_ready(self, queued: QueuedJob, now_ms: int) -> None:
        job = queued.job
        if queued.ready or job.id in self.held or job.not_before_ms > now_ms:
            return
        if job.depends_on and not all(needed in self.succeeded for needed in job.depends_on):
            return
        queued.ready = True
        if job.attempt == 1:
            self.yielding.forget()
        queued.predicted_ms = self.predict_ms(job)
        queued.give_place(self.order_key(queued))
        self.arrived.append(queued)
        if self.settings.order is _TURN:
            queued.shape.resolve(self.capacity)
            self.congestion.arrived(queued, now_ms)

    def predict_ms(self, job: Job) -> int:
        """What ordering believes the job will run."""
        if self.settings.learns:
            return self.predictor.predict_ms(job)
        return min(job.time_limit_ms, job.estimate_ms or job.time_limit_ms)

    def order_key(self, queued: QueuedJob) -> int:
        """The job's size in the policy's order; smaller goes first, first come first among equals."""
        order = self.settings.order
        if order is _TURN:
            max_wait_ms = queued.leaf.queue.max_wait_ms
            job, wide_milli = queued.job, queued.shape.demand_milli
            turn_ms, small = self.sizes.turn_of(job.submitted_ms, wide_milli, queued.predicted_ms, max_wait_ms)
            return SMALL + turn_ms if small and max_wait_ms is None else turn_ms
        if order is Order.SUBMITTED:
            return 0
        if order is Order.DURATION:
            return queued.predicted_ms
        return queued.predicted_ms * max(1, queued.job.devices_milli)

    def job_withdrawn(self, job_id: str) -> None:
        """The job no longer waits. Raises UnknownJob."""
        queued = self.waiting(job_id)
        self.congestion.left(queued)
        self._take_out(queued)

    def job_held(self, job_id: str) -> None:
        """The job keeps waiting and does not start until it is released. Raises UnknownJob."""
        queued = self.waiting(job_id)
        self.held.add(job_id)
        self.promises.nominations.forget(job_id)
        self.congestion.left(queued)
        self.unready(queued)

    def job_released(self, job_id: str, now_ms: int) -> None:
        """Take back a hold. Raises UnknownJob."""
        self.held.discard(job_id)
        self._make_ready(self.waiting(job_id), now_ms)

    def waiting(self, job_id: str) -> QueuedJob:
        """The queued job of that id. Raises UnknownJob."""
        queued = self.queued.get(job_id)
        if queued is None:
            raise UnknownJob(field="job_id", job=job_id, expected="queued")
        return queued

    def unready(self, queued: QueuedJob) -> None:
        """The job is no longer one that may start."""
        home = queued.home
        if home is not None:
            home.drop(queued)
            if not home.size:
                self.pending.forget_empty(home)
        queued.ready = False

    def _take_out(self, queued: QueuedJob) -> None:
        self.unready(queued)
        queued.entry = None
        del self.queued[queued.job.id]
        self.held.discard(queued.job.id)
        self.promises.forget(queued.job.id)

    # -- running jobs --------------------------------------------------------------------------------

    def allocation_started(self, start: Start, now_ms: int) -> None:
        """The job holds these slices from now on.

        Raises:
            UnknownJob: it is not queued. SliceTaken: somebody else holds one of them.
        """
        queued = self.waiting(start.job_id)
        job = queued.job
        self.capacity.take(start.placements, job.cpu_milli, job.memory_mib)
        self._take_out(queued)
        self.begin(queued, start.placements, now_ms)

    def begin(self, queued: QueuedJob, placements: tuple[Placement, ...], now_ms: int) -> RunningJob:
        """Account for a job whose slices are already taken and which no longer waits."""
        job = queued.job
        pool = self.capacity.nodes[placements[0].node].pool.model
        running = RunningJob(
            job,
            queued.leaf,
            queued.shape,
            pool,
            placements,
            now_ms,
            now_ms + job.time_limit_ms,
            queued.predicted_ms,
        )
        self.running[job.id] = running
        facts = (running.ends_by_ms, job.cpu_milli, job.memory_mib)
        nodes = self.capacity.nodes
        for name, pieces in placements:
            nodes[name].move_in(job.id, pieces, facts, now_ms + queued.predicted_ms)
        self.queues.charge(queued.leaf, pool, queued.shape.demand_milli, now_ms)
        if not self.queues.plain:
            running.covered, running.exceeding = self.queues.standing(queued.leaf, pool)
        self.queues.count(queued.leaf, job.user, 1)
        self.preemptible_running += job.preemptible
        if job.array_id:
            self.array_running[job.array_id] += 1
        return running

    def allocation_ended(self, job_id: str, now_ms: int, *, succeeded: bool) -> Job:
        """The job holds nothing any more; another attempt is queued by the caller. Raises UnknownJob."""
        running = self.stop(job_id, now_ms)
        job = running.job
        if not running.evicted_for:
            self.yielding.forget()
        self.congestion.ended(job_id, now_ms - running.started_ms)
        if succeeded:
            self.predictor.learn(job, now_ms - running.started_ms)
            self.job_succeeded(job_id, now_ms)
        return job

    def stop(self, job_id: str, now_ms: int) -> RunningJob:
        """Take a running job out of every account. Raises UnknownJob."""
        running = self.running.pop(job_id, None)
        if running is None:
            raise UnknownJob(field="job_id", job=job_id, expected="running")
        job = running.job
        self.leaving.pop(job_id, None)
        nodes = self.capacity.nodes
        for name, _ in running.placements:
            nodes[name].move_out(job_id)
        self.capacity.give(running.placements, job.cpu_milli, job.memory_mib)
        self.queues.charge(running.leaf, running.pool, -running.shape.demand_milli, now_ms)
        self.queues.count(running.leaf, job.user, -1)
        self.preemptible_running -= job.preemptible
        if job.array_id:
            self.array_running[job.array_id] -= 1
        return running

    def eviction_ordered(self, eviction: Eviction) -> None:
        """A running job has been told to stop for another one. Raises UnknownJob."""
        running = self.running.get(eviction.job_id)
        if running is None:
            raise UnknownJob(field="job_id", job=eviction.job_id, expected="running")
        running.evicted_for = eviction.for_job_id
        self.leaving[eviction.job_id] = None
        self.yielding.note(eviction.job_id, eviction.for_job_id)
        self.evictions_of[eviction.job_id] += 1
        if eviction.for_job_id not in self.queued:
            return
        known = self.promises.nominations.by_job.get(eviction.for_job_id)
        if known is None or known.due_ms is not None:
            self.claims_of[eviction.for_job_id] += 1
        nodes, victims = (0, ()) if known is None else (known.nodes, known.victims)
        if eviction.job_id not in victims:
            victims = (*victims, eviction.job_id)
            for placement in running.placements:
                nodes |= self.capacity.nodes[placement.node].bit
        self.promises.nominate(Nomination(eviction.for_job_id, running.pool, nodes, victims, None))

    def job_succeeded(self, job_id: str, now_ms: int) -> None:
        """Jobs that depend on it may go (also used at a rebuild, for jobs that ended before)."""
        self.succeeded.add(job_id)
        if job_id not in self._awaiting:
            return
        for waiting in sorted(self._awaiting.pop(job_id)):
            if waiting in self.queued:
                self._make_ready(self.queued[waiting], now_ms)

    def job_failed(self, job_id: str) -> None:
        """It will not be tried again; jobs that depend on it never start and say so."""
        self.failed.add(job_id)

    # -- time ----------------------------------------------------------------------------------------

    def wake(self, now_ms: int) -> None:
        """Let jobs whose not-before has come be candidates, and promote those that wait long."""
        while self._alarms and self._alarms[0][0] <= now_ms:
            _, job_id = heappop(self._alarms)
            if not job_id:
                for pool in self.capacity.pools.values():
                    pool.freed += 1
            elif job_id in self.queued:
                self._make_ready(self.queued[job_id], now_ms)
        for queued, key in self.congestion.due(now_ms, self.capacity.pools, self.running):
            if queued.ready:
                self.pending.promote(queued, key)
                self.arrived.append(queued)

    def enlist_arrived(self) -> None:
        """Let what became ready since the last cycle wait among the others."""
        for queued in self.arrived:
            if queued.ready and queued.home is None:
                self.pending.enlist(queued)

    def next_alarm_ms(self) -> int | None:
        """When `wake` next has something to do."""
        return self._alarms[0][0] if self._alarms else None
