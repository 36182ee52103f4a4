"""Discrete events around the one policy: arrivals, ends, losses of nodes, and a cycle after each instant.

Invariant: everything that happens at one instant is told to the policy before it plans; equal inputs give
equal event logs, byte for byte.
"""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import NamedTuple

from scheduler.policy.cycle import run_cycle
from scheduler.policy.model import Job, Placement, Queue
from scheduler.policy.reasons import explain, impossible
from scheduler.policy.settings import PolicySettings
from scheduler.policy.state import SchedulerState
from scheduler.simulator.workload import Cluster, TraceJob

FINISHED = "finished"
TIMED_OUT = "timed_out"
PREEMPTED = "preempted"
NODE_LOST = "node_lost"

_END, _STOPPED, _LOST, _BACK, _WAKE = range(5)


class Run(NamedTuple):
    """One attempt of a job, from start to end."""

    job: Job
    placements: tuple[Placement, ...]
    start_ms: int
    end_ms: int
    end_reason: str


class Outcome(NamedTuple):
    """All that happened, in order of end; what never could run here, and what still waits in the end, and why."""

    runs: list[Run]
    impossible: dict[str, str]
    unstarted: dict[str, str]
    end_ms: int
    """When the last run ended, whatever else was still to happen to the nodes."""


Progress = Callable[[int], None]


class Simulation:
    """One run of one policy over one workload."""

    def __init__(
        self,
        cluster: Cluster,
        jobs: Iterable[TraceJob],
        queues: Iterable[Queue],
        settings: PolicySettings,
        progress: Progress | None = None,
    ) -> None:
        self.state = SchedulerState(queues, settings)
        for node in cluster.nodes:
            self.state.node_joined(node)
        for reservation in cluster.reservations:
            self.state.reserved(reservation)
        self.state.queues.check_guarantees(self.state.capacities())
        self._nodes = {node.name: node for node in cluster.nodes}
        self._jobs = sorted(jobs, key=lambda one: one.job.submitted_ms)
        self._durations: dict[str, int] = {}
        self._events: list[tuple[int, int, str, int]] = []
        self._runs: list[Run] = []
        self._impossible: dict[str, str] = {}
        self._progress = progress
        self._woken: int | None = None
        for failure in cluster.failures:
            heappush(self._events, (failure.at_ms, _LOST, failure.node, 0))
            if failure.back_ms is not None:
                heappush(self._events, (failure.back_ms, _BACK, failure.node, 0))

    def run(self) -> Outcome:
        """Until nothing is left to happen."""
        jobs, events = self._jobs, self._events
        times = [job.submitted_ms for job, _ in jobs]
        at, count, now = 0, len(jobs), 0
        while at < count or events:
            now = times[at] if at < count else events[0][0]
            if events and events[0][0] <= now:
                now = events[0][0]
                while events and events[0][0] <= now:
                    _, kind, name, attempt = heappop(events)
                    if kind == _END:
                        self._end(name, attempt, now)
                    else:
                        self._happen(kind, name, attempt, now)
            while at < count and times[at] <= now:
                self._arrive(jobs[at])
                at += 1
            self._plan(now)
            if self._progress is not None and at % 256 == 0:
                self._progress(at)
        if self._progress is not None:
            self._progress(count)
        unstarted = {job_id: explain(self.state, job_id, now).sentence for job_id in self.state.queued}
        end = max((run.end_ms for run in self._runs), default=0)
        return Outcome(self._runs, self._impossible, unstarted, end)

    def _arrive(self, trace_job: TraceJob) -> None:
        job, duration = trace_job
        state = self.state
        state.job_queued(job)
        why = impossible(state, state.queued[job.id])
        if why is not None:
            self._impossible[job.id] = why[1]
            state.job_withdrawn(job.id)
            state.job_failed(job.id)
            return
        self._durations[job.id] = duration

    def _plan(self, now: int) -> None:
        plan = run_cycle(self.state, now)
        for job_id, _ in plan.starts:
            job = self.state.running[job_id].job
            lasts = min(self._durations[job_id], job.time_limit_ms)
            heappush(self._events, (now + lasts, _END, job_id, job.attempt))
        for eviction in plan.evictions:
            self.state.eviction_ordered(eviction)
            job = self.state.running[eviction.job_id].job
            end = now + self.state.settings.grace_ms
            heappush(self._events, (end, _STOPPED, job.id, job.attempt))
        wake = plan.next_wake_ms
        if wake is not None and wake != self._woken and wake > now:
            self._woken = wake
            heappush(self._events, (wake, _WAKE, "", 0))

    def _happen(self, kind: int, name: str, attempt: int, now: int) -> None:
        """Anything but a job's own end."""
        if kind == _STOPPED:
            running = self.state.running.get(name)
            if running is not None and running.job.attempt == attempt:
                self._stop(name, now, PREEMPTED)
        elif kind == _LOST:
            for job_id in self.state.node_left(name):
                self._stop(job_id, now, NODE_LOST)
        elif kind == _BACK:
            self.state.node_joined(self._nodes[name])

    def _end(self, job_id: str, attempt: int, now: int) -> None:
        running = self.state.running.get(job_id)
        if running is None or running.job.attempt != attempt:
            return
        timed_out = self._durations[job_id] > running.job.time_limit_ms
        reason = TIMED_OUT if timed_out else FINISHED
        self._runs.append(Run(running.job, running.placements, running.started_ms, now, reason))
        self.state.allocation_ended(job_id, now, succeeded=not timed_out)
        if timed_out:
            self.state.job_failed(job_id)

    def _stop(self, job_id: str, now: int, reason: str) -> None:
        running = self.state.running[job_id]
        self._runs.append(Run(running.job, running.placements, running.started_ms, now, reason))
        self.state.allocation_ended(job_id, now, succeeded=False)
        self.state.job_queued(running.job.again(now - running.started_ms), now)
