# ruff: noqa: ARG002, TC001, TC003 - a test accounting ignores what the port hands it; types are few
"""A controller on real supervisors over their sockets and the real database; only Ray is left out."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from kernel.clock import boottime_ms, utc_now
from kernel.database import transaction
from kernel.errors import HubError
from kernel.ids import new_id
from scheduler.controller.loop import Controller, Pace
from scheduler.controller.ports import Accounting, Admission
from scheduler.controller.wakeups import Wakeups
from scheduler.jobs import WAKE_CHANNEL, JobRequest, cancel_job
from scheduler.node.client import SupervisorClient
from scheduler.node.protocol import OverRequest, Report, SyncRequest, UsageRecord
from scheduler.policy.model import Queue
from scheduler.policy.settings import policy_named
from scheduler.secrets import Vault, new_vault_key
from scheduler.store import Store
from scheduler.tables import JobRow, RunRow
from tests.scheduler.node.harness import Machine, Node
from tests.scheduler.submitted import submit_job

FOREVER = ("/bin/sh", "-c", 'trap "exit 7" TERM; while :; do sleep 0.05; done')
DEADLINE_MS = 120_000


@dataclass
class Sockets:
    """Implements `Machines`; tests take nodes out, or lose what is asked or answered."""

    machine: Machine
    away: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    before_answer: Callable[[], None] = lambda: None
    requests: list[tuple[str, SyncRequest]] = field(default_factory=list)
    watched: frozenset[str] = frozenset()
    ahead: list[Mapping[str, OverRequest]] = field(default_factory=list)

    def watch(self, names: Collection[str]) -> None:
        self.watched = frozenset(names)

    def ask_ahead(self, requests: Mapping[str, OverRequest]) -> None:
        self.ahead.append(requests)

    def early(self, names: Collection[str]) -> Mapping[str, Report]:
        return {}

    def reachable(self) -> Sequence[str]:
        return sorted(
            node.config["node"] for node in self.machine.nodes if node.config["node"] not in self.away
        )

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        reports = {}
        for node in self.machine.nodes:
            name = node.config["node"]
            if name not in requests or name in self.deaf:
                continue
            self.requests.append((name, requests[name]))
            try:
                with SupervisorClient(node.socket, timeout_s=30) as client:
                    reports[name] = client.sync(requests[name])
            except HubError:
                continue
        self.before_answer()
        return reports


@dataclass
class Free:  # its arguments are the port's
    """An `Accounting` for which everything is free; it remembers what it was told."""

    usage: dict[str, UsageRecord] = field(default_factory=dict)
    ended_jobs: list[UUID] = field(default_factory=list)
    requeued_jobs: list[UUID] = field(default_factory=list)
    refusing: set[UUID] = field(default_factory=set)

    def admit(self, session: Session, admissions: Sequence[Admission], at: datetime) -> Mapping[UUID, str]:
        return {one.job.id: "waiting for funds: none" for one in admissions if one.job.id in self.refusing}

    def keep_funded(
        self, session: Session, jobs: Sequence[JobRow], elapsed_ms: Mapping[UUID, int], at: datetime
    ) -> Mapping[UUID, str]:
        return {}

    def record_usage(self, session: Session, usage: Mapping[str, Sequence[UsageRecord]], at: datetime) -> None:
        self.usage |= {record.id: record for records in usage.values() for record in records}

    def requeued(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:
        self.requeued_jobs += [job.id for job in jobs]

    def ended(self, session: Session, jobs: Sequence[JobRow], at: datetime) -> None:
        self.ended_jobs += [job.id for job in jobs]


class Cluster:
    """One database, some machines, and controllers on them, stepped by hand."""

    def __init__(self, engine: Engine, machine: Machine, accounting: Accounting | None = None) -> None:
        self.engine = engine
        self.machine = machine
        self.free = Free()
        self.accounting: Accounting = accounting or self.free
        self.sockets = Sockets(machine)
        self.tenant = new_id()
        self.vault = Vault([new_vault_key()])
        self.store = Store(machine.folder / "store" / "uploads", machine.folder / "store", self.vault)
        self.policy = policy_named("default")
        self.queues: Sequence[Queue] = ()
        self.patience_ms = DEADLINE_MS
        self.controller = self.new_controller("first")

    def new_controller(self, holder: str, **pace: int) -> Controller:
        paces = {"tick_ms": 1000, "leader_lease_ms": 60_000, "node_lease_ms": 60_000} | pace
        return Controller(
            self.engine,
            self.sockets,
            self.accounting,
            self.store,
            holder=holder,
            pace=Pace(**paces),
            wakeups=Wakeups(),
            policy=self.policy,
            queues=self.queues,
        )

    def node(self, name: str = "n", **changes: Any) -> Node:  # noqa: ANN401 - any field of the configuration
        facts = {"cpu_milli": 16_000, "memory_mib": 16_384} | changes
        node = self.machine.node(name, **facts)
        self.tick()
        return node

    def tick(self, controller: Controller | None = None) -> None:
        """One whole step, whose errors are the test's."""
        one = controller or self.controller
        assert one.lead()
        one.step({WAKE_CHANNEL}, ticking=True)

    def submit(self, *argv: str, tenant: UUID | None = None, **changes: Any) -> UUID:  # noqa: ANN401 - any field
        job_id = new_id()
        facts = {"name": "job", "argv": argv, "models": ("sim-a",), "environment": "python"}
        facts |= {"time_limit_ms": 600_000, "grace_ms": 1000, "memory_mib": 64, "cpu_milli": 100} | changes
        with transaction(self.engine) as session:
            submit_job(
                session,
                job_id,
                JobRequest(**facts),
                tenant_id=tenant or self.tenant,
                submitted_by=new_id(),
                environments=("python",),
                at=utc_now(),
            )
        return job_id

    def cancel(self, job_id: UUID) -> None:
        with transaction(self.engine) as session:
            cancel_job(session, job_id, tenant_id=self.tenant)

    def job(self, job_id: UUID) -> JobRow:
        with Session(self.engine, expire_on_commit=False) as session:
            return session.get_one(JobRow, job_id)

    def runs(self, job_id: UUID) -> list[RunRow]:
        query = select(RunRow).where(RunRow.job_id == job_id).order_by(RunRow.attempt, RunRow.rank)
        with Session(self.engine, expire_on_commit=False) as session:
            return list(session.scalars(query))

    def sql(self, statement: str, **values: object) -> list[Any]:
        with transaction(self.engine) as session:
            done: Any = session.execute(text(statement), values)
            return list(done.all()) if done.returns_rows else []

    def until(self, done: Callable[[], bool], controller: Controller | None = None) -> None:
        """Step until something is so."""
        deadline = boottime_ms() + self.patience_ms
        while not done():
            assert boottime_ms() < deadline, self.sql("SELECT state, reason, stop_reason FROM jobs")
            self.tick(controller)
            os.sched_yield()

    def until_state(self, job_id: UUID, *states: str) -> JobRow:
        self.until(lambda: self.job(job_id).state in states)
        return self.job(job_id)

    def ended(self, job_id: UUID) -> JobRow:
        return self.until_state(job_id, "succeeded", "failed", "cancelled")

    def open_allocations(self) -> int:
        return int(self.sql("SELECT count(*) FROM allocations WHERE upper_inf(span)")[0][0])


def log_of(cluster: Cluster, job_id: UUID, rank: int = 0, attempt: int = 1) -> str:
    folder = cluster.store.attempt(cluster.job(job_id), attempt)
    path: Path = folder / f"rank-{rank}.log"
    return path.read_text() if path.exists() else ""
