"""A tenant with money, a priced card, and a job whose runs are written by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from compute_hub.billing.funding import Funding, check_funding, pledge_funding
from compute_hub.billing.rates import set_rate
from compute_hub.workers.biller import bill_once
from kernel.database import transaction
from kernel.ids import derived_id, new_id
from scheduler.controller.ports import Admission
from scheduler.controller.settling import INFRASTRUCTURE
from scheduler.jobs import JobRequest, new_job, queue_jobs
from scheduler.node.protocol import DeviceShare, UsageRecord
from scheduler.tables import JobRow
from tests.vouchers.world import World
from vouchers.domain.facts import CentreFacts
from vouchers.reading import programme_totals
from vouchers.wallets import deposit, wallet_balance

NOW = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
YUAN = 1_000_000
HOUR_MS = 3_600_000
HUANGYAN = CentreFacts("331003", 0)
PRICE = {"sim-a": 36 * YUAN, "sim-b": 72 * YUAN}


class House:
    """Everything a test of money begins with; time is said by the test."""

    def __init__(self, engine: Engine, prepaid_yuan: int = 1000, centre: CentreFacts = HUANGYAN) -> None:
        self.engine = engine
        self.centre = centre
        self.funding = Funding(HOUR_MS, centre)
        self.world = World(engine)
        with transaction(engine) as session:
            self.tenant = self.world.enterprise(session)
            if prepaid_yuan:
                deposit(session, self.tenant, prepaid_yuan * YUAN, "first", NOW)
            for model, price in PRICE.items():
                set_rate(session, model, price, effective_from=NOW, by=new_id(), at=NOW)
            session.execute(
                text("INSERT INTO nodes VALUES ('n', 'h', 'up', '{}', 4000, 4096, '{}', :at, :at);").bindparams(
                    at=NOW
                )
            )
            for index, model in enumerate(PRICE):
                session.execute(
                    text(
                        "INSERT INTO devices (node, index, model, vendor, healthy) VALUES ('n', :i, :m, 's', true)"
                    ),
                    {"i": index, "m": model},
                )

    def submit(
        self,
        *,
        limit_ms: int = 10 * HOUR_MS,
        grace_ms: int = 5000,
        models: tuple[str, ...] = tuple(PRICE),
        vouchers: Sequence[UUID] | None = (),
        environment: str = "e",
        project: str | None = None,
    ) -> UUID:
        job_id = new_id()
        request = JobRequest(
            name="job",
            argv=("x",),
            models=models,
            environment=environment,
            time_limit_ms=limit_ms,
            grace_ms=grace_ms,
        )
        with transaction(self.engine) as session:
            job = new_job(
                session,
                job_id,
                request,
                tenant_id=self.tenant,
                submitted_by=new_id(),
                environments=(environment,),
                at=NOW,
            )
            check_funding(
                session, job, vouchers, project=project, centre=self.centre, horizon_ms=HOUR_MS, at=NOW
            )
            queue_jobs(session, [job])
            pledge_funding(session, [job], vouchers, project)
        return job_id

    def admit(self, job_id: UUID, model: str = "sim-a", at: datetime = NOW) -> str | None:
        """Place the next attempt on a model, with its run and allocation."""
        with transaction(self.engine) as session:
            job = session.get_one(JobRow, job_id)
            job.attempt += 1
            refused = self.funding.admit(session, [Admission(job, {model: 1000})], at).get(job_id)
            if refused is not None:
                session.rollback()
                return refused
            job.state, job.placed_at = "running", at
            session.flush()
            run = {
                "run": self.run_id(job_id, job.attempt),
                "job": job_id,
                "n": job.attempt,
                "at": at,
                "m": model,
            }
            session.execute(
                text(
                    "INSERT INTO runs (id, job_id, attempt, rank, node, epoch, state, devices, acknowledged) "
                    "VALUES (:run, :job, :n, 0, 'n', 1, 'running', '[]', false)"
                ),
                run,
            )
            session.execute(
                text(
                    "INSERT INTO allocations SELECT gen_random_uuid(), :run, 'n', index, model, "
                    "int8range(number * 1000, number * 1000 + 1000), "
                    "tstzrange(:at, CAST(:at AS timestamptz) + interval '1 microsecond') "
                    "FROM devices WHERE model = :m"
                ),
                run,
            )
        return None

    def run_id(self, job_id: UUID, attempt: int = 1) -> UUID:
        return derived_id("run", job_id, attempt, 0)

    def record(self, job_id: UUID, k: int, ms: int, **changes: Any) -> UsageRecord:  # noqa: ANN401 - any field
        attempt = changes.pop("attempt", 1)
        facts: dict[str, Any] = {
            "id": str(derived_id("usage", job_id, attempt, 0, k)),
            "run_id": str(self.run_id(job_id, attempt)),
            "job_id": str(job_id),
            "tenant_id": str(self.tenant),
            "attempt": attempt,
            "rank": 0,
            "k": k,
            "boot_id": "b",
            "offset_ms": 0,
            "duration_ms": ms,
            "started_unix_ms": int(NOW.timestamp() * 1000),
            "devices": (DeviceShare(0),),
            "slot_ms": ms * 1000,
            "cpu_ms": 0,
            "final": False,
        }
        return UsageRecord(**(facts | changes))

    def meter(self, *records: UsageRecord, at: datetime = NOW) -> None:
        with transaction(self.engine) as session:
            self.funding.record_usage(session, {"n": records}, at)

    def lose(self, job_id: UUID) -> None:
        """The node is lost and the job waits to be tried again, as the controller settles it."""
        with transaction(self.engine) as session:
            job = session.get_one(JobRow, job_id)
            job.lost_attempts = [*job.lost_attempts, job.attempt]
            self._requeue(session, job, "node_lost")

    def fail(self, job_id: UUID) -> None:
        """The program failed and the job waits to be tried again, because it asked for that."""
        with transaction(self.engine) as session:
            self._requeue(session, session.get_one(JobRow, job_id), "exited")

    def _requeue(self, session: Session, job: JobRow, reason: str) -> None:
        job.state, job.placed_at = "queued", None
        self._end_runs(session, job.id, reason)
        session.flush()
        self.funding.requeued(session, [job], NOW)

    def _end_runs(self, session: Session, job_id: UUID, reason: str) -> None:
        session.execute(
            text(
                "UPDATE runs SET state = 'ended', end_reason = :reason WHERE job_id = :job AND state <> 'ended'"
            ),
            {"reason": reason, "job": job_id},
        )

    def end(
        self, job_id: UUID, at: datetime = NOW, *, state: str = "succeeded", reason: str = "exited"
    ) -> None:
        with transaction(self.engine) as session:
            job = session.get_one(JobRow, job_id)
            job.state, job.ended_at, job.end_reason = state, at, reason
            if reason in INFRASTRUCTURE:
                job.lost_attempts = [*job.lost_attempts, job.attempt]
            self._end_runs(session, job_id, reason)
            session.flush()
            self.funding.ended(session, [job], at)

    def keep(self, job_id: UUID, elapsed_ms: int, at: datetime | None = None) -> str | None:
        with transaction(self.engine) as session:
            job = session.get_one(JobRow, job_id)
            when = at or NOW + timedelta(milliseconds=elapsed_ms)
            return self.funding.keep_funded(session, [job], {job_id: elapsed_ms}, when).get(job_id)

    def bill(self, at: datetime = NOW) -> int:
        return bill_once(self.engine, at)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with Session(self.engine) as session:
            return [tuple(row) for row in session.execute(text(statement))]

    def charged(self) -> tuple[int, int, int]:
        """Slot-milliseconds charged, what was paid for them and what was forgone."""
        return tuple(map(int, self.sql(  # type: ignore[return-value]
            "SELECT coalesce(sum(slot_ms), 0), coalesce(sum(amount_micros), 0), coalesce(sum(forgone_micros), 0) "
            "FROM charges"
        )[0]))  # fmt: skip

    def pool(self, slug: str) -> int:
        """What a programme may still issue, in micro-yuan."""
        with Session(self.engine) as session:
            return programme_totals(session, slug).pool

    def balance(self) -> tuple[int, int]:
        """What is free and what is held."""
        with Session(self.engine) as session:
            found = wallet_balance(session, self.tenant)
            return (found.prepaid_available_micros, found.prepaid_held_micros)
