"""The policy's picture of the live cluster, kept in step with the database.

The database is the truth. Whatever changed since the last look is read in a few narrow queries, none of them per job,
and fed to the policy as events; a controller that has just become leader starts from an empty picture and so replays
everything, with what tenants used and how long jobs ran before (`history.py`). A job the policy cannot take, or that
makes it fail, is set aside with a sentence and stops nobody else.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from kernel.bulk import among, run
from kernel.changes import Loose
from kernel.clock import unix_ms
from kernel.errors import HubError
from kernel.prepared import Prepared
from scheduler.controller.history import learn_durations, recent_use
from scheduler.controller.picture import (
    Centre,
    Device,
    centre_of,
    machine_of,
    placements_of,
    seen_now,
)
from scheduler.controller.poison import find_poison
from scheduler.controller.watching import Step
from scheduler.dependencies import succeeded_among
from scheduler.policy.cycle import plan_cycle
from scheduler.policy.model import Eviction, Job, Node, Placement, Plan, Queue, Reservation, Start
from scheduler.policy.settings import PolicySettings
from scheduler.policy.state import SchedulerState
from scheduler.tables import JobRow

_POISON_MAX: Final = 16
"""Jobs set aside in one cycle; more at once is not a matter of single jobs."""

_Versions = Mapping[UUID, tuple[int, int]]
"""By job, its attempt and revision in the database."""

_LIVE: Final = b"""
SELECT id, state, attempt, revision, stop_reason, evicted_for FROM jobs
 WHERE ended_at IS NULL ORDER BY queued_at, array_index, id
"""
_JOB: Final = Loose(
    JobRow,
    *(
        "id",
        "tenant_id",
        "submitted_by",
        "name",
        "models",
        "min_pflops_milli",
        "node_count",
        "devices_per_node",
    ),
    *(
        "slots_milli",
        "cpu_milli",
        "memory_mib",
        "time_limit_ms",
        "priority",
        "preemptible",
        "topology",
        "network",
    ),
    *("not_before", "depends_on", "array_id", "array_running_max", "held", "retry_at", "evictions"),
    *("attained_ms", "revision", "queued_at", "attempt", "placed_at"),
)
_NEW: Final = Prepared(
    select(*_JOB.columns)
    .where(among(JobRow.id, bindparam("jobs")))
    .order_by(JobRow.queued_at, JobRow.array_index, JobRow.id)
)

_BATCH: Final = 500
"""Jobs taken in between two statements: the server ends a transaction that idles for longer than a leader's lease."""

_SHELF_MS_MAX: Final = 60_000

