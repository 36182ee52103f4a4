"""From a simulation to the plain facts that the independent judge reads."""

from collections.abc import Iterable

from scheduler.policy.capacity import Pool
from scheduler.policy.model import Queue, Reservation, Topology
from scheduler.policy.settings import Backfill, PolicySettings
from scheduler.simulator.engine import Outcome, Simulation
from scheduler.simulator.workload import Cluster, TraceJob
from tests.scheduler.validity import (
    Asked,
    Attempt,
    Bound,
    Kept,
    Log,
    Machine,
    Nominated,
    Piece,
    Promised,
    Stop,
)

FOREVER = 2**62


class Watched(Simulation):
    """A simulation that writes down, after every cycle, whom it told to stop and what it promised to whom."""

    def __init__(
        self, cluster: Cluster, jobs: tuple[TraceJob, ...], queues: tuple[Queue, ...], rules: PolicySettings
    ) -> None:
        super().__init__(cluster, jobs, queues, rules)
        self.facts = (cluster, queues, jobs)
        self.promised: list[Promised] = []
        self.nominated: list[Nominated] = []
        self.stops: dict[tuple[str, int], Stop] = {}
        self.cycles_ms: dict[int, None] = {}

    def _plan(self, now: int) -> None:
        super()._plan(now)
        self.cycles_ms[now] = None
        promises, pools = self.state.promises, self.state.capacity.pools
        for model, one in promises.by_pool.items():
            nodes = names(pools[model], one.nodes)
            self.promised.append(Promised(now, one.job_id, model, nodes, one.from_ms, one.hard))
        for known in promises.nominations.by_job.values():
            self.nominated.append(Nominated(now, known.job_id, names(pools[known.pool], known.nodes)))
        for running in self.state.running.values():
            key = (running.job.id, running.job.attempt)
            if running.evicted_for and key not in self.stops:
                self.stops[key] = Stop(now, *key, running.evicted_for)

    def log(self) -> Log:
        """Run it and tell the facts."""
        outcome = self.run()
        cluster, queues, jobs = self.facts
        settings = self.state.settings
        return Log(
            machines_of(cluster),
            tuple(map(bound_of, queues)),
            tuple(asked_of(one) for one in jobs),
            attempts_of(outcome),
            settings.min_run_ms,
            settings.grace_ms,
            tuple(kept_of(one, jobs) for one in cluster.reservations),
            tuple(self.promised),
            tuple(self.nominated),
            tuple(self.stops.values()),
            tuple(self.cycles_ms),
            settings.backfill is Backfill.RESERVED,
            frozenset(outcome.impossible),
        )


def names(pool: Pool, bits: int) -> frozenset[str]:
    return frozenset(state.node.name for state in pool.states if state.bit & bits)


def kept_of(reservation: Reservation, jobs: Iterable[TraceJob]) -> Kept:
    """A reservation, for the jobs it names and those of the tenant it names."""
    tenant = reservation.for_tenant
    owned = {one.job.id for one in jobs if tenant and one.job.tenant == tenant}
    return Kept(reservation.nodes, reservation.from_ms, reservation.to_ms, reservation.for_jobs | owned)


def machines_of(cluster: Cluster) -> tuple[Machine, ...]:
    lost: dict[str, list[tuple[int, int]]] = {}
    for failure in cluster.failures:
        lost.setdefault(failure.node, []).append((failure.at_ms, failure.back_ms or FOREVER))
    return tuple(
        Machine(
            node.name,
            node.model,
            len(node.devices),
            node.cpu_milli,
            node.memory_mib,
            tuple(lost.get(node.name, ())),
            node.topology,
            node.pflops_milli,
        )
        for node in cluster.nodes
    )


def bound_of(queue: Queue) -> Bound:
    return Bound(
        queue.name,
        queue.parent,
        {
            model: quota.guarantee_milli + quota.borrow_milli
            for model, quota in queue.quotas.items()
            if quota.borrow_milli is not None
        },
        queue.running_max,
        queue.user_running_max,
        {model: quota.guarantee_milli for model, quota in queue.quotas.items()},
        {
            model: max(0, quota.guarantee_milli - quota.lend_milli)
            for model, quota in queue.quotas.items()
            if quota.lend_milli is not None
        },
        queue.max_wait_ms,
    )


def asked_of(trace_job: TraceJob) -> Asked:
    job = trace_job.job
    return Asked(
        job=job.id,
        queue=job.queue,
        submitted_ms=job.submitted_ms,
        limit_ms=job.time_limit_ms,
        models=job.models,
        nodes=job.nodes,
        devices=job.devices_per_node,
        slots=job.slots_milli,
        cpu_milli=job.cpu_milli,
        memory_mib=job.memory_mib,
        tail=job.tail_devices,
        depends_on=job.depends_on,
        not_before_ms=job.not_before_ms,
        user=job.user,
        array=job.array_id,
        array_max=job.array_running_max,
        priority=job.priority,
        preemptible=job.preemptible,
        same_switch=job.topology is Topology.SAME_SWITCH,
        pflops_milli=job.min_pflops_milli,
    )


def attempts_of(outcome: Outcome) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            run.job.id,
            run.job.attempt,
            run.start_ms,
            run.end_ms,
            run.end_reason,
            tuple(placement.node for placement in run.placements),
            tuple(Piece(placement.node, *piece) for placement in run.placements for piece in placement.devices),
        )
        for run in outcome.runs
    )


def judged(
    cluster: Cluster, jobs: Iterable[TraceJob], queues: Iterable[Queue], rules: PolicySettings
) -> tuple[Log, Watched]:
    """The facts of one run, and the simulation that made them."""
    watched = Watched(cluster, tuple(jobs), tuple(queues), rules)
    return watched.log(), watched
