"""A seeded maker of workloads that look like a centre's: nothing needs anybody else's data.

Durations have heavy tails, arrivals follow the day, most jobs are small and a few are wide gangs, people
repeat the names of their jobs and with them roughly their durations, limits are rounded up, estimates are poor.
"""

from dataclasses import dataclass, replace
from math import cos, pi
from random import Random
from typing import Final

from scheduler.policy.model import WHOLE_MILLI, Job
from scheduler.simulator.readers import gang_of
from scheduler.simulator.workload import TraceJob

_DAY_S: Final = 86_400
_SIZES: Final = (1, 2, 4, 8, 16, 32)
_SIZE_WEIGHTS: Final = (620, 90, 90, 150, 35, 15)
_FRACTIONS: Final = (250, 500)


@dataclass(frozen=True, slots=True)
class WorkloadShape:
    """What kind of workload to make.

    Attributes:
        load_percent: of the capacity that the jobs ask for while they arrive.
        fraction_percent: of the one-device jobs that ask for part of a device only.
        preemptible_percent: of all jobs.
    """

    jobs: int = 1000
    nodes: int = 16
    devices_per_node: int = 8
    load_percent: int = 80
    fraction_percent: int = 20
    preemptible_percent: int = 0
    users: int = 20
    queues: tuple[str, ...] = ("main",)
    median_duration_s: int = 1800


def generate(shape: WorkloadShape, seed: int) -> tuple[TraceJob, ...]:
    """The workload of a seed, in order of submission."""
    random = Random(f"workload {seed}")  # noqa: S311 - repeatable numbers are the point
    drafts = [_draft(shape, random, number) for number in range(shape.jobs)]
    work_ms = sum(job.devices_milli * duration for job, duration in drafts)
    capacity_milli = shape.nodes * shape.devices_per_node * WHOLE_MILLI
    span_s = work_ms * 100 // max(1, capacity_milli * shape.load_percent * 1000)
    at = sorted(_arrival_s(random, max(1, span_s)) for _ in drafts)
    return tuple(
        TraceJob(_submitted(job, second * 1000), duration)
        for (job, duration), second in zip(drafts, at, strict=True)
    )


def _submitted(job: Job, at_ms: int) -> Job:
    return replace(job, submitted_ms=at_ms)


def _arrival_s(random: Random, span_s: int) -> int:
    """A second of the span; three times as likely in the middle of a day as at midnight."""
    while True:
        second = random.randrange(span_s)
        if random.random() < 0.6 - 0.3 * cos(2 * pi * (second % _DAY_S) / _DAY_S):
            return second


def _draft(shape: WorkloadShape, random: Random, number: int) -> TraceJob:
    user = f"user-{min(int(random.paretovariate(1.2)), shape.users):02d}"
    name = f"train-{min(int(random.paretovariate(1.5)), 9)}"
    habit = Random(f"{user} {name}").lognormvariate(0, 1.6)  # noqa: S311 - the habit of that name
    duration_ms = max(10_000, round(shape.median_duration_s * 1000 * habit * random.lognormvariate(0, 0.5)))
    most = shape.nodes * shape.devices_per_node
    devices = min(random.choices(_SIZES, _SIZE_WEIGHTS)[0], most)
    fraction = devices == 1 and random.randrange(100) < shape.fraction_percent
    limit_ms = -(-round(duration_ms * random.uniform(1.1, 4)) // 600_000) * 600_000
    job = Job(
        id=f"job-{number:06d}",
        queue=shape.queues[number % len(shape.queues)],
        submitted_ms=0,
        time_limit_ms=limit_ms,
        user=user,
        name=name,
        slots_milli=random.choice(_FRACTIONS) if fraction else WHOLE_MILLI,
        preemptible=random.randrange(100) < shape.preemptible_percent,
        estimate_ms=max(1000, round(duration_ms * random.lognormvariate(0, 1))),
    )
    return TraceJob(gang_of(job, devices, shape.devices_per_node), duration_ms)
