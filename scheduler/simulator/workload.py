"""What a simulation is fed: jobs with their true durations, nodes, queues and failures."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from scheduler.policy.model import DeviceState, Job, Node, Queue, Reservation


class TraceJob(NamedTuple):
    """A job and the truth about it, which the policy does not see."""

    job: Job
    duration_ms: int


class Failure(NamedTuple):
    """A node that is lost at one time and back at another (never, when None)."""

    node: str
    at_ms: int
    back_ms: int | None


@dataclass(frozen=True)
class Cluster:
    """Machines, queues, what is reserved and what will fail."""

    nodes: tuple[Node, ...]
    queues: tuple[Queue, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Workload:
    """The jobs of a trace in order of submission."""

    jobs: tuple[TraceJob, ...]
    queues: tuple[Queue, ...] = field(default=(Queue("main"),))


def uniform_cluster(nodes: int, devices: int, model: str = "device") -> Cluster:
    """`nodes` equal machines with `devices` devices each."""
    every = tuple(DeviceState(index) for index in range(devices))
    return Cluster(tuple(Node(f"node-{number:04d}", model, every) for number in range(nodes)))


def with_limits(jobs: tuple[TraceJob, ...], factor: float, seed: int) -> tuple[TraceJob, ...]:
    """Give every job a limit of its duration times a factor drawn log-uniformly from [1, `factor`]."""
    random = Random(f"limits {seed}")  # noqa: S311 - a simulation wants repeatable numbers
    return tuple(
        TraceJob(replace(job, time_limit_ms=max(1, round(duration * factor ** random.random()))), duration)
        for job, duration in jobs
    )


def with_estimates(jobs: tuple[TraceJob, ...], sigma: float, seed: int) -> tuple[TraceJob, ...]:
    """Give every job an estimate: its duration times a log-normal error of that sigma (0 is exact)."""
    random = Random(f"estimates {seed}")  # noqa: S311 - a simulation wants repeatable numbers
    return tuple(
        TraceJob(replace(job, estimate_ms=max(1, round(duration * random.lognormvariate(0, sigma)))), duration)
        for job, duration in jobs
    )
