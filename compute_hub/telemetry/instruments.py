"""What each process counts of itself as it works; served on the process's own port and gone with the process.

Labels are bounded: routes are templates, never paths; no job, tenant or person is ever a label.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy.orm import Session

from compute_hub.telemetry.registry import REGISTRY
from scheduler.controller.ports import Accounting, Admission, Machines
from scheduler.controller.watching import Step
from scheduler.node.protocol import OverRequest, Report, SyncRequest, UsageRecord
from scheduler.tables import JobRow

_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 43_200, 86_400, 259_200, 604_800)

REQUESTS: Final = Counter(
    "hub_http_requests_total",
    "Requests answered, by route and status.",
    ("method", "route", "status"),
    registry=REGISTRY,
)
REQUEST_SECONDS: Final = Histogram(
    "hub_http_request_duration_seconds",
    "Time from a request's head to the end of its answer; exemplars carry trace ids.",
    ("method", "route"),
    buckets=_FAST,
    registry=REGISTRY,
)
IN_FLIGHT: Final = Gauge("hub_http_requests_in_flight", "Requests being answered.", registry=REGISTRY)

LEADING: Final = Gauge("hub_scheduler_leading", "Whether this controller leads.", registry=REGISTRY)
STEP_SECONDS: Final = Histogram(
    "hub_scheduler_step_seconds",
    "Time of the controller's steps: admit (a policy cycle with its transaction), sync (a round trip to nodes), "
    "tick (a whole round).",
    ("step",),
    buckets=_FAST,
    registry=REGISTRY,
)
PLAN_JOBS: Final = Histogram(
    "hub_scheduler_plan_jobs",
    "Size of the policy's plans: jobs a plan starts, and jobs it stops for others (decision).",
    ("decision",),
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    registry=REGISTRY,
)
STEP_FAILURES: Final = Counter(
    "hub_scheduler_step_failures_total", "Rounds of the controller that ended in an error.", registry=REGISTRY
)
UNANSWERED: Final = Counter(
    "hub_scheduler_sync_unanswered_total",
    "Requests to nodes that were not answered in time.",
    registry=REGISTRY,
)
ADMISSIONS: Final = Counter(
    "hub_scheduler_admissions_total",
    "Jobs the policy wanted to start, by outcome: admitted, or unfunded (not enough could be set aside).",
    ("outcome",),
    registry=REGISTRY,
)
WAIT_SECONDS: Final = Histogram(
    "hub_job_wait_seconds",
    "Time from when a job could start to its admission, by size class in cards; exemplars carry trace ids.",
    ("size",),
    buckets=_SLOW,
    registry=REGISTRY,
)
START_SECONDS: Final = Histogram(
    "hub_job_start_seconds",
    "Time from a job's admission to the start of its last process; exemplars carry trace ids.",
    buckets=(*_FAST, 30, 60, 300),
    registry=REGISTRY,
)
RECLAIM_SECONDS: Final = Histogram(
    "hub_scheduler_reclaim_seconds",
    "Time from when others were told to stop for a job to its admission; exemplars carry trace ids.",
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 900),
    registry=REGISTRY,
)

BILL_SECONDS: Final = Histogram(
    "hub_biller_round_seconds",
    "Time of a biller's round over all that is due.",
    buckets=_FAST,
    registry=REGISTRY,
)
BILLED: Final = Counter("hub_biller_jobs_total", "Jobs charged or released by this biller.", registry=REGISTRY)
BILL_REFUSALS: Final = Counter(
    "hub_biller_refusals_total",
    "Jobs that could not be billed in a round, by what refused.",
    ("kind",),
    registry=REGISTRY,
)
BILL_LAST: Final = Gauge(
    "hub_biller_last_round_timestamp_seconds", "When this biller last finished a round.", registry=REGISTRY
)

KEEP_SECONDS: Final = Histogram(
    "hub_keeper_sweep_seconds",
    "Time of a keeper's sweep over what jobs left.",
    buckets=(*_FAST, 30, 60, 300, 900),
    registry=REGISTRY,
)
KEPT_REMOVED: Final = Counter(
    "hub_keeper_removed_total",
    "What this keeper removed of jobs (working directories or logs), by why: due, or full (before its time, because "
    "the store's disk was too full).",
    ("why",),
    registry=REGISTRY,
)
KEEP_FAILURES: Final = Counter(
    "hub_keeper_failures_total", "Sweeps of this keeper that ended in an error.", registry=REGISTRY
)
KEEP_LAST: Final = Gauge(
    "hub_keeper_last_sweep_timestamp_seconds", "When this keeper last finished a sweep.", registry=REGISTRY
)


class MeasuredAccounting:
    """An `Accounting` that counts those for whom not enough could be set aside."""

    def __init__(self, inner: Accounting) -> None:
        self._inner = inner

    def admit(self, session: Session, admissions: Sequence[Admission], at: datetime) -> Mapping[UUID, str]:
        """As the inner one."""
        refused = self._inner.admit(session, admissions, at)
        ADMISSIONS.labels("unfunded").inc(len(refused))
        return refused

    def keep_funded(
        self, session: Session, jobs: Sequence[JobRow], elapsed_ms: Mapping[UUID, int], at: datetime
    ) -> Mapping[UUID, str]:
        """As the inner one."""
        return self._inner.keep_funded(session, jobs, elapsed_ms, at)

    def record_usage(self, session: Session, usage: Mapping[str, Sequence[UsageRecord]], at: datetime) -> None:
        """As the inner one."""
        self._inner.record_usage(session, usage, at)

    def requeued(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:
        """As the inner one."""
        self._inner.requeued(session, jobs, at)

    def ended(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:
        """As the inner one."""
        self._inner.ended(session, jobs, at)


class MeasuredMachines:
    """`Machines` whose round trips are timed and whose silences are counted."""

    def __init__(self, inner: Machines) -> None:
        self._inner = inner

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        """As the inner one."""
        with STEP_SECONDS.labels("sync").time():
            reports = self._inner.sync(requests)
        UNANSWERED.inc(len(requests) - len(reports))
        return reports

    def watch(self, names: Collection[str]) -> None:
        """As the inner one."""
        self._inner.watch(names)

    def ask_ahead(self, requests: Mapping[str, OverRequest]) -> None:
        """As the inner one."""
        self._inner.ask_ahead(requests)

    def early(self, names: Collection[str]) -> Mapping[str, Report]:
        """As the inner one."""
        return self._inner.early(names)

    def reachable(self) -> Sequence[str]:
        """As the inner one."""
        return self._inner.reachable()


class ControllerGauge:
    """What the controller tells of itself and of jobs (`scheduler.controller.watching.Watcher`)."""

    def __init__(self, moved: Callable[[Sequence[Step]], None]) -> None:
        self._moved = moved

    def timing(self, step: str) -> AbstractContextManager[object]:
        """Time one step."""
        return STEP_SECONDS.labels(step).time()

    def led(self, *, leading: bool) -> None:
        """Whether this controller leads now."""
        LEADING.set(leading)

    def failed(self) -> None:
        """A round ended in an error."""
        STEP_FAILURES.inc()

    def planned(self, *, starts: int, evictions: int) -> None:
        """How large a plan is."""
        PLAN_JOBS.labels("start").observe(starts)
        PLAN_JOBS.labels("stop").observe(evictions)

    def moved(self, steps: Sequence[Step]) -> None:
        """What became of jobs."""
        self._moved(steps)
