"""A controller on nodes whose programs are only counted, and the real database: fast, without sandboxes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.database import transaction
from kernel.ids import new_id
from scheduler.controller.loop import Controller, Pace
from scheduler.controller.wakeups import Wakeups
from scheduler.jobs import WAKE_CHANNEL, JobRequest
from scheduler.node.protocol import OverRequest, Report, SyncRequest
from scheduler.node.simulated import PROGRAM, SimulatedMachine, SimulatedNode
from scheduler.store import Store
from scheduler.tables import JobRow, RunRow
from tests.scheduler.controller.cluster import Free
from tests.scheduler.submitted import submit_job

BEGAN_MS = 1000


def simulated(
    name: str, host: str = "host", instance: str = "first", model: str = "sim-a", devices: int = 4
) -> SimulatedNode:
    machine = SimulatedMachine(name, host, model, "simulated", devices, 16_000, 16_384)
    return SimulatedNode(machine, "boot", instance, BEGAN_MS, 60_000)


def as_it_is(report: Report) -> Report:
    return report


@dataclass
class Counted:
    """Implements `Machines` on simulated nodes; a test may falsify what they say."""

    nodes: dict[str, SimulatedNode] = field(default_factory=dict)
    falsified: Callable[[Report], Report] = as_it_is
    requests: list[tuple[str, SyncRequest]] = field(default_factory=list)
    watched: frozenset[str] = frozenset()
    ahead: list[Mapping[str, OverRequest]] = field(default_factory=list)
    came: dict[str, Report] = field(default_factory=dict)
    deaf: bool = False
    breaks: int = 0
    """How many more orders to ask ahead end in an error."""

    def watch(self, names: Collection[str]) -> None:
        self.watched = frozenset(names)

    def ask_ahead(self, requests: Mapping[str, OverRequest]) -> None:
        if self.breaks:
            self.breaks -= 1
            raise RuntimeError
        self.ahead.append(requests)

    def early(self, names: Collection[str]) -> Mapping[str, Report]:
        return {name: self.came.pop(name) for name in names if name in self.came}

    def reachable(self) -> Sequence[str]:
        return sorted(self.nodes)

    def sync(self, requests: Mapping[str, SyncRequest]) -> Mapping[str, Report]:
        self.requests += sorted(requests.items())
        now_ms, wall_ms = boottime_ms(), unix_ms(utc_now())
        return {
            name: self.falsified(self.nodes[name].sync(request, now_ms, wall_ms)[0])
            for name, request in sorted(requests.items())
            if name in self.nodes and not self.deaf
        }


class Centre:
    """A controller on simulated nodes and the real database, stepped by hand."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine, self.store = engine, store
        self.machines = Counted({"n": simulated("n")})
        self.free = Free()
        self.tenant = new_id()
        self.wakeups = Wakeups()
        self.controller = Controller(
            engine, self.machines, self.free, store,
            holder="c", pace=Pace(1000, 60_000, 60_000), wakeups=self.wakeups,
        )  # fmt: skip
        self.tick()

    def tick(self) -> None:
        assert self.controller.lead()
        self.controller.step({WAKE_CHANNEL}, ticking=True)

    def submit(self, milliseconds: int = 600_000, **changes: object) -> UUID:
        job_id = new_id()
        facts: dict[str, object] = {"name": "job", "argv": (PROGRAM, str(milliseconds)), "models": ("sim-a",)}
        facts |= {
            "environment": "python",
            "time_limit_ms": 900_000,
            "memory_mib": 64,
            "cpu_milli": 100,
        } | changes
        with transaction(self.engine) as session:
            submit_job(
                session, job_id, JobRequest(**facts),  # type: ignore[arg-type] # whatever the test wants
                tenant_id=self.tenant, submitted_by=new_id(), environments=("python",), at=utc_now(),
            )  # fmt: skip
        return job_id

    def started(self, **changes: object) -> UUID:
        job_id = self.submit(**changes)  # type: ignore[arg-type] # whatever the test wants
        self.tick()
        assert self.job(job_id).state == "running"
        return job_id

    def job(self, job_id: UUID) -> JobRow:
        with Session(self.engine) as session:
            return session.get_one(JobRow, job_id)

    def ends(self, job_id: UUID) -> list[str | None]:
        with Session(self.engine) as session:
            runs = session.query(RunRow).where(RunRow.job_id == job_id).order_by(RunRow.attempt, RunRow.rank)
            return [run.end_reason for run in runs]

    def node_of(self, job_id: UUID, rank: int) -> str:
        with Session(self.engine) as session:
            query = session.query(RunRow).where(RunRow.job_id == job_id, RunRow.rank == rank)
            return str(query.order_by(RunRow.attempt.desc()).first().node)  # type: ignore[union-attr] # it has run