_SLEWED_MS: Final = 1000
"""A clock that is only corrected goes back by less."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Known:
    """A job in the picture: its version in the database, and what it holds if it runs."""

    version: tuple[int, int]
    job: Job
    held: bool = False
    evictions: int = 0
    start: Start | None = None
    began_ms: int = 0


@dataclass(frozen=True)
class _Shelved:
    until_ms: int
    pause_ms: int


class LiveState:
    """Owns a SchedulerState and the knowledge of what it already contains."""

    def __init__(self, settings: PolicySettings, queues: Sequence[Queue] = ()) -> None:
        self._settings = settings
        self._queues = {queue.name: queue for queue in queues}
        self._shelved: dict[UUID, _Shelved] = {}
        self._seen_ms = 0
        self.set_aside: dict[UUID, str] = {}
        self._nodes: dict[str, Node] = {}
        self._known: dict[UUID, _Known] = {}
        self._remembers = False
        self._ends: dict[UUID, bool] = {}
        self._kept: tuple[tuple[Reservation, ...], tuple[str, ...]] = ((), ())
        self.devices: dict[tuple[str, int], Device] = {}
        self.policy = SchedulerState(queues, settings)

    def shelve(self, job_id: UUID, now_ms: int, pause_ms: int) -> None:
        """Keep a waiting job out of the picture for a while, so that it blocks nobody; longer every time."""
        before = self._shelved.get(job_id)
        pause = pause_ms if before is None else min(2 * before.pause_ms, _SHELF_MS_MAX)
        self._shelved[job_id] = _Shelved(now_ms + pause, pause)

    def is_shelved(self, job_id: UUID, now_ms: int) -> bool:
        """Whether a waiting job is out of the picture for now; no longer than meant when the clock was set back."""
        kept = self._shelved.get(job_id)
        return kept is not None and kept.until_ms - kept.pause_ms <= now_ms < kept.until_ms

    def is_as_seen(self, job: JobRow) -> bool:
        """Whether nobody has changed what a job waits for since it was taken into the picture."""
        known = self._known.get(job.id)
        return known is not None and known.version == (job.attempt, job.revision)

    def moved(self, steps: Iterable[Step]) -> None:
        """Hear what became of jobs until the next look, which need not ask for it then."""
        for step in steps:
            if step.name in {"ended", "requeued"}:
                self._ends[step.job_id] = step.name == "ended" and step.outcome == "succeeded"

    def refresh(self, session: Session, now_ms: int, answering: AbstractSet[str]) -> None:
        """Bring the picture up to the database. Only nodes that answer are offered to new jobs."""
        if now_ms < self._seen_ms - _SLEWED_MS:
            self._begin_anew()  # the clock was set back, and nobody waits that long for the time it had shown
        self._seen_ms = now_ms
        live = run(session, _LIVE, ())
        ids = {job_id for job_id, *_ in live}
        self._shelved = {job_id: kept for job_id, kept in self._shelved.items() if job_id in ids}
        self.set_aside = {job_id: why for job_id, why in self.set_aside.items() if job_id in ids}
        left_out = self.set_aside.keys() | {
            job_id for job_id in self._shelved if self.is_shelved(job_id, now_ms)
        }
        queued, running, evicted = dict[UUID, tuple[int, int]](), dict[UUID, tuple[int, int]](), {}
        for job_id, state, attempt, revision, stop_reason, evicted_for in live:
            if state != "queued":
                running[job_id] = attempt, revision
            # A cancelled job that still waits must not be placed, a running one keeps its slices until it is dead.
            elif stop_reason is None and job_id not in left_out:
                queued[job_id] = attempt, revision
            if evicted_for is not None:
                evicted[job_id] = evicted_for
        centre = centre_of(session, answering, now_ms)
        self.devices, nodes = centre.devices, centre.nodes
        self._forget(session, queued, running, now_ms)
        self._take_in(nodes, frozenset())
        if not self._remembers:
            learn_durations(session, self.policy)
        self._learn(session, queued, running, now_ms)
        self._order_evictions(evicted)
        self._renew(nodes)
        self._reserve(centre, now_ms)
        if not self._remembers:
            self._remember_use(session, now_ms)
            self._remembers = True

    def plan(self, now_ms: int) -> Plan:
        """Plan a cycle; whatever single job makes the policy fail is set aside and the others go on."""
        for _ in range(_POISON_MAX):
            try:
                return plan_cycle(self.policy, now_ms)
            except Exception as error:
                waiting = [job_id for job_id, known in sorted(self._known.items()) if known.start is None]
                culprit = find_poison(waiting, lambda some: self._fails(some, now_ms))
                if culprit is None:
                    raise
                _log.exception("job_set_aside", job=str(culprit))
                self._put_aside(culprit, f"the scheduler fails on it ({type(error).__name__}: {error})")
                self._rebuild()
        message = f"the policy fails on more than {_POISON_MAX} jobs"
        raise RuntimeError(message)

    def _begin_anew(self) -> None:
        """Know nothing, so that everything is taken in as it is now."""
        self._nodes, self._known, self._remembers, self._kept = {}, {}, False, ((), ())
        self.policy = SchedulerState(tuple(self._queues.values()), self._settings)

    def _fails(self, waiting: Sequence[UUID], now_ms: int) -> bool:
        try:
            plan_cycle(self._replay(waiting), now_ms)
        except Exception:  # noqa: BLE001 - whether it fails is the question
            return True
        return False

    def _put_aside(self, job_id: UUID, why: str) -> None:
        self.set_aside[job_id] = f"set aside, because {why}; the operator has been told"
        self._known.pop(job_id, None)

    def _forget(self, session: Session, queued: _Versions, running: _Versions, now_ms: int) -> None:
        waited = [
            job_id
            for job_id, known in self._known.items()
            if known.start is None and queued.get(job_id) != known.version
        ]
        ran = [
            job_id
            for job_id, known in self._known.items()
            if known.start is not None and running.get(job_id) != known.version
        ]
        gone = (*waited, *ran)
        succeeded = succeeded_among(session, [job_id for job_id in gone if job_id not in self._ends])
        succeeded |= {job_id for job_id in gone if self._ends.get(job_id)}
        self._ends = {}
        for job_id in waited:
            self.policy.job_withdrawn(str(job_id))
            del self._known[job_id]
            if job_id in succeeded:  # it came and went between two looks
                self.policy.job_succeeded(str(job_id), now_ms)
        for job_id in ran:
            self.policy.allocation_ended(str(job_id), now_ms, succeeded=job_id in succeeded)
            del self._known[job_id]

    def _take_in(self, nodes: Sequence[Node], tenants: AbstractSet[str]) -> None:
        """Make room for new nodes and tenants. Queues are never taken away, so no history is lost with them."""
        for tenant in sorted(tenants - self._queues.keys()):
            self._queues[tenant] = Queue(tenant)
            self.policy.queue_added(self._queues[tenant])
        for node in nodes:
            if node.name not in self._nodes:
                self._nodes[node.name] = node
                self.policy.node_joined(_all_healthy(node))

    def _remember_use(self, session: Session, now_ms: int) -> None:
        """Seed fair share with what tenants used before this controller led, those included that now ask nothing."""
        half_lives = {name: state.half_life_ms for name, state in self.policy.queues.states.items()}
        use = recent_use(session, now_ms, half_lives)
        self._take_in((), {tenant for tenant, _ in use})
        for (tenant, model), milli in use.items():
            self.policy.queues.remember(self.policy.queues.leaf(tenant), model, milli, now_ms)

    def _order_evictions(self, evicted_for: Mapping[UUID, UUID]) -> None:
        """Tell the policy which running jobs have been told to stop for which others."""
        for job_id, claimant in sorted(evicted_for.items()):
            running = self.policy.running.get(str(job_id))
            if running is not None and not running.evicted_for:
                self.policy.eviction_ordered(Eviction(str(job_id), str(claimant), ""))

    def _renew(self, nodes: Sequence[Node]) -> None:
        """Health and openness come last: what runs on a device that has just become unhealthy keeps it.

        A node whose last device of a model is now another's takes no more jobs, or the card would be given out twice.
        """
        there = {node.name for node in nodes}
        gone = [known for name, known in self._nodes.items() if name not in there]
        for node in (*nodes, *(replace(_all_healthy(one), schedulable=False) for one in gone)):
            known = self.policy.capacity.nodes.get(node.name)
            if known is None or known.node != node:
                self.policy.node_joined(node)
            self._nodes[node.name] = node

    def _reserve(self, centre: Centre, now_ms: int) -> None:
        """Tell the policy what is kept for whom, when that or the nodes there are have changed."""
        kept = (centre.reservations, tuple(node.name for node in centre.nodes) if centre.reservations else ())
        if kept != self._kept:
            self._kept = kept
            self.policy.reservations_changed(centre.reservations, now_ms)

    def _rebuild(self) -> None:
        self.policy = self._replay([job_id for job_id, known in self._known.items() if known.start is None])

    def _replay(self, waiting: Iterable[UUID]) -> SchedulerState:
        """A new picture of what is known, with only these of the waiting jobs."""
        state = SchedulerState(self._queues.values(), self._settings)
        state.inherit(self.policy)
        for node in self._nodes.values():
            state.node_joined(_all_healthy(node))
        for _, known in sorted(self._known.items()):
            if known.start is not None:
                state.job_queued(known.job)
                state.allocation_started(known.start, known.began_ms)
        for node in self._nodes.values():
            state.node_joined(node)
        for reservation in self._kept[0]:
            state.reserved(reservation)
        for job_id in sorted(waiting):
            self._enqueue(state, self._known[job_id])
        for running in self.policy.running.values():
            if running.evicted_for:
                state.eviction_ordered(Eviction(running.job.id, running.evicted_for, ""))
        state.recall(self.policy)
        return state

    @staticmethod
    def _enqueue(state: SchedulerState, known: _Known) -> None:
        state.job_queued(known.job)
        if known.held:
            state.job_held(known.job.id)
        if known.evictions:
            state.evictions_of[known.job.id] = known.evictions

    def _learn(self, session: Session, queued: _Versions, running: _Versions, now_ms: int) -> None:
        new = [
            job_id
            for job_id in (*queued, *running)
            if job_id not in self._known and job_id not in self.set_aside
        ]
        for first in range(0, len(new), _BATCH):
            self._learn_some(session, new[first : first + _BATCH], running, now_ms)

    def _learn_some(self, session: Session, new: Sequence[UUID], running: _Versions, now_ms: int) -> None:
        rows = _JOB.rows(_NEW(session, jobs=new))
        self._take_in((), {str(row.tenant_id) for row in rows})
        for needed in succeeded_among(session, list({needed for row in rows for needed in row.depends_on})):
            self.policy.job_succeeded(str(needed), now_ms)
        placements = placements_of(session, [row.id for row in rows if row.id in running], self.devices)
        for row in rows:
            known = _Known((row.attempt, row.revision), seen_now(row, now_ms), row.held, row.evictions)
            if row.id in running:
                began = now_ms if row.placed_at is None else min(unix_ms(row.placed_at), now_ms)
                known = replace(known, start=Start(str(row.id), placements[row.id]), began_ms=began)
            try:
                self._add(known)
            except HubError as refusal:
                _log.error("job_set_aside", job=str(row.id), code=refusal.code, reason=str(refusal))
                self._put_aside(row.id, str(refusal))
            else:
                self._known[row.id] = known

    def _add(self, known: _Known) -> None:
        self._enqueue(self.policy, known)
        if known.start is None:
            return
        try:
            self.policy.allocation_started(known.start, known.began_ms)
        except HubError:
            self.policy.job_withdrawn(known.job.id)
            raise


def machines_of(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """The same placements with the machines' own names."""
    return tuple(Placement(machine_of(placement.node), placement.devices) for placement in placements)


def _all_healthy(node: Node) -> Node:
    return replace(node, devices=tuple(replace(device, healthy=True) for device in node.devices))
