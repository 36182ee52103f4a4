"""From a simulation's outcome to the plain facts that the independent judge reads."""

from collections.abc import Iterable

from scheduler.policy.model import Queue
from scheduler.simulator.engine import Outcome
from scheduler.simulator.workload import Cluster, TraceJob
from tests.scheduler.validity import Asked, Attempt, Bound, Log, Machine, Piece

FOREVER = 2**62


def log_of(
    cluster: Cluster, queues: Iterable[Queue], jobs: Iterable[TraceJob], outcome: Outcome, min_run_ms: int = 0
) -> Log:
    lost: dict[str, list[tuple[int, int]]] = {}
    for failure in cluster.failures:
        lost.setdefault(failure.node, []).append((failure.at_ms, failure.back_ms or FOREVER))
    return Log(
        tuple(
            Machine(
                node.name,
                node.model,
                len(node.devices),
                node.cpu_milli,
                node.memory_mib,
                tuple(lost.get(node.name, ())),
            )
            for node in cluster.nodes
        ),
        tuple(
            Bound(
                queue.name,
                queue.parent,
                {
                    model: quota.guarantee_milli + quota.borrow_milli
                    for model, quota in queue.quotas.items()
                    if quota.borrow_milli is not None
                },
                queue.running_max,
            )
            for queue in queues
        ),
        tuple(
            Asked(
                job.id,
                job.queue,
                job.submitted_ms,
                job.time_limit_ms,
                job.models,
                job.nodes,
                job.devices_per_node,
                job.slots_milli,
                job.cpu_milli,
                job.memory_mib,
                job.tail_devices,
                job.depends_on,
                job.not_before_ms,
            )
            for job, _ in jobs
        ),
        tuple(
            Attempt(
                run.job.id,
                run.job.attempt,
                run.start_ms,
                run.end_ms,
                run.end_reason,
                tuple(placement.node for placement in run.placements),
                tuple(
                    Piece(placement.node, *piece) for placement in run.placements for piece in placement.devices
                ),
            )
            for run in outcome.runs
        ),
        min_run_ms,
    )
