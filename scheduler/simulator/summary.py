"""What a run amounts to, in the figures people compare: waiting, completion, slowdown, utilisation."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from scheduler.policy.model import WHOLE_MILLI, Job
from scheduler.simulator.engine import PREEMPTED, Outcome
from scheduler.simulator.workload import Cluster

_SLOWDOWN_FLOOR_MS: Final = 10_000
"""Bounded slowdown counts no job as shorter than this (Feitelson)."""


class Finished(NamedTuple):
    """A job from its submission over its first start to its last end."""

    job: Job
    queue_ms: int
    completion_ms: int
    ran_ms: int


def finished_jobs(outcome: Outcome) -> list[Finished]:
    """Every job that ended for good, in the order of its end."""
    first: dict[str, int] = {}
    rows: dict[str, Finished] = {}
    for run in outcome.runs:
        start = first.setdefault(run.job.id, run.start_ms)
        submitted = run.job.submitted_ms
        rows[run.job.id] = Finished(
            run.job, start - submitted, run.end_ms - submitted, run.end_ms - run.start_ms
        )
    return [row for job_id, row in rows.items() if job_id not in outcome.unstarted]


def percentile(ordered: list[int], percent: int) -> int:
    """The nearest-rank percentile of a sorted list; 0 of an empty one."""
    if not ordered:
        return 0
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _waits(jobs: Iterable[Finished]) -> dict[str, Any]:
    rows = list(jobs)
    waits = sorted(row.queue_ms for row in rows)
    count = max(1, len(rows))
    slowdown = sum(max(1.0, row.completion_ms / max(_SLOWDOWN_FLOOR_MS, row.ran_ms)) for row in rows)
    return {
        "jobs": len(rows),
        "mean_jct_s": round(sum(row.completion_ms for row in rows) / count / 1000, 3),
        "mean_queue_s": round(sum(waits) / count / 1000, 3),
        "p50_queue_s": percentile(waits, 50) / 1000,
        "p99_queue_s": percentile(waits, 99) / 1000,
        "max_queue_s": (waits[-1] if waits else 0) / 1000,
        "bounded_slowdown": round(slowdown / count, 4),
    }


def devices_of(job: Job) -> float:
    """Devices of the whole gang, fractions counted as such."""
    return job.devices_milli / WHOLE_MILLI


def summarise(
    policy: str, outcome: Outcome, cluster: Cluster, wall_s: float, processor_s: float
) -> dict[str, Any]:
    """The summary of one run, with the keys that `summary.json` promises."""
    jobs = finished_jobs(outcome)
    used = sum((run.end_ms - run.start_ms) * run.job.devices_milli for run in outcome.runs)
    begins = min((row.job.submitted_ms for row in jobs), default=0)
    span = max(1, outcome.end_ms - begins)
    capacity = sum(len(node.devices) for node in cluster.nodes) * WHOLE_MILLI
    sizes: dict[str, list[Finished]] = defaultdict(list)
    queues: dict[str, list[Finished]] = defaultdict(list)
    for row in jobs:
        sizes[f"{devices_of(row.job):g}"].append(row)
        queues[row.job.queue].append(row)
    return {
        "policy": policy,
        **_waits(jobs),
        "utilisation": round(used / max(1, capacity * span), 6),
        "preemptions": sum(run.end_reason == PREEMPTED for run in outcome.runs),
        "wall_s": round(wall_s, 3),
        "processor_s": round(processor_s, 3),
        "jobs_per_s": round(len(jobs) / max(1e-9, wall_s), 1),
        "impossible_jobs": outcome.impossible,
        "unstarted_jobs": outcome.unstarted,
        "by_size": {size: _waits(sizes[size]) for size in sorted(sizes, key=float)},
        "by_queue": {queue: _waits(queues[queue]) for queue in sorted(queues)},
    }
